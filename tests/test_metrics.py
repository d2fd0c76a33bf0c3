"""Metrics against stored values, an explicit loop, and scikit-learn; what is undefined is null with a reason."""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from uq4ct.errors import UserError
from uq4ct.metrics import METRICS, Answers, Metric, Settings, Undefined, list_metrics, proper_scores, summarize
from uq4ct.metrics.calibration_error import bin_index, ece, signed_gap
from uq4ct.metrics.intervals import bootstrap_weights, corrected, percentile, pivotal, wilson
from uq4ct.metrics.null_band import bin_table, ece_null
from uq4ct.metrics.sampling import decompose
from uq4ct.metrics.selective import accuracy_at_coverage, augrc, aurc, auroc, risk_coverage
from uq4ct.metrics.smooth_error import smooth_ece

ORACLES = json.loads((Path(__file__).parent / "data" / "calibration_oracles.json").read_text())
VECTORS = ORACLES["vectors"]


def softmax_answers(fixture: str, temperature: float = 1.0) -> Answers:
    logits = np.array(ORACLES[fixture]["logits"]) / temperature
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = np.array(ORACLES[fixture]["labels"])
    return Answers(np.exp(log_probs), log_probs, np.ones(logits.shape, bool), labels)


# ------------------------------------------------------------------------------------------------------- stored values


@pytest.mark.parametrize("name", VECTORS)
def test_ten_vectors_have_their_known_calibration_errors(name: str) -> None:
    confidence, correct = np.array(VECTORS[name]["confidence"]), np.array(VECTORS[name]["correct"])
    expected = VECTORS[name]["expected"]
    assert ece(confidence, correct) == pytest.approx(expected["ece"], abs=1e-9)
    assert ece(confidence, correct, bins=10) == pytest.approx(expected["ece10"], abs=1e-9)
    assert signed_gap(confidence, correct) == pytest.approx(expected["signed_gap"], abs=1e-9)
    if expected["auroc"] is None:
        with pytest.raises(Undefined, match="all 10 are right"):
            auroc(confidence, correct)
    else:
        assert auroc(confidence, correct) == pytest.approx(expected["auroc"], abs=1e-8)


@pytest.mark.parametrize("name", [name for name in VECTORS if name not in ("D_ones", "J_zero")])
def test_smooth_error_is_the_authors_where_no_confidence_is_exactly_wrong_at_the_border(name: str) -> None:
    vector = VECTORS[name]
    assert smooth_ece(vector["confidence"], vector["correct"]) == pytest.approx(vector["expected"]["smece"], abs=1e-3)


@pytest.mark.parametrize(("name", "by_definition"), [("D_ones", 0.254331), ("J_zero", 0.2)])
def test_smooth_error_keeps_the_whole_weight_of_confidences_at_0_and_1(name: str, by_definition: float) -> None:
    """relplot 1.0.3 counts an item at exactly 0 or 1 half (D .175161, J .138529), at .999 whole: a known difference.

    The expected values come from integrating the reflected kernel of the definition directly.
    """
    confidence, correct = np.array(VECTORS[name]["confidence"]), np.array(VECTORS[name]["correct"])
    assert smooth_ece(confidence, correct) == pytest.approx(by_definition, abs=1e-3)
    assert smooth_ece(reflected(confidence), correct) == pytest.approx(by_definition, abs=1e-3)
    assert by_integration(confidence, correct) == pytest.approx(by_definition, abs=1e-5)


def reflected(confidence: np.ndarray) -> np.ndarray:
    return np.clip(confidence, 1e-6, 1 - 1e-6)


