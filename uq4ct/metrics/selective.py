"""Does the confidence rank right answers above wrong ones, and what does answering only the surest questions buy?

Ties count as one: every curve is the average over all orders within a tie, so that the order of a file changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from uq4ct.metrics.answers import Answers, Metric, Undefined, feu_of, mean_of
from uq4ct.metrics.ranking import RankedDraws, Ranking


def auroc(score: np.ndarray, correct: np.ndarray) -> float:
    """Return the chance that a right answer has a higher score than a wrong one, ties counting 1/2.

    Raises Undefined when all answers are right or all are wrong; it is never 0.5 by default.

    >>> auroc([0.9, 0.6, 0.6], [1, 1, 0])
    0.75
    """
    score, correct = np.asarray(score, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    need_both(correct)
    return _once(auroc_draws, score, correct)


def aupr(score: np.ndarray, correct: np.ndarray, of: Literal["right", "wrong"] = "right") -> float:
    """Return the average precision of finding right answers by a high score, or wrong ones by a low score.

    A random score has the base rate, the share of such answers, and not one half: always read it beside that.
    Raises Undefined where there is none of them.

    >>> aupr([0.9, 0.6, 0.6], [1, 1, 0]), aupr([0.9, 0.6, 0.6], [1, 1, 0], of="wrong")
    (0.8333333333333333, 0.5)
    """
    correct = np.asarray(correct, dtype=np.float64)
    if (correct == (of == "wrong")).all():
        raise Undefined(f"none of {len(correct)} answers is {of}")
    return _once(_aupr_right_draws if of == "right" else _aupr_wrong_draws, score, correct)


def aurc(score: np.ndarray, correct: np.ndarray) -> float:
    """Return the area under the risk-coverage curve, mean over k of the error rate among the k surest answers.

    >>> round(aurc([0.7] * 10, [1] * 7 + [0] * 3), 6)
    0.3
    """
    return _once(_aurc_draws, score, correct)


def eaurc(score: np.ndarray, correct: np.ndarray) -> float:
    """Return AURC less that of the best order, all right answers first; 0 is perfect ranking at any accuracy.

    The best order is summed exactly, not approximated by e + (1 - e) ln(1 - e).

    >>> eaurc([0.9, 0.8, 0.7], [1, 1, 0])
    0.0
    """
    return _once(lambda drawn: _excess(_aurc_draws(drawn), drawn), score, correct)


def prr(score: np.ndarray, correct: np.ndarray) -> float:
    """Return the prediction-rejection ratio, (e - AURC) / (e - AURC of the best order) with error rate e.

    1 is perfect ranking, 0 a random one. Raises Undefined when all answers are right or all are wrong.

    >>> prr([0.9, 0.8, 0.7], [1, 1, 0])
    1.0
    """
    correct = np.asarray(correct, dtype=np.float64)
    need_both(correct)
    return _once(lambda drawn: _rejection_ratio(_aurc_draws(drawn), drawn), score, correct)


def augrc(score: np.ndarray, correct: np.ndarray) -> float:
    """Return the area under the generalized risk-coverage curve, mean over k of (errors among the k surest) / n.

    Unlike AURC it does not overweigh the first few answers (Traub et al. 2024).

    >>> augrc([0.9, 0.8], [1, 0])
    0.25
    """
    return _once(_augrc_draws, score, correct)


def risk_coverage(score: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage k / n and the error rate among the k surest answers, k = 1..n.

    >>> coverage, risk = risk_coverage([0.9, 0.5, 0.5], [1, 1, 0])
    >>> risk.round(3).tolist()
    [0.0, 0.25, 0.333]
    """
    score, correct = np.asarray(score, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    _, group, size = np.unique(-score, return_inverse=True, return_counts=True)
    error_rate = np.bincount(group, weights=1.0 - correct) / size
    k = np.arange(1, len(score) + 1)
    return k / len(score), np.cumsum(np.repeat(error_rate, size)) / k


def accuracy_at_coverage(score: np.ndarray, correct: np.ndarray, coverage: float) -> float:
    """Return the accuracy of the ceil(coverage * n) surest answers.

    >>> accuracy_at_coverage([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0], coverage=0.5)
    1.0
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage lies in (0, 1], got {coverage}")
    kept = int(np.ceil(coverage * len(score) - 1e-9))  # 0.7 * 10 is 7.000000000000001
    return float(1.0 - risk_coverage(score, correct)[1][kept - 1])


def _once(draws: Callable[[RankedDraws], np.ndarray], score: np.ndarray, correct: np.ndarray) -> float:
    """Return the statistic of the sample itself: every item drawn once."""
    score, correct = np.asarray(score, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    return float(draws(RankedDraws.of(Ranking.by(score), correct, np.ones((1, len(score)))))[0])


def auroc_draws(drawn: RankedDraws) -> np.ndarray:
    """Return AUROC of resamples; NaN where one has right or wrong answers only."""
    above = _dot(drawn.right_up_to[:, :-1], drawn.errors) + 0.5 * _dot(drawn.right, drawn.errors)
    with np.errstate(invalid="ignore"):
        return above / (drawn.n_right * (drawn.n - drawn.n_right))


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", first, second)


def _aupr_right_draws(drawn: RankedDraws) -> np.ndarray:
    retrieved = np.maximum(drawn.size_up_to[:, 1:], 1.0)  # before the first answer nothing is found either
    with np.errstate(invalid="ignore"):
        return _dot(drawn.right_up_to[:, 1:] / retrieved, drawn.right) / drawn.n_right


def _aupr_wrong_draws(drawn: RankedDraws) -> np.ndarray:
    """Return the mean precision over wrong answers, from the least sure on."""
    retrieved = drawn.n[:, None] - drawn.size_up_to[:, :-1]
    wrong = drawn.n - drawn.n_right
    found = retrieved - (drawn.n_right[:, None] - drawn.right_up_to[:, :-1])
    with np.errstate(invalid="ignore"):
        return _dot(found / np.maximum(retrieved, 1.0), drawn.errors) / wrong


def _augrc_draws(drawn: RankedDraws) -> np.ndarray:
    before = drawn.size_up_to[:, :-1] - drawn.right_up_to[:, :-1]
    return (_dot(drawn.size, before) + 0.5 * _dot(drawn.errors, drawn.size + 1)) / drawn.n**2


def _aurc_draws(drawn: RankedDraws) -> np.ndarray:
    """Sum (E + j e/w) / (W + j) over j = 1..w for each tie: w answers with e errors, after W answers with E errors."""
    slope = np.diff(_harmonic(int(drawn.n.max()))[drawn.size_up_to.astype(np.int64)], axis=1)
    before = drawn.size_up_to[:, :-1]
    rate = drawn.errors / np.maximum(drawn.size, 1.0)
    level = before - drawn.right_up_to[:, :-1] - rate * before
    return (_dot(level, slope) + drawn.n - drawn.n_right) / drawn.n


def _harmonic(n: int) -> np.ndarray:
    """Return 1 + 1/2 + ... + 1/k for k = 0..n."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n + 1))])


def _oracle(n: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return AURC of the best order, all right answers first: (E - R (H_n - H_R)) / n with R right, E wrong."""
    harmonic = _harmonic(int(n.max()))
    slope = harmonic[n.astype(np.int64)] - harmonic[np.rint(right).astype(np.int64)]
    return np.maximum(n - right - right * slope, 0.0) / n


def _excess(area: np.ndarray, drawn: RankedDraws) -> np.ndarray:
    return np.maximum(area - _oracle(drawn.n, drawn.n_right), 0.0)  # rounding may leave -1e-17


def _rejection_ratio(area: np.ndarray, drawn: RankedDraws) -> np.ndarray:
    random = 1.0 - drawn.n_right / drawn.n
    with np.errstate(invalid="ignore", divide="ignore"):  # nothing to reject, or nothing else: NaN
        best = np.where((random > 0) & (random < 1), random - _oracle(drawn.n, drawn.n_right), np.nan)
        return (random - area) / best


def _coverage_draws(drawn: RankedDraws, coverage: float) -> np.ndarray:
    kept = np.ceil(coverage * drawn.n - 1e-9)  # 0.7 * 10 is 7.000000000000001
    parts = zip(kept, drawn.size_up_to, drawn.right_up_to, strict=True)
    return np.array([np.interp(places, size, right) for places, size, right in parts]) / kept


def need_both(correct: np.ndarray) -> None:
    """Raise Undefined when all answers are right or all are wrong."""
    if correct.all() or not correct.any():
        which = "right" if correct.any() else "wrong"
        raise Undefined(f"needs right and wrong answers, all {len(correct)} are {which}")


def coverage_table(answers: Answers, levels: tuple[float, ...] = (0.5, 0.8, 0.9)) -> dict[str, float]:
    """Return the accuracy of the surest answers at some coverages, keyed by the coverage."""
    return {f"{level:g}": accuracy_at_coverage(answers.confidence, answers.correct, level) for level in levels}


def _ranked(
    name: str, summary: str, better: Literal["higher", "lower"], draws: Callable[[RankedDraws], np.ndarray]
) -> Metric:
    """Make a metric of how the confidence ranks the answers."""
    return _from_areas(name, summary, better, draws, lambda value, _: value)


def _from_areas(
    name: str,
    summary: str,
    better: Literal["higher", "lower"],
    draws: Callable[[RankedDraws], np.ndarray],
    then: Callable[[np.ndarray, RankedDraws], np.ndarray],
) -> Metric:
    """Make a metric from values that several metrics share."""

    def of(answers: Answers, weights: np.ndarray) -> np.ndarray:
        drawn = answers.ranked(weights)
        return then(answers.once_for(weights, draws.__name__, lambda: draws(drawn)), drawn)

    return Metric(
        name,
        summary,
        better,
        lambda a, _: _value(of(a, np.ones((1, a.n))), a.correct),
        lambda a, _, weights: of(a, weights),
    )


def _value(values: np.ndarray, correct: np.ndarray) -> float:
    if np.isnan(values[0]):
        need_both(correct)
    return float(values[0])


def auroc_of(name: str, summary: str, score: Callable[[Answers], np.ndarray]) -> Metric:
    """Make the metric that is the AUROC of correctness by some score; large means certain."""

    def of(answers: Answers, weights: np.ndarray) -> np.ndarray:
        ranking = answers.once(f"ranking of {name}", lambda: Ranking.by(score(answers)))
        return auroc_draws(RankedDraws.of(ranking, answers.correct, weights))

    return Metric(
        name,
        summary,
        "higher",
        lambda a, _: _value(of(a, np.ones((1, a.n))), a.correct),
        lambda a, _, weights: of(a, weights),
    )


def _accuracy_at_80(drawn: RankedDraws) -> np.ndarray:
    return _coverage_draws(drawn, 0.8)


METRICS = (
    _ranked("auroc", "chance that a right answer has higher confidence than a wrong one", "higher", auroc_draws),
    _ranked("aupr_right", "average precision of finding right answers, the surest first", "higher", _aupr_right_draws),
    _ranked("aupr_wrong", "average precision of finding errors, the least sure first", "higher", _aupr_wrong_draws),
    _ranked("aurc", "area under the risk-coverage curve", "lower", _aurc_draws),
    _from_areas("eaurc", "AURC above that of the best order with this accuracy", "lower", _aurc_draws, _excess),
    _ranked("augrc", "area under the generalized risk-coverage curve", "lower", _augrc_draws),
    _from_areas(
        "prr",
        "share of the best possible gain that rejecting the least sure has; 0 is random",
        "higher",
        _aurc_draws,
        _rejection_ratio,
    ),
    _ranked("accuracy_at_80", "accuracy of the surest 80 % of answers", "higher", _accuracy_at_80),
    mean_of("feu", "mean functional-level epistemic uncertainty (Eq. 9); it is a confidence", "none", feu_of),
    auroc_of("feu_auroc", "chance that a right answer has higher FEU than a wrong one", feu_of),
)
