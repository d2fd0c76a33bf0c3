"""Differences over paired seeds and questions: against explicit loops, published numbers, and simulations."""

from __future__ import annotations

import numpy as np
import pytest

from uq4ct.metrics.intervals import bootstrap_weights
from uq4ct.metrics.paired import few_seeds, holm, over_seeds, seed_shares, standard_error


def weights_of(n: int, resamples: int) -> np.ndarray:
    return np.concatenate(list(bootstrap_weights(n, resamples, 0)))


@pytest.mark.parametrize("pivotal", [False, True])
@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_the_interval_is_that_of_loops_over_drawn_seeds_and_questions(seeds, pivotal):
    n, resamples = 12, 60
    items = np.random.default_rng(4).normal(0.3, 1.0, size=(seeds, n))
    weights = weights_of(n, resamples)
    shares, stretch = seed_shares(seeds, resamples, 0), few_seeds(seeds, resamples, 0)
    drawn, kept = [], []
    for b in range(resamples):
        questions = [i for i in range(n) for _ in range(int(weights[b, i]))]
        by_seed = [sum(items[s, i] for i in questions) / n for s in range(seeds)]
        runs = [s for s in range(seeds) for _ in range(round(seeds * shares[b, s]))]
        of_drawn = sum(by_seed[s] for s in runs) / seeds
        of_all = sum(by_seed) / seeds
        kept.append(of_all)
        drawn.append(of_all + stretch[b] * (of_drawn - of_all))
    mean = float(items.mean())
    drawn = [2 * mean - value for value in drawn] if pivotal else drawn
    found = over_seeds(items.mean(axis=1), weights @ items.T / n, pivotal=pivotal)
    assert found.mean == pytest.approx(mean, abs=1e-12)
    assert found.interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=1e-12)
    beyond = min(sum(value <= 0 for value in drawn), sum(value >= 0 for value in drawn))
    assert found.p == pytest.approx(min(1.0, 2 * (1 + beyond) / (1 + resamples)), abs=1e-12)
    assert found.item_sd == pytest.approx(np.std(kept), abs=1e-12)
    assert found.seed_sd == (None if seeds == 1 else pytest.approx(items.mean(axis=1).std(ddof=1), abs=1e-12))


def test_seeds_alone_give_nearly_the_interval_of_students_t():
    scipy = pytest.importorskip("scipy.stats")
    for seeds in (5, 10):
        values = scipy.norm.ppf((np.arange(seeds) + 0.5) / seeds)
        found = over_seeds(values, np.tile(values, (20_000, 1)))
        half = scipy.t.ppf(0.975, seeds - 1) * values.std(ddof=1) / np.sqrt(seeds)
        assert found.interval == pytest.approx([-half, half], rel=0.1)
        assert found.item_sd == pytest.approx(0, abs=1e-12)


def test_a_seed_that_is_undefined_for_drawn_questions_leaves_that_draw_out():
    draws = np.array([[0.1, 0.3], [np.nan, 0.3], [0.2, 0.2], [0.15, 0.25]])
    found = over_seeds(np.array([0.1, 0.3]), draws)
    assert np.isfinite(found.interval).all()
    assert np.isfinite(found.item_sd)
    with pytest.raises(ValueError, match="no resample has a value"):
        over_seeds(np.array([0.1, 0.3]), np.full((4, 2), np.nan))


def test_a_draw_takes_as_many_seeds_as_there_are_and_the_same_every_time():
    shares = seed_shares(5, 500, 0)
    assert np.allclose(shares.sum(axis=1), 1)
    assert np.array_equal(shares, seed_shares(5, 500, 0))
    assert shares.mean(axis=0) == pytest.approx(np.full(5, 0.2), abs=0.03)
    assert np.array_equal(few_seeds(1, 3, 0), np.ones(3))


@pytest.mark.parametrize(("seeds", "between"), [(2, 0.3), (3, 0.04), (5, 0.0), (5, 0.3)])
def test_where_nothing_differs_a_difference_is_found_in_about_one_case_of_twenty(seeds, between):
    n, resamples, cases = 100, 300, 300
    weights, generator = weights_of(n, resamples) / n, np.random.default_rng(1)
    found = 0
    for _ in range(cases):
        items = between * generator.normal(size=(seeds, 1)) + generator.normal(0, 0.4, n)
        items = items + generator.normal(0, 0.3, (seeds, n))
        low, high = over_seeds(items.mean(axis=1), weights @ items.T).interval
        found += not low <= 0 <= high
    assert found / cases <= 0.08  # three standard errors above 0.05 are 0.088


def test_a_plain_bootstrap_of_few_seeds_would_find_far_more():
    weights, generator = weights_of(50, 300) / 50, np.random.default_rng(1)
    found = 0
    for _ in range(200):
        items = 0.3 * generator.normal(size=(3, 1)) + generator.normal(0, 0.1, (3, 50))
        plain = (seed_shares(3, 300, 0) * (weights @ items.T)).sum(axis=1)
        found += not np.quantile(plain, 0.025) <= 0 <= np.quantile(plain, 0.975)
    assert found / 200 > 0.15


# ---- standard errors


def test_a_standard_error_without_groups_is_that_of_the_central_limit_theorem():
    values = np.array([0.1, 0.5, 0.2, 0.9, 0.4])
    assert standard_error(values) == pytest.approx(0.139284, abs=1e-6)  # sd 0.311448 / sqrt(5)
    assert np.isnan(standard_error(np.array([1.0])))


def test_a_clustered_standard_error_adds_every_pair_within_a_group():
    values, groups = np.array([0.1, 0.5, 0.2, 0.9, 0.4, 0.3]), ["a", "b", "a", "c", "b", "a"]
    off = values - values.mean()
    pairs = sum(off[i] * off[j] for i in range(6) for j in range(6) if groups[i] == groups[j])
    assert standard_error(values, groups) == pytest.approx(np.sqrt(pairs) / 6, abs=1e-12)
    alone = standard_error(values, list("abcdef"))
    assert alone == pytest.approx(standard_error(values) * np.sqrt(5 / 6), abs=1e-12)


# ---- Holm


def test_holms_correction_is_that_of_a_hand_computation():
    # 0.001 x 5; 0.01 x 4; 0.02 x 3; 0.02 is not below the one before; 0.8 x 1
    assert holm([0.02, 0.8, 0.001, 0.01, 0.021]) == pytest.approx([0.06, 0.8, 0.005, 0.04, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_rule_rejects():
    generator = np.random.default_rng(0)
    for _ in range(200):
        p = generator.beta(0.3, 1.5, size=generator.integers(1, 9)).tolist()
        rejected = set()
        for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            if p[place] > 0.05 / (len(p) - rank):
                break
            rejected.add(place)
        assert {k for k, corrected in enumerate(holm(p)) if corrected <= 0.05} == rejected