def by_integration(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Solve the fixed point on a fine grid with the images of every item written out."""
    t, low, high = (np.arange(4000) + 0.5) / 4000, 0.0, 1.0
    for _ in range(25):
        sigma = (low + high) / 2
        total = np.zeros_like(t)
        for c, a in zip(confidence, correct, strict=True):
            for image in [c + 2 * k for k in range(-3, 4)] + [2 * k - c for k in range(-3, 4)]:
                total += (a - c) * np.exp(-0.5 * ((t - image) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        low, high = (sigma, high) if np.abs(total / len(confidence)).mean() > sigma else (low, sigma)
    return (low + high) / 2


def test_200_made_answers_have_their_known_values() -> None:
    answers, expected = softmax_answers("F200"), ORACLES["F200"]["expected"]
    result = summarize(answers, resamples=50)
    known = {"accuracy": "acc", "nll": "nll", "brier": "brier", "ece": "ece", "auroc": "auroc", "signed_gap": "gap"}
    for ours, theirs in known.items():
        assert result[ours] == pytest.approx(expected[theirs], abs=1e-9), ours
    assert result["aurc"] == pytest.approx(expected["aurc"], abs=1e-6)
    assert result["augrc"] == pytest.approx(expected["augrc"], abs=1e-6)
    assert result["smooth_ece"] == pytest.approx(expected["smece"], abs=1e-3)
    for bins in (5, 10, 20, 30):
        assert ece(answers.confidence, answers.correct, bins) == pytest.approx(expected[f"ece{bins}"], abs=1e-6)
    for coverage, accuracy in expected["accuracy_at"].items():
        assert result["accuracy_at_coverage"][coverage] == pytest.approx(accuracy, abs=1e-6)


def test_300_overconfident_answers_have_their_known_values() -> None:
    result, expected = summarize(softmax_answers("F300"), resamples=50), ORACLES["F300"]["expected"]
    known = {"accuracy": "acc", "nll": "nll", "brier": "brier", "ece": "ece", "auroc": "auroc", "signed_gap": "gap"}
    for ours, theirs in known.items():
        assert result[ours] == pytest.approx(expected[theirs], abs=1e-9), ours
    assert result["aurc"] == pytest.approx(expected["aurc"], abs=1e-6)
    assert result["augrc"] == pytest.approx(expected["augrc"], abs=1e-6)
    assert result["smooth_ece"] == pytest.approx(expected["smece"], abs=1e-3)


def test_null_band_tells_a_miscalibrated_model_from_a_calibrated_one() -> None:
    raw, scaled = softmax_answers("F300"), softmax_answers("F300", ORACLES["F300"]["T_insample"])
    for answers, expected in ((raw, ORACLES["F300"]["expected"]), (scaled, ORACLES["F300"]["expected_at_T"])):
        null = ece_null(answers.confidence, answers.correct, draws=4000, seed=1)
        assert null["mean"] == pytest.approx(expected["null_mean"], abs=6e-4)
        assert null["p95"] == pytest.approx(expected["null_p95"], abs=1.5e-3)
    assert ece_null(raw.confidence, raw.correct, draws=4000)["p_value"] < 0.001
    assert ece_null(scaled.confidence, scaled.correct, draws=4000)["p_value"] == pytest.approx(0.62, abs=0.04)


def test_both_directions_are_claimed_only_where_confidence_errs_in_both() -> None:
    few = summarize(Answers.of(np.full((8, 50), 0.02), answer=[0, 0, 1, 1, 1, 1, 1, 1]), resamples=200)
    assert few["intervals"]["signed_gap"][0] < 0 < few["intervals"]["signed_gap"][1]
    assert (few["overconfidence"], few["underconfidence"]) == (0.0, pytest.approx(0.23))
    assert few["verdict"] == "miscalibrated, direction not established"
    rows = np.repeat([[0.95, 0.05], [0.55, 0.45]], 100, axis=0)
    both = summarize(Answers.of(rows, answer=[0] * 60 + [1] * 40 + [0] * 90 + [1] * 10), resamples=200)
    assert both["signed_gap"] == pytest.approx(0.0)
    assert both["verdict"] == "miscalibrated in both directions"


# -------------------------------------------------------------------------------------------------------- conventions


def test_bins_are_right_closed_and_the_ends_belong_to_the_first_and_last() -> None:
    assert bin_index(np.array([0.0, 1 / 15, np.nextafter(1 / 15, 1), 1.0]), 15).tolist() == [0, 0, 1, 14]
    for bins in range(1, 41):
        edges = np.arange(1, bins + 1) / bins
        assert bin_index(edges, bins).tolist() == list(range(bins)), f"k/{bins} lies in the bin that it closes"


def test_a_confidence_of_one_is_not_a_bin_of_its_own() -> None:
    assert ece([0.95, 1.0], [1, 0]) == pytest.approx(0.475)


def test_order_of_the_answers_changes_nothing() -> None:
    answers = softmax_answers("F200")
    confidence, correct = np.round(answers.confidence, 1), answers.correct  # many ties
    shuffled = np.random.default_rng(0).permutation(len(correct))
    for metric in (ece, smooth_ece, auroc, aurc, augrc):
        assert metric(confidence[shuffled], correct[shuffled]) == pytest.approx(metric(confidence, correct), abs=1e-12)


def test_logits_are_refused_instead_of_softmaxed() -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 2.5; if these are logits"):
        ece([2.5, 0.1], [1, 0])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got nan"):
        ece([np.nan, 0.1], [1, 0])
    with pytest.raises(ValueError, match="one correctness per confidence"):
        ece([], [])


def test_a_gold_answer_of_probability_zero_makes_nll_null_and_is_not_clipped() -> None:
    result = summarize(Answers.of([[1.0, 0.0], [0.5, 0.5]], answer=[1, 0]))
    assert result["nll"] is None
    assert result["reasons"]["nll"] == "infinite: 1 of 2 gold answers have probability 0"
    assert result["brier"] == pytest.approx((2.0 + 0.5) / 2)


def test_what_is_undefined_is_null_with_a_reason_and_has_no_interval() -> None:
    result = summarize(Answers.of([[0.9, 0.1], [0.8, 0.2]], answer=[1, 1]))
    assert result["auroc"] is None
    assert "all 2 are wrong" in result["reasons"]["auroc"]
    for name in ("feu", "feu_auroc", "feu_ece", "letter_mass", "truth_gap", "excess_log_loss"):
        assert result[name] is None
        assert result["reasons"][name]
    assert set(result["intervals"]).isdisjoint(result["reasons"])
    nameable = {metric.name for metric in METRICS} | {"feu_tests", "epistemic_tests"}
    assert set(result["reasons"]) == {name for name in nameable if result[name] is None}
    json.dumps(result, allow_nan=False)


def test_rows_may_have_different_numbers_of_choices() -> None:
    rows = [
        {
            "probabilities": {"A": 0.5, "B": 0.3, "C": 0.2},
            "label": "A",
            "logits": [math.log(5), math.log(3), math.log(2)],
        },
        {"probabilities": {"yes": 0.25, "no": 0.75}, "label": "yes"},
        {"probabilities": {"yes": 0.25, "no": 0.75}, "label": None},
    ]
    answers = Answers.of_rows(rows)
    assert answers.mask.tolist() == [[True, True, True], [True, True, False]]
    result = summarize(answers)
    assert result["nll"] == pytest.approx(-(math.log(0.5) + math.log(0.25)) / 2)
    assert result["brier"] == pytest.approx(((0.25 + 0.09 + 0.04) + (0.5625 + 0.5625)) / 2)
    assert result["chance"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert result["predicted_letters"] == {"A": 1, "B": 1, "C": 0}
    assert (result["n"], result["unlabelled"]) == (2, 1)


def test_nll_from_logits_outlives_probabilities_that_round_to_zero() -> None:
    result = summarize([{"probabilities": {"A": 1.0, "B": 0.0}, "logits": [1000.0, 0.0], "label": "B"}])
    assert result["nll"] == pytest.approx(1000.0)


def test_predictions_without_any_label_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match="none of the 1 predictions has a label"):
        summarize([{"probabilities": {"A": 0.5, "B": 0.5}, "label": None}])


def test_a_forecaster_that_tells_the_truth_has_no_gap_and_no_excess_loss() -> None:
    truth = np.array([[0.7, 0.3, 0.0], [0.2, 0.8, 0.0]])
    answers = Answers.of(truth, answer=[0, 1], true_probabilities=truth)
    assert proper_scores.truth_gap(answers).tolist() == [0.0, 0.0]
    assert proper_scores.excess_log_loss(answers) == pytest.approx([0.0, 0.0])
    wrong = Answers.of([[0.5, 0.5, 0.0]], answer=[0], true_probabilities=np.array([[1.0, 0.0, 0.0]]))
    assert proper_scores.excess_log_loss(wrong) == pytest.approx([math.log(2)])
    assert proper_scores.truth_gap(wrong) == pytest.approx([0.5])


def test_strata_have_their_own_rows() -> None:
    answers = Answers.of(
        [[0.9, 0.1], [0.6, 0.4], [0.6, 0.4]],
        answer=[0, 1, 0],
        strata=("often", "never", "never"),
        feu=np.array([0.8, 0.3, 0.5]),
        true_probabilities=np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]),
    )
    never = summarize(answers)["strata"]["never"]
    assert (never["n"], never["accuracy"], never["feu"]) == (2, 0.5, pytest.approx(0.4))
    assert (never["truth"], never["truth_gap"]) == (pytest.approx(0.5), pytest.approx(0.1))


def test_bin_table_adds_up() -> None:
    answers = softmax_answers("F200")
    table = bin_table(answers.confidence, answers.correct)
    assert sum(row["n"] for row in table) == 200
    full = [row for row in table if row["n"]]
    assert sum(row["n"] / 200 * abs(row["confidence"] - row["accuracy"]) for row in full) == pytest.approx(0.0758177)
    assert all(row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] for row in full)
    assert all(row["null_low"] <= row["confidence"] + 1 / row["n"] for row in full)
    assert all(row["confidence"] is None for row in table if not row["n"])


def test_every_metric_is_listed_once_with_a_direction() -> None:
    listed = list_metrics()
    assert len({row["name"] for row in listed}) == len(listed) >= 15
    assert all(row["summary"] and row["better"] in ("higher", "lower", "zero", "none") for row in listed)


# ------------------------------------------------------------------------------------------------------- explicit loops

CONFIDENCES = st.integers(0, 60).map(lambda k: k / 60)  # hits every border of 2, 3, 4, 5, 6, 10, 12, 15, 20, 30 bins
PAIRS = st.lists(st.tuples(CONFIDENCES, st.booleans()), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.sampled_from([1, 2, 3, 5, 10, 15, 20]))
def test_ece_is_the_loop_over_bins(pairs: list[tuple[float, bool]], bins: int) -> None:
    total = 0.0
    for b in range(bins):
        inside = [(c, a) for c, a in pairs if (b / bins < c <= (b + 1) / bins) or (b == 0 and c == 0)]
        if inside:
            accuracy = sum(a for _, a in inside) / len(inside)
            confidence = sum(c for c, _ in inside) / len(inside)
            total += len(inside) / len(pairs) * abs(accuracy - confidence)
    confidence, correct = map(np.array, zip(*pairs, strict=True))
    assert ece(confidence, correct, bins) == pytest.approx(total, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_auroc_is_the_loop_over_pairs(pairs: list[tuple[float, bool]]) -> None:
    wins = [(c > d) + (c == d) / 2 for c, a in pairs for d, b in pairs if a and not b]
    confidence, correct = map(np.array, zip(*pairs, strict=True))
    if wins:
        assert auroc(confidence, correct) == pytest.approx(sum(wins) / len(wins), abs=1e-12)
    else:
        with pytest.raises(Undefined):
            auroc(confidence, correct)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=5))
def test_risk_coverage_is_the_mean_over_all_orders_of_ties(pairs: list[tuple[float, bool]]) -> None:
    orders = [
        order for order in itertools.permutations(pairs) if all(a[0] >= b[0] for a, b in itertools.pairwise(order))
    ]
    curves = [np.cumsum([1.0 - a for _, a in order]) for order in orders]
    k = np.arange(1, len(pairs) + 1)
    confidence, correct = map(np.array, zip(*pairs, strict=True))
    assert risk_coverage(confidence, correct)[1] == pytest.approx(np.mean([c / k for c in curves], axis=0))
    assert aurc(confidence, correct) == pytest.approx(np.mean([c / k for c in curves]))
    assert augrc(confidence, correct) == pytest.approx(np.mean([c / len(pairs) for c in curves]))


@settings(max_examples=30, deadline=None)
@given(PAIRS, st.integers(0, 1000))
def test_a_bootstrap_draw_is_the_metric_of_the_drawn_answers(pairs: list[tuple[float, bool]], seed: int) -> None:
    """For every metric, drawing items and drawing groups; only the smooth error's draws are on a coarser grid."""
    generator = np.random.default_rng(seed)
    confidence = np.array([c for c, _ in pairs])
    table = np.stack([np.maximum(confidence, 1 - confidence), np.minimum(confidence, 1 - confidence)], axis=1)
    samples = generator.dirichlet(np.ones(2), size=(len(pairs), 3))
    answers = Answers.of(
        table,
        np.array([0 if a else 1 for _, a in pairs]),
        feu=np.round(1 - confidence, 1),
        letter_mass=generator.random(len(pairs)),
        true_probabilities=table,
        entropies=decompose(samples),
        ginis=decompose(samples, "gini"),
        groups=generator.integers(3, size=len(pairs)),
    )
    for groups in (None, answers.groups):
        (weights,) = bootstrap_weights(answers.n, 1, seed, groups)
        drawn = answers.take(np.repeat(np.arange(answers.n), weights[0].astype(int)))
        for metric in METRICS:
            assert metric.draws is not None, metric.name
            if (value(metric, answers)) is not None:
                expected = value(metric, drawn)
                found = metric.draws(answers, Settings(), weights)[0]
                tolerance = 0.02 if metric.name == "smooth_ece" else 1e-9
                assert found == pytest.approx(math.nan if expected is None else expected, abs=tolerance, nan_ok=True), (
                    metric.name
                )


def value(metric: Metric, answers: Answers) -> float | None:
    try:
        return metric.value(answers, Settings())
    except Undefined:
        return None


@settings(max_examples=25, deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(2, 30), st.integers(2, 5)), elements=st.floats(-8, 8)), st.integers(0, 99)
)
def test_scores_are_those_of_scikit_learn(logits: np.ndarray, seed: int) -> None:
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    n, k = probabilities.shape
    answer = np.random.default_rng(seed).integers(k, size=n)
    answers = Answers.of(probabilities, answer)
    assert proper_scores.nll(answers).mean() == pytest.approx(
        log_loss(answer, probabilities, labels=range(k)), rel=1e-9
    )
    one_hot = np.eye(k)[answer]
    expected = sum(brier_score_loss(one_hot[:, c], probabilities[:, c], pos_label=1) for c in range(k))
    assert proper_scores.brier(answers).mean() == pytest.approx(expected, rel=1e-9)
    if 0 < answers.correct.sum() < n:
        assert auroc(answers.confidence, answers.correct) == pytest.approx(
            roc_auc_score(answers.correct, answers.confidence)
        )


