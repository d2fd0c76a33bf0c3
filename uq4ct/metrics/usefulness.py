"""Does a score say anything about single answers that the confidence does not say already? FEU above all.

A score here is read as a confidence, large means certain; pass the negative of an uncertainty. A high AUROC alone shows
little: a score that copies the confidence has it too. So each score meets the confidence, its own shuffled copy, and
the plain facts of a question that it might merely follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from uq4ct.metrics.added_value import added_value, confidence_logit, fit_logistic
from uq4ct.metrics.answers import Answers, Settings, Undefined
from uq4ct.metrics.calibration_error import ece, signed_gap
from uq4ct.metrics.intervals import bootstrap_weights, percentile, resampled_groups
from uq4ct.metrics.null_band import ece_null
from uq4ct.metrics.ranking import RankedDraws, Ranking
from uq4ct.metrics.selective import auroc, auroc_draws
from uq4ct.metrics.smooth_error import smooth_ece

PERMUTATIONS = 100
SINGULAR = 1e10  # condition from which rounding alone tells a matrix from one without an inverse


def score_tests(
    answers: Answers, score: np.ndarray, settings: Settings, interval: list[float] | None = None
) -> dict[str, Any]:
    """Return every test of a score (n,); what has no value is null and has its reason in ``reasons``.

    ``error_auroc``: chance that a wrong answer has the lower score, with its interval (``interval`` where it is known
    already), beside that of the confidence. ``incremental``: see ``incremental_value``. ``calibration``: the score read
    as a confidence, where all lie in [0, 1]. ``shuffled``: see ``shuffle_control``. ``partial_correlation``: see there.

    >>> tests = score_tests(Answers.of([[0.9, 0.1]] * 3, [0, 0, 1]), np.array([0.9, 0.8, 0.1]), Settings(resamples=9))
    >>> tests["error_auroc"]["value"], tests["error_auroc"]["confidence"], tests["incremental"]
    (1.0, 0.5, None)
    """
    score = np.asarray(score, dtype=np.float64)
    if score.shape != answers.correct.shape:
        raise ValueError(f"expected one score per answer, got {score.shape} for {answers.n}")
    tests: dict[str, Callable[[], Any]] = {
        "error_auroc": lambda: _error_auroc(answers, score, settings, interval),
        "incremental": lambda: incremental_value(answers, score),
        "calibration": lambda: _calibration(answers, score, settings),
        "shuffled": lambda: shuffle_control(answers, score, settings.seed),
        "partial_correlation": lambda: partial_correlation(answers, score),
    }
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name, test in tests.items():
        try:
            found[name] = test()
        except Undefined as reason:
            found[name], reasons[name] = None, str(reason)
    return found | {"reasons": reasons}


def incremental_value(answers: Answers, score: np.ndarray) -> dict[str, float | None]:
    """Return what the score adds to the confidence in a logistic regression, correct ~ logit(confidence) + score.

    ``likelihood_ratio`` is twice the gain in log-likelihood, ``p_value`` that of a chi-square with one degree of
    freedom, which takes answers for independent; ``clustered_p_value`` is that of a Wald test with clustered errors,
    null without groups. ``coefficient`` is per standard deviation of the score, ``nll_gain`` the gain per answer.
    Raises Undefined where a confidence is exactly 1 (its logit is infinite), and with ``added_value``.

    >>> a = Answers.of([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.9, 0.1]], answer=[0, 1, 0, 1])
    >>> round(incremental_value(a, np.array([0.3, 0.4, 0.2, 0.1]))["likelihood_ratio"], 3)
    0.012
    """
    odds = confidence_logit(answers)
    found = added_value(odds, score, answers.correct)
    return {
        "coefficient": found.coefficient,
        "nll_gain": found.lr_statistic / 2 / answers.n,
        "likelihood_ratio": found.lr_statistic,
        "p_value": found.p,
        "clustered_p_value": _clustered_p_value(answers, odds, score),
    }


def _clustered_p_value(answers: Answers, odds: np.ndarray, score: np.ndarray) -> float | None:
    """Return the p-value of the score's coefficient with the sandwich covariance over groups, factor G / (G - 1)."""
    groups = resampled_groups(answers.groups)
    if groups is None or np.ptp(odds) == 0:
        return None
    columns = np.column_stack([np.ones(answers.n), odds, _standardised(score)])
    coefficients = fit_logistic(columns, answers.correct)[1]
    fitted = 0.5 + 0.5 * np.tanh(columns @ coefficients / 2)
    inverse = np.linalg.inv((columns * (fitted * (1 - fitted))[:, None]).T @ columns)
    units = np.unique(groups, return_inverse=True)[1]
    sums = np.zeros((units.max() + 1, 3))
    np.add.at(sums, units, columns * (answers.correct - fitted)[:, None])
    variance = (inverse @ (sums.T @ sums) @ inverse)[2, 2] * len(sums) / (len(sums) - 1)
    return math.erfc(abs(coefficients[2]) / math.sqrt(2 * variance)) if variance > 0 else None


