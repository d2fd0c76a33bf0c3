"""Telling shifted questions apart, and what a score adds to the confidence: against loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from uq4ct.metrics import Answers, Undefined
from uq4ct.metrics.added_value import added_value, confidence_logit
from uq4ct.metrics.detection import fpr_at_recall, ood_auroc, ood_auroc_draws

SIZES = [(1, 1), (3, 50), (40, 7)]


def scores(sizes: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw scores with many ties."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 6, sizes[0]) / 5, generator.integers(2, 9, sizes[1]) / 5


@pytest.mark.parametrize("sizes", SIZES)
def test_ood_auroc_counts_pairs_and_half_of_the_ties(sizes):
    inside, outside = scores(sizes)
    pairs = [1.0 if b > a else 0.5 if b == a else 0.0 for a in inside for b in outside]
    assert ood_auroc(inside, outside) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_ood_auroc_and_fpr_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    inside, outside = scores((200, 300), seed=1)
    both, label = np.concatenate([inside, outside]), np.repeat([0, 1], [200, 300])
    assert ood_auroc(inside, outside) == pytest.approx(metrics.roc_auc_score(label, both), abs=1e-12)
    fpr, tpr, _ = metrics.roc_curve(1 - label, -both, drop_intermediate=False)  # in-distribution is the positive
    assert fpr_at_recall(inside, outside) == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-12)


def test_a_draw_is_the_auroc_of_the_drawn_questions():
    inside, outside = scores((9, 12), seed=2)
    generator = np.random.default_rng(3)
    in_weights = generator.multinomial(9, np.full(9, 1 / 9), size=20).astype(float)
    weights = generator.multinomial(12, np.full(12, 1 / 12), size=20).astype(float)
    drawn = ood_auroc_draws(inside, outside, in_weights, weights)
    for b in range(20):
        some = np.repeat(inside, in_weights[b].astype(int)), np.repeat(outside, weights[b].astype(int))
        assert drawn[b] == pytest.approx(ood_auroc(*some), abs=1e-12)


def test_a_perfect_score_and_one_without_information_have_known_values():
    inside, outside = np.arange(100) / 1000, 0.5 + np.arange(50) / 1000
    assert (ood_auroc(inside, outside), fpr_at_recall(inside, outside)) == (1.0, 0.0)
    assert (ood_auroc(outside, inside), fpr_at_recall(outside, inside)) == (0.0, 1.0)
    assert (ood_auroc([0.3] * 4, [0.3] * 5), fpr_at_recall([0.3] * 4, [0.3] * 5)) == (0.5, 1.0)
    assert fpr_at_recall(inside, inside) == 0.95


def test_detection_without_questions_is_undefined_and_a_missing_score_an_error():
    with pytest.raises(Undefined, match="needs in-distribution and shifted questions"):
        ood_auroc([], [0.5])
    with pytest.raises(ValueError, match="none of them NaN"):
        ood_auroc([0.1, np.nan], [0.5])
    with pytest.raises(ValueError, match="recall lies in"):
        fpr_at_recall([0.1], [0.5], recall=0.0)


# ---- what a score adds to the confidence


def planted(strength: float, n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    known, score = generator.normal(0.5, 1.5, n), generator.beta(2, 5, n)
    odds = 0.8 * known + strength * (score - 2 / 7)
    return known, score, (generator.random(n) < 1 / (1 + np.exp(-odds))).astype(float)


@pytest.mark.parametrize("strength", [0.0, 4.0])
def test_the_likelihood_ratio_is_that_of_scikit_learns_regressions(strength):
    linear = pytest.importorskip("sklearn.linear_model")
    known, score, correct = planted(strength)

    def likelihood(*columns: np.ndarray) -> tuple[float, float]:
        matrix = np.stack(columns, axis=1)
        fitted = linear.LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(matrix, correct)
        p = fitted.predict_proba(matrix)[:, 1]
        return float(np.log(np.where(correct == 1, p, 1 - p)).sum()), float(fitted.coef_[0, -1])

    (without, _), (fitted, coefficient) = likelihood(known), likelihood(known, score)
    found = added_value(known, score, correct)
    assert found.lr_statistic == pytest.approx(2 * (fitted - without), abs=1e-5)
    assert found.coefficient == pytest.approx(coefficient * score.std(), abs=1e-4)
    chi2 = pytest.importorskip("scipy.stats").chi2
    assert found.p == pytest.approx(chi2.sf(found.lr_statistic, 1), rel=1e-9)


def test_a_score_that_knows_more_is_found_and_a_shuffled_one_is_not():
    known, score, correct = planted(6.0)
    assert added_value(known, score, correct).p < 1e-4
    generator = np.random.default_rng(1)
    shuffled = [added_value(known, generator.permutation(score), correct).p for _ in range(200)]
    assert 0.01 <= np.mean(np.array(shuffled) < 0.05) <= 0.1


@pytest.mark.parametrize(
    ("known", "score", "correct", "reason"),
    [
        ([0.0, 1.0, 2.0], [1.0, 2.0, 0.0], [1, 1, 1], "all 3 are alike"),
        ([0.0, 1.0, 2.0], [1.0, 1.0, 1.0], [1, 0, 1], "the same for every answer"),
        ([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 7.0], [1, 0, 1, 0], "a linear function"),
        ([0.0, 1.0, 0.0, 1.0], [1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1], "part right from wrong"),
        ([np.inf, 1.0, 2.0], [1.0, 2.0, 0.0], [1, 0, 1], "infinite or missing"),
    ],
)
def test_what_cannot_be_fitted_says_why(known, score, correct, reason):
    with pytest.raises(Undefined, match=reason):
        added_value(np.array(known), np.array(score), np.array(correct))


def test_a_constant_confidence_leaves_the_score_alone():
    score, correct = np.repeat([0.0, 1.0], 4), np.array([1, 0, 0, 0, 1, 1, 1, 0])
    assert added_value(np.zeros(8), score, correct).lr_statistic == pytest.approx(
        2 * (8 * (0.75 * np.log(0.75) + 0.25 * np.log(0.25)) - 8 * np.log(0.5)), abs=1e-9
    )


def test_the_logit_of_a_confidence_that_rounds_to_one_is_finite():
    logits = np.array([[60.0, 0.0, 0.0], [2.0, 1.0, -np.inf]])
    log_probs = logits - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    log_probs -= logits.max(axis=1, keepdims=True)
    mask = np.isfinite(logits)
    answers = Answers(np.where(mask, np.exp(log_probs), 0.0), log_probs, mask, np.array([0, 1]))
    assert confidence_logit(answers) == pytest.approx([60 - np.log(2), 1.0], abs=1e-9)
    with pytest.raises(Undefined, match="a confidence of exactly 1"):
        confidence_logit(Answers.of([[1.0, 0.0]], answer=[0]))