# ---------------------------------------------------------------------------------------------------------- intervals


def test_wilson_interval_has_known_ends_and_stays_inside() -> None:
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson(10, 10)[1] == 1.0
    with pytest.raises(ValueError, match="got 1 of 0"):
        wilson(1, 0)


def test_pivotal_reflects_percentile() -> None:
    draws = np.random.default_rng(0).normal(0.1, 0.01, 1000)
    low, high = percentile(draws)
    assert pivotal(0.08, draws) == pytest.approx((0.16 - high, 0.16 - low))
    assert percentile(np.array([np.nan, np.nan])) is None


def test_corrected_interval_has_the_centre_of_the_draws_reflected_and_the_width_of_its_error() -> None:
    draws = np.random.default_rng(0).normal(0.1, 0.01, 1000)
    assert corrected(0.08, draws, 0.02) == pytest.approx(
        (0.16 - draws.mean() - 1.959964 * 0.02, 0.16 - draws.mean() + 1.959964 * 0.02)
    )
    assert corrected(0.01, draws, 0.02)[0] == 0.0
    assert corrected(0.01, np.array([np.nan]), 0.02) is None


def test_interval_of_ece_is_wider_than_the_pivotal_one_and_both_lose_the_bias() -> None:
    """Expected values by a loop over resamples; gaps of few answers turn over in resamples, so that those vary less."""
    answers = softmax_answers("F200")
    low, high = summarize(answers, resamples=400)["intervals"]["ece"]
    index, gap = bin_index(answers.confidence, 15), answers.confidence - answers.correct
    draws = []
    for row in np.concatenate(list(bootstrap_weights(200, 400, 0))):
        drawn = np.repeat(np.arange(200), row.astype(int))
        draws.append(ece(answers.confidence[drawn], answers.correct[drawn]))
    sign = {b: np.sign(gap[index == b].sum()) for b in set(index)}
    error = np.std([sign[b] * g for b, g in zip(index, gap, strict=True)], ddof=1) / math.sqrt(200)
    centre = 2 * ece(answers.confidence, answers.correct) - np.mean(draws)
    assert (low, high) == pytest.approx((max(0.0, centre - 1.959964 * error), centre + 1.959964 * error), abs=1e-9)
    narrow = pivotal(ece(answers.confidence, answers.correct), np.array(draws))
    assert high > narrow[1]


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """40 data sets of 400 answers; truth from 200,000. 95 % intervals may miss 7 of 40 (chance 0.2 %)."""
    generator = np.random.default_rng(4)

    def world(n: int) -> Answers:
        confidence = 0.5 + 0.5 * generator.beta(2, 1, n)
        right = generator.random(n) < 0.55 + 0.8 * (confidence - 0.55)  # overconfident
        table = np.stack([confidence, 1 - confidence], axis=1)
        return Answers.of(table, np.where(right, 0, 1))

    truth = summarize(world(200_000), resamples=2)
    missed = dict.fromkeys(("accuracy", "nll", "brier", "auroc", "ece", "signed_gap", "aurc"), 0)
    for _ in range(40):
        result = summarize(world(400), resamples=200)
        for name in missed:
            low, high = result["intervals"][name]
            missed[name] += not low <= truth[name] <= high
    assert max(missed.values()) <= 7, missed