def shuffle_control(
    answers: Answers, score: np.ndarray, seed: int = 0, permutations: int = PERMUTATIONS
) -> dict[str, Any]:
    """Return what the tests show when the scores are dealt to the wrong answers: what a useless score would show.

    ``error_auroc`` is [mean, 2.5 %, 97.5 %] over permutations, ``likelihood_ratio`` the mean, null where there is no
    regression; ``p_value`` is the share of permutations, the real order among them, with at least the real ratio.

    >>> a = Answers.of([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.9, 0.1]], answer=[0, 1, 0, 1])
    >>> round(shuffle_control(a, np.array([0.3, 0.4, 0.2, 0.1]))["error_auroc"][0], 1)
    0.5
    """
    score, generator = _standardised(score), np.random.default_rng(seed)
    dealt = [score[generator.permutation(answers.n)] for _ in range(permutations)]
    areas = [auroc(one, answers.correct) for one in dealt]
    low, high = np.quantile(areas, [0.025, 0.975])
    result: dict[str, Any] = {"permutations": permutations}
    result["error_auroc"] = [float(np.mean(areas)), float(low), float(high)]
    try:
        odds = _standardised(confidence_logit(answers))
        real = added_value(odds, score, answers.correct).lr_statistic
        known = np.column_stack([np.ones(answers.n), odds])
        without, _ = fit_logistic(known, answers.correct)
        fitted = [fit_logistic(np.column_stack([known, one]), answers.correct)[0] for one in dealt]
        chance = np.maximum(2 * (np.array(fitted) - without), 0.0)
    except Undefined:
        return result | {"likelihood_ratio": None, "p_value": None}
    as_good = 1 + int((chance >= real - 1e-9).sum())
    return result | {"likelihood_ratio": float(chance.mean()), "p_value": as_good / (1 + permutations)}


def partial_correlation(answers: Answers, score: np.ndarray) -> dict[str, float | None]:
    """Return rank correlations of the score with correctness, question length and number of choices, others held fixed.

    A score that follows the length or the number of choices, and correctness no longer once these are fixed, only
    measures the question's form. Null where a column does not vary or is not known. Equal values share their mean rank.
    Raises Undefined where one column follows from the others, as it may among a few answers.

    >>> a = Answers.of([[0.9, 0.1]] * 4, answer=[0, 1, 0, 1])
    >>> partial_correlation(a, np.array([0.4, 0.1, 0.3, 0.2]))
    {'correct': 0.8944271909999159, 'length': None, 'choices': None}
    """
    known: dict[str, np.ndarray | None] = {
        "correct": answers.correct,
        "length": answers.length,
        "choices": _choices(answers),
    }
    used = {name: column for name, column in known.items() if column is not None and np.ptp(column) > 0}
    result: dict[str, float | None] = dict.fromkeys(known)
    ranks = np.stack([_ranks(column) for column in (_standardised(score), *used.values())])
    correlations = np.atleast_2d(np.corrcoef(ranks))
    if np.linalg.cond(correlations) > SINGULAR:
        raise Undefined("the score, correctness, length and number of choices depend on each other exactly")
    precision = np.linalg.inv(correlations)
    for place, name in enumerate(used, 1):
        result[name] = float(-precision[0, place] / math.sqrt(precision[0, 0] * precision[place, place]))
    return result


def _error_auroc(
    answers: Answers, score: np.ndarray, settings: Settings, interval: list[float] | None
) -> dict[str, Any]:
    value = auroc(score, answers.correct)
    if interval is None:
        groups = resampled_groups(answers.groups)
        blocks = bootstrap_weights(answers.n, settings.resamples, settings.seed, groups)
        draws = [auroc_draws(RankedDraws.of(Ranking.by(score), answers.correct, weights)) for weights in blocks]
        ends = percentile(np.concatenate(draws), settings.level)
        interval = list(ends) if ends else None
    return {"value": value, "interval": interval, "confidence": auroc(answers.confidence, answers.correct)}


def _calibration(answers: Answers, score: np.ndarray, settings: Settings) -> dict[str, Any]:
    if score.min() < 0 or score.max() > 1:
        raise Undefined("the score leaves [0, 1], so that it cannot be read as a confidence")
    pair = score, answers.correct
    return {
        "ece": ece(*pair, settings.bins),
        "ece_null": ece_null(*pair, settings.bins, settings.resamples, settings.seed),
        "smooth_ece": smooth_ece(*pair),
        "signed_gap": signed_gap(*pair),
    }


def _standardised(score: np.ndarray) -> np.ndarray:
    score = np.asarray(score, dtype=np.float64)
    if np.ptp(score) == 0:
        raise Undefined("the score is the same for all answers")
    return (score - score.mean()) / score.std()


def _choices(answers: Answers) -> np.ndarray | None:
    try:
        return answers.mask.sum(axis=1)
    except Undefined:
        return None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, tie, size = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(size) - (size - 1) / 2)[tie]
