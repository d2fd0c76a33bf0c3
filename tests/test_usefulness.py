"""Tests of a score: what it adds to the confidence, against scikit-learn, made worlds and explicit formulas; groups."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from uq4ct.metrics import METRICS, Answers, Settings, Undefined, summarize
from uq4ct.metrics.added_value import confidence_logit
from uq4ct.metrics.intervals import bootstrap_weights, resampled_groups
from uq4ct.metrics.measuring import measure
from uq4ct.metrics.paired import standard_error
from uq4ct.metrics.usefulness import incremental_value, partial_correlation, score_tests, shuffle_control

SETTINGS = Settings(resamples=200)


def world(n: int, seed: int, helpful: float) -> tuple[Answers, np.ndarray]:
    """Answers whose correctness depends on the confidence and, by ``helpful``, on a score of its own."""
    generator = np.random.default_rng(seed)
    c = generator.uniform(0.55, 0.95, n)
    score = generator.normal(size=n)
    right = generator.random(n) < 1 / (1 + np.exp(-(np.log(c / (1 - c)) + helpful * score)))
    return Answers.of(np.stack([c, 1 - c], axis=1), np.where(right, 0, 1)), score


def test_clustered_p_value_is_that_of_a_sandwich_written_out() -> None:
    answers, score = world(400, 0, 0.3)
    groups = np.arange(400) // 8
    of = Answers.of(answers.probabilities, answers.answer, groups=groups)
    columns = np.stack([confidence_logit(answers), (score - score.mean()) / score.std()], axis=1)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(columns, answers.correct)
    p, design = theirs.predict_proba(columns)[:, 1], np.column_stack([np.ones(400), columns])
    information = sum(q * (1 - q) * np.outer(row, row) for q, row in zip(p, design, strict=True))
    meat = np.zeros((3, 3))
    for name in range(50):
        inside = groups == name
        gradient = ((answers.correct - p)[inside, None] * design[inside]).sum(axis=0)
        meat += np.outer(gradient, gradient) * 50 / 49
    covariance = np.linalg.inv(information) @ meat @ np.linalg.inv(information)
    expected = 2 * stats.norm.sf(abs(theirs.coef_[0, 1]) / np.sqrt(covariance[2, 2]))
    found = incremental_value(of, score)
    assert found["clustered_p_value"] == pytest.approx(expected, rel=1e-3)
    assert found["coefficient"] == pytest.approx(theirs.coef_[0, 1], abs=1e-4)
    assert incremental_value(answers, score)["clustered_p_value"] is None


def test_a_score_that_knows_more_is_found_and_one_that_copies_the_confidence_is_not() -> None:
    answers, score = world(1000, 1, 0.6)
    found = incremental_value(answers, score)
    assert found["p_value"] < 1e-6
    assert found["p_value"] == pytest.approx(stats.chi2.sf(found["likelihood_ratio"], 1), rel=1e-9)
    assert found["coefficient"] == pytest.approx(0.6, abs=0.2)
    assert found["nll_gain"] == pytest.approx(found["likelihood_ratio"] / 2000)
    copy = incremental_value(answers, confidence_logit(answers) + np.random.default_rng(0).normal(size=1000) * 0.1)
    assert copy["p_value"] > 0.01


def test_a_useless_score_is_called_useful_in_five_per_cent_of_worlds() -> None:
    small = [incremental_value(*world(300, seed, 0.0))["p_value"] < 0.05 for seed in range(200)]
    assert 2 <= sum(small) <= 20  # binomial(200, 0.05): outside in 0.2 % of tries


def test_shuffled_scores_show_nothing() -> None:
    answers, score = world(800, 3, 0.8)
    control = shuffle_control(answers, score)
    mean, low, high = control["error_auroc"]
    assert mean == pytest.approx(0.5, abs=0.01)
    assert low < 0.5 < high < score_tests(answers, score, SETTINGS)["error_auroc"]["value"]
    assert control["p_value"] == pytest.approx(1 / 101)
    assert control["likelihood_ratio"] == pytest.approx(1.0, abs=0.6)  # the mean of a chi-square with one degree


def test_score_tests_agree_with_the_summary_and_keep_the_interval() -> None:
    answers, score = world(300, 4, 0.5)
    feu = stats.norm.cdf(score)
    with_feu = Answers.of(answers.probabilities, answers.answer, feu=feu)
    result = summarize(with_feu, resamples=200)
    tests = result["feu_tests"]
    assert tests["error_auroc"]["value"] == result["feu_auroc"]
    assert tests["error_auroc"]["interval"] == result["intervals"]["feu_auroc"]
    assert tests["error_auroc"]["confidence"] == result["auroc"]
    assert tests["calibration"]["ece"] == pytest.approx(result["feu_ece"])
    assert tests["incremental"]["likelihood_ratio"] == pytest.approx(
        incremental_value(answers, feu)["likelihood_ratio"]
    )
    alone = score_tests(with_feu, feu, SETTINGS)["error_auroc"]
    assert alone["interval"] == pytest.approx(result["intervals"]["feu_auroc"], abs=0.02)
    json.dumps(result, allow_nan=False)


def test_what_cannot_be_tested_is_null_with_its_reason() -> None:
    right = Answers.of([[0.9, 0.1], [0.8, 0.2]], [0, 0], feu=np.array([0.5, 0.6]))
    tests = summarize(right, resamples=100)["feu_tests"]
    assert (tests["error_auroc"], tests["incremental"], tests["shuffled"]) == (None, None, None)
    assert tests["calibration"]["ece"] == pytest.approx(0.45)
    assert "all 2 are alike" in tests["reasons"]["incremental"]

    constant = score_tests(world(50, 0, 0)[0], np.full(50, 0.3), SETTINGS)
    assert constant["error_auroc"]["value"] == 0.5
    assert constant["reasons"]["shuffled"] == "the score is the same for all answers"

    certain = Answers.of([[1.0, 0.0], [0.8, 0.2], [0.7, 0.3]], [0, 0, 1])
    with pytest.raises(Undefined, match="1 of 3 answers have a confidence of exactly 1"):
        incremental_value(certain, np.array([0.1, 0.3, 0.2]))

    parted = Answers.of([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]], [0, 0, 1, 1])
    with pytest.raises(Undefined, match="part right from wrong"):
        incremental_value(parted, np.array([0.1, 0.3, 0.2, 0.2]))

    assert summarize(parted, resamples=100)["feu_tests"] is None


def test_logits_tell_confidences_apart_that_round_to_one() -> None:
    rows = [{"probabilities": {"A": 1.0, "B": 0.0}, "logits": [40.0 + k, 0.0], "label": "AB"[k % 2]} for k in range(6)]
    odds = confidence_logit(Answers.of_rows(rows))
    assert odds == pytest.approx(np.arange(40.0, 46.0))


def test_partial_correlation_is_that_of_residuals_of_ranks() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(2, 6, size=300)
    mask = np.arange(5) < sizes[:, None]
    p = np.where(mask, generator.random((300, 5)), 0)
    p /= p.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        answers = Answers(p, np.log(p), mask, generator.integers(0, sizes), length=generator.integers(10, 90, 300) * 1.0)
    score = -sizes + generator.normal(size=300) + answers.correct

    def residual(column: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
        design = np.column_stack([np.ones(300), *others])
        return column - design @ np.linalg.lstsq(design, column, rcond=None)[0]

    columns = {"correct": answers.correct, "length": answers.length, "choices": sizes}
    ranks = {name: stats.rankdata(column) for name, column in columns.items()}
    found = partial_correlation(answers, score)
    for name in columns:
        others = [ranks[other] for other in columns if other != name]
        pair = residual(stats.rankdata(score), others), residual(ranks[name], others)
        assert found[name] == pytest.approx(np.corrcoef(*pair)[0, 1], abs=1e-9), name
    assert found["choices"] < -0.5 < 0.1 < found["correct"]


@pytest.mark.parametrize("n", [3, 4, 5])
def test_partial_correlations_of_a_few_answers_are_correlations_or_undefined(n: int) -> None:
    generator, defined = np.random.default_rng(n), 0
    for _ in range(300):
        sizes = generator.integers(2, 6, size=n)
        mask = np.arange(5) < sizes[:, None]
        p = mask / sizes[:, None]
        length = generator.integers(10, 90, n) * 1.0
        answers = Answers(p, np.where(mask, 0.0, -np.inf), mask, generator.integers(0, sizes), length=length)
        try:
            found = partial_correlation(answers, generator.random(n))
        except Undefined:  # one column follows from the others
            continue
        assert all(value is None or abs(value) <= 1 for value in found.values())
        defined += 1
    assert 0 < defined < 300


# -------------------------------------------------------------------------------------------------------------- groups


def grouped(seed: int, groups: int = 40, size: int = 10) -> Answers:
    """Answers whose correctness is nearly the same within a group."""
    generator = np.random.default_rng(seed)
    rate = np.repeat(np.where(generator.random(groups) < 0.5, 0.9, 0.3), size)
    right = generator.random(len(rate)) < rate
    names = np.repeat(np.arange(groups), size)
    return Answers.of(np.tile([0.6, 0.4], (len(rate), 1)), np.where(right, 0, 1), groups=names)


def test_grouped_answers_have_wider_intervals_and_say_so() -> None:
    answers = grouped(0)
    single = Answers.of(answers.probabilities, answers.answer)
    clustered, plain = summarize(answers, resamples=500), summarize(single, resamples=500)
    assert (clustered["settings"]["resampling"], clustered["settings"]["groups"]) == ("groups", 40)
    assert (plain["settings"]["resampling"], plain["settings"]["groups"]) == ("items", None)
    for name in ("accuracy", "brier", "signed_gap"):
        wide, narrow = (np.diff(result["intervals"][name])[0] for result in (clustered, plain))
        assert wide > 1.7 * narrow, name
    expected = standard_error(answers.correct, answers.groups)
    assert clustered["standard_errors"]["accuracy"] == pytest.approx(expected, rel=0.1)
    assert plain["standard_errors"]["accuracy"] == pytest.approx(standard_error(single.correct), rel=0.1)
    assert clustered["answered"]["interval"] == pytest.approx(clustered["intervals"]["accuracy"])


def test_group_intervals_hold_the_truth_where_item_intervals_do_not() -> None:
    """The mean accuracy over groups is 0.6; 60 sets of 40 groups; 95 % intervals miss at most 9 (chance 0.1 %)."""
    missed = {"groups": 0, "items": 0}
    for seed in range(60):
        answers = grouped(seed)
        for kind in missed:
            of = answers if kind == "groups" else Answers.of(answers.probabilities, answers.answer)
            low, high = measure(of, SETTINGS, METRICS[:1]).intervals["accuracy"]
            missed[kind] += not low <= 0.6 <= high
    assert missed["groups"] <= 9 < 15 < missed["items"], missed


def test_a_few_groups_are_not_resampled() -> None:
    answers = grouped(0, groups=9)
    assert resampled_groups(answers.groups) is None
    assert summarize(answers, resamples=100)["settings"]["resampling"] == "items"
    assert summarize(grouped(0, groups=10), resamples=100)["settings"]["resampling"] == "groups"


def test_groups_are_read_from_rows_and_a_row_without_one_is_alone() -> None:
    row = {"probabilities": {"A": 0.6, "B": 0.4}, "label": "A"}
    rows = [{**row, "group": name} for name in ("x", "x", "y", None, None)]
    groups = Answers.of_rows(rows).groups
    assert len(set(groups.tolist())) == 4
    assert groups[0] == groups[1]
    assert Answers.of_rows([{**row, "group": name} for name in "abc"]).groups is None, "single items are no groups"


def test_all_right_groups_have_the_interval_of_as_many_items() -> None:
    answers = Answers.of(np.tile([0.6, 0.4], (200, 1)), np.zeros(200, int), groups=np.repeat(np.arange(20), 10))
    low, high = summarize(answers, resamples=100)["intervals"]["accuracy"]
    assert (low, high) == (pytest.approx(0.8389, abs=1e-4), 1.0)  # Wilson, 20 of 20


def test_weights_of_groups_and_clustered_error_agree_with_their_formulas() -> None:
    groups = np.array([3, 3, 7, 9, 9, 9])
    weights = np.concatenate(list(bootstrap_weights(6, 4000, 0, groups, at_once=60)))
    assert weights.mean(axis=0) == pytest.approx(np.ones(6), abs=0.06)
    values = np.array([1.0, 2.0, 4.0, 0.0, 0.0, 3.0])
    sums = [sum(v - 10 / 6 for v, g in zip(values, groups, strict=True) if g == name) for name in (3, 7, 9)]
    assert standard_error(values, groups) == pytest.approx(math.sqrt(sum(s * s for s in sums)) / 6)
