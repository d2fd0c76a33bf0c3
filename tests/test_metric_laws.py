"""Laws that every metric owes, on drawn answers, some 300 examples in all; ties, ragged choices and one-sided sets among them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from uq4ct.metrics import METRICS, Answers, Metric, Settings, Undefined, summarize
from uq4ct.metrics.brier_parts import corp, murphy
from uq4ct.metrics.calibration_error import ece, ece_equal_mass, ece_sweep, mce, over_under, rms_calibration_error
from uq4ct.metrics.conformal import ConformalSets
from uq4ct.metrics.detection import fpr_at_recall, ood_auroc
from uq4ct.metrics.intervals import bootstrap_weights
from uq4ct.metrics.sampling import decompose
from uq4ct.metrics.selective import aupr, aurc, auroc, eaurc, prr, risk_coverage
from uq4ct.metrics.smooth_error import smooth_ece

SETTINGS = Settings(resamples=100)
CONFIDENCES = st.integers(0, 30).map(lambda k: k / 30)  # every border of 2, 3, 5, 6, 10, 15 bins, and ties
PAIRS = st.lists(st.tuples(CONFIDENCES, st.booleans()), min_size=1, max_size=20)
UNIT = {"ece", "overconfidence", "underconfidence", "ece_equal_mass", "ece_sweep", "rms_calibration_error", "smooth_ece"}
UNIT |= {"accuracy", "brier_top", "classwise_ece", "auroc", "aupr_right", "aupr_wrong", "aurc", "eaurc", "augrc", "feu_ece"}


@st.composite
def answers(draw: Any, ragged: bool = True, most: int = 20) -> Answers:
    """Draw answers with probabilities of few digits; the most probable choice is unique, so that its name is no matter."""
    n, k = draw(st.integers(1, most)), draw(st.integers(2, 5))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    sizes = generator.integers(2, k + 1, size=n) if ragged else np.full(n, k)
    mask = np.arange(k) < sizes[:, None]
    counts = np.where(mask, generator.integers(1, 9, size=(n, k)), 0)
    counts[np.arange(n), generator.integers(0, sizes)] += 9
    p = counts / counts.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    samples = generator.dirichlet(np.ones(k), size=(n, 3))
    return Answers(
        p,
        log_p,
        mask,
        generator.integers(0, sizes),
        feu=np.round(generator.random(n), 1),
        letter_mass=generator.random(n),
        true_probabilities=p,
        entropies=decompose(samples),
        ginis=decompose(samples, "gini"),
        groups=generator.integers(4, size=n),
    )


def value(metric: Metric, of: Answers) -> float:
    try:
        return metric.value(of, SETTINGS)
    except Undefined:
        return math.nan


def same(first: Answers, second: Answers, apart_from: frozenset[str] = frozenset()) -> None:
    for metric in METRICS:
        if metric.name not in apart_from:
            found = value(metric, first)
            assert value(metric, second) == pytest.approx(found, abs=1e-9, nan_ok=True), metric.name


@settings(max_examples=40, deadline=None)
@given(answers(), st.integers(0, 999))
def test_the_order_of_a_file_changes_no_metric(of: Answers, seed: int) -> None:
    same(of, of.take(np.random.default_rng(seed).permutation(of.n)))


@settings(max_examples=30, deadline=None)
@given(answers(ragged=False), st.integers(0, 999))
def test_the_names_of_choices_change_no_metric(of: Answers, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(of.probabilities.shape[1])
    new_place = np.argsort(order)
    renamed = replace(
        of,
        probabilities=of.probabilities[:, order],
        log_probs=of.log_probs[:, order],
        answer=new_place[of.answer],
        true_probabilities=of.true_probabilities[:, order],
    )
    same(of, renamed)


@settings(max_examples=30, deadline=None)
@given(answers())
def test_choices_that_no_row_has_change_no_metric(of: Answers) -> None:
    def wider(table: np.ndarray, fill: float) -> np.ndarray:
        return np.pad(table, ((0, 0), (0, 2)), constant_values=fill)

    padded = replace(
        of,
        probabilities=wider(of.probabilities, 0),
        log_probs=wider(of.log_probs, -np.inf),
        mask=wider(of.mask, False),
        true_probabilities=wider(of.true_probabilities, 0),
    )
    same(of, padded, frozenset({"classwise_ece"}))  # a letter without questions is no class: it is null then
    assert math.isnan(value(next(m for m in METRICS if m.name == "classwise_ece"), padded))


@settings(max_examples=30, deadline=None)
@given(answers())
def test_answers_that_stand_twice_change_no_mean_and_no_ranking(of: Answers) -> None:
    """AURC and its kin average over n steps, equal-mass and debiased errors correct for n: these may change."""
    counted = {"aurc", "eaurc", "augrc", "prr", "ece_equal_mass", "ece_sweep", "rms_calibration_error", "accuracy_at_80"}
    same(of, of.take(np.tile(np.arange(of.n), 2)), frozenset(counted))


@settings(max_examples=30, deadline=None)
@given(answers())
def test_metrics_and_their_intervals_stay_within_their_bounds(of: Answers) -> None:
    result = summarize(of, resamples=100)
    for name in UNIT:
        if result[name] is not None:
            assert -1e-12 <= result[name] <= 1 + 1e-9, name
            low, high = result["intervals"][name] or (0.0, 1.0)
            assert -1e-12 <= low <= high <= 1 + 1e-9, name
    assert 0 <= result["brier"] <= 2
    assert -1 <= result["signed_gap"] <= 1
    assert abs(result["signed_gap"]) <= result["ece"] + 1e-12
    assert result["prr"] is None or result["prr"] <= 1 + 1e-12


@settings(max_examples=30, deadline=None)
@given(answers(ragged=False))
def test_the_numbers_behind_an_interval_have_the_metric_as_their_mean(of: Answers) -> None:
    apart = of if len(np.unique(of.confidence)) == of.n else of.take(np.unique(of.confidence, return_index=True)[1])
    for metric in METRICS:
        if metric.steady is not None:
            found = metric.steady(apart, SETTINGS)
            assert found.shape == (apart.n,)
            assert found.mean() == pytest.approx(value(metric, apart), abs=1e-12), metric.name


@settings(max_examples=40, deadline=None)
@given(PAIRS, st.sampled_from([1, 2, 5, 10, 15]))
def test_parts_add_up(pairs: list[tuple[float, bool]], bins: int) -> None:
    c, a = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    over, under = over_under(c, a, bins)
    assert over + under == pytest.approx(ece(c, a, bins), abs=1e-12)
    assert over - under == pytest.approx((c - a).mean(), abs=1e-12)
    assert ece(c, a, bins) <= rms_calibration_error(c, a, bins, debias=False) + 1e-12 <= mce(c, a, bins) + 1e-9
    assert rms_calibration_error(c, a, bins) <= rms_calibration_error(c, a, bins, debias=False) + 1e-12
    score = np.mean((c - a) ** 2)
    rel, res, unc, variance, covariance = murphy(c, a, bins)
    assert rel - res + unc + variance - covariance == pytest.approx(score, abs=1e-12)
    mcb, dsc, unc = corp(c, a)
    assert mcb - dsc + unc == pytest.approx(score, abs=1e-12)
    assert min(mcb, dsc) >= 0
    assert abs((c - a).mean()) - 1e-12 <= ece_equal_mass(c, a, bins) <= 1
    assert ece_sweep(c, a) >= abs((c - a).mean()) - 1e-12


@settings(max_examples=30, deadline=None)
@given(PAIRS)
def test_no_order_beats_the_oracle_and_scores_that_rank_alike_are_alike(pairs: list[tuple[float, bool]]) -> None:
    c, a = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    assert eaurc(c, a) >= 0
    assert eaurc(a, a) == pytest.approx(0, abs=1e-12)
    best = np.sort(1 - a).cumsum() / np.arange(1, len(a) + 1)
    assert eaurc(c, a) == pytest.approx(aurc(c, a) - best.mean(), abs=1e-12)
    assert aurc(c, a) == pytest.approx(risk_coverage(c, a)[1].mean(), abs=1e-12)
    if 0 < a.sum() < len(a):
        assert prr(a, a) == pytest.approx(1)
        assert prr(np.zeros(len(a)), a) == pytest.approx(0, abs=1e-12)
        assert auroc(c, a) == pytest.approx(1 - auroc(-c, a)) == pytest.approx(auroc(c**3 / 7, a))
        assert aupr(c, a, "wrong") == pytest.approx(aupr(-c, 1 - a))
        assert aupr(np.zeros(len(a)), a) == pytest.approx(a.mean())


@settings(max_examples=30, deadline=None)
@given(answers(), st.sampled_from([0.05, 0.1, 0.3, 0.5]), st.sampled_from(["lac", "aps"]))
def test_conformal_sets_hold_the_gold_choice_on_their_own_split_and_grow_with_the_demand(
    of: Answers, alpha: float, kind: Any
) -> None:
    sets = ConformalSets.fit(of, alpha, kind)
    assert sets.measure(of)["coverage"] >= 1 - alpha - 1e-12
    assert not sets.sets(of)[~of.mask].any()
    narrower = ConformalSets.fit(of, min(alpha + 0.2, 0.9), kind)
    assert (sets.sets(of) >= narrower.sets(of)).all()
    if kind == "aps":
        held = sets.sets(of)
        for i in range(of.n):  # a set holds every choice that is more probable than one that it holds
            inside, outside = of.probabilities[i][held[i]], of.probabilities[i][of.mask[i] & ~held[i]]
            assert not len(inside) or not len(outside) or inside.min() > outside.max() - 1e-12


@settings(max_examples=20, deadline=None)
@given(answers(), st.integers(0, 99))
def test_groups_are_drawn_whole(of: Answers, seed: int) -> None:
    groups = of.groups
    weights = np.concatenate(list(bootstrap_weights(of.n, 7, seed, groups)))
    for name in np.unique(groups):
        assert (np.ptp(weights[:, groups == name], axis=1) == 0).all()
    drawn = [sum(row[groups == name][0] for name in np.unique(groups)) for row in weights]
    assert drawn == [len(np.unique(groups))] * 7


@settings(max_examples=20, deadline=None)
@given(st.lists(CONFIDENCES, min_size=1, max_size=9), st.lists(CONFIDENCES, min_size=1, max_size=9))
def test_scores_of_shift_are_the_loop_over_pairs_and_thresholds(inside: list[float], outside: list[float]) -> None:
    wins = [(o > i) + (o == i) / 2 for o in outside for i in inside]
    assert ood_auroc(inside, outside) == pytest.approx(np.mean(wins))
    enough = [t for t in inside if np.mean([i <= t for i in inside]) >= 0.95 - 1e-12]
    assert fpr_at_recall(inside, outside) == pytest.approx(np.mean([o <= min(enough) for o in outside]))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=20))
def test_smooth_error_of_one_confidence_is_near_the_plain_gap(rights: list[bool]) -> None:
    a = np.array(rights, dtype=float)
    gap = abs(0.5 - a.mean())
    assume(gap > 0)
    assert smooth_ece(np.full(len(a), 0.5), a) == pytest.approx(gap, abs=2e-3)