def test_same_seed_same_result_and_blocks_change_nothing() -> None:
    answers = softmax_answers("F200")
    assert summarize(answers, resamples=100) == summarize(answers, resamples=100)
    whole = np.concatenate(list(bootstrap_weights(7, 20, seed=3)))
    parts = np.concatenate(list(bootstrap_weights(7, 20, seed=3, at_once=21)))
    assert (whole == parts).all()


def test_summary_of_2000_answers_takes_less_than_two_seconds() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(2000, 4)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    answers = Answers.of(
        probabilities,
        generator.integers(4, size=2000),
        feu=generator.random(2000),
        letter_mass=generator.random(2000),
        true_probabilities=probabilities,
    )
    started = time.process_time()
    summarize(answers, resamples=1000)
    assert time.process_time() - started < 2


def test_accuracy_at_coverage_takes_the_surest() -> None:
    assert accuracy_at_coverage(np.arange(10) / 10, np.arange(10) >= 3, 0.7) == 1.0
    with pytest.raises(ValueError, match="coverage lies in"):
        accuracy_at_coverage([0.5], [1], 0)


def test_answers_that_do_not_fit_are_refused() -> Any:
    with pytest.raises(ValueError, match="no labelled answers"):
        Answers.of(np.zeros((0, 2)), [])
    with pytest.raises(ValueError, match="index of a choice"):
        Answers.of([[0.5, 0.5]], [2])
