"""Calibration error in bins (Eqs. 15-17): expected, in either direction, root mean square, equal-mass, swept, by class.

Bins are (k/M, (k+1)/M], the first one includes 0; an empty bin adds nothing; a bin's confidence is the mean of its
items, not its middle. No two popular libraries agree on these borders, so results state them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from uq4ct.metrics.answers import Answers, Metric, Settings, Undefined, check_pairs, feu_of, mean_of
from uq4ct.metrics.ranking import RankedDraws, Ranking, running_sum

MOST_SWEPT = 200  # bins at which the sweep ends; the first violation comes far earlier unless nearly all is right
SWEEPS = ((2, 16), (17, 64), (65, MOST_SWEPT))  # numbers of bins that are tried together


def ece(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error, sum_b (n_b / n) |accuracy_b - confidence_b| (Eq. 15).

    >>> ece([0.95, 1.0], [1, 0])  # 1.0 belongs to the last bin
    0.475
    """
    return sum(over_under(confidence, correct, bins))


def over_under(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> tuple[float, float]:
    """Return the parts of ECE from bins with too much and from bins with too little confidence; they add up to it.

    >>> over_under([0.75, 0.5], [0, 1])
    (0.375, 0.25)
    """
    confidence, correct = check_pairs(confidence, correct)
    gaps = np.bincount(bin_index(confidence, bins), weights=confidence - correct, minlength=bins) / len(confidence)
    return float(gaps[gaps > 0].sum()), float(-gaps[gaps < 0].sum())


def bin_index(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each confidence, 0 to bins - 1, right-closed.

    >>> bin_index([0.0, 0.2, 0.21, 1.0], 5).tolist()
    [0, 0, 1, 4]
    """
    if bins < 1:
        raise ValueError(f"at least one bin, got {bins}")
    edges = np.arange(bins + 1) / bins  # linspace and ceil(confidence * bins) both misplace some k / M
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)


def signed_gap(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return mean confidence minus accuracy: positive when overconfident.

    >>> signed_gap([0.75, 0.75], [1, 0])
    0.25
    """
    confidence, correct = check_pairs(confidence, correct)
    return float((confidence - correct).mean())


def mce(confidence: np.ndarray, correct: np.ndarray, bins: int = 15, at_least: int = 1) -> float:
    """Return the largest |accuracy - confidence| of a bin with ``at_least`` items; single items dominate it below 10.

    Raises Undefined where no bin has as many.

    >>> mce([0.75, 0.5], [0, 1])
    0.75
    """
    confidence, correct = check_pairs(confidence, correct)
    index = bin_index(confidence, bins)
    counts = np.bincount(index, minlength=bins)
    gaps = np.bincount(index, weights=confidence - correct, minlength=bins)
    full = counts >= at_least
    if not full.any():
        raise Undefined(f"no bin has {at_least} answers")
    return float((np.abs(gaps[full]) / counts[full]).max())


def rms_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15, debias: bool = True) -> float:
    """Return sqrt(sum_b (n_b / n) (accuracy_b - confidence_b)^2), less the part that chance alone adds.

    ``debias`` takes a_b (1 - a_b) / (n_b - 1) off each square (Kumar et al. 2019); bins of one item then count 0, and a
    negative sum is 0.

    >>> rms_calibration_error([0.75, 0.75], [1, 0], debias=False)
    0.25
    """
    confidence, correct = check_pairs(confidence, correct)
    members = np.eye(bins)[bin_index(confidence, bins)]
    sums = [(column @ members)[None] for column in (np.ones(len(correct)), correct, confidence)]
    return float(_rms(sums, debias)[0])


def _rms(sums: list[np.ndarray], debias: bool = True) -> np.ndarray:
    """Return the error from number, right answers and confidence by bin, (draw, bin) each."""
    count, right, confidence = sums
    n = np.maximum(count, 1)
    square = ((right - confidence) / n) ** 2
    if debias:
        rate = right / n
        square = np.where(count > 1, square - rate * (1 - rate) / np.maximum(n - 1, 1), 0.0)
    return np.sqrt(np.maximum((count * square).sum(axis=1) / count.sum(axis=1), 0.0))


def ece_equal_mass(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Return ECE over bins of equal numbers of items, the larger ones first, from the lowest confidence up.

    Equal confidences that a border parts are shared out evenly, so that the order of a file changes nothing.

    >>> ece_equal_mass([0.5, 0.5, 1.0, 1.0], [1, 0, 1, 0], bins=2)
    0.25
    """
    confidence, correct = check_pairs(confidence, correct)
    return float(_mass_draws(*_ranked(confidence, correct), bins)[0])


def ece_sweep(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return equal-mass ECE with the most bins, up to 200, whose accuracies still rise with confidence (Roelofs 2022).

    The search ends at the first number of bins that violates it. Less biased than a fixed number of bins.

    >>> ece_sweep([0.5, 0.5, 1.0, 1.0], [1, 0, 1, 1])
    0.0
    """
    confidence, correct = check_pairs(confidence, correct)
    return float(_mass_draws(*_ranked(confidence, correct), None)[0])


def swept_bins(size_up_to: np.ndarray, right_up_to: np.ndarray) -> int:
    """Return the number of bins of the sweep from running sums over ties, the surest first.

    >>> swept_bins(np.array([0.0, 2.0, 4.0]), np.array([0.0, 1.0, 3.0]))
    1
    """
    n = int(size_up_to[-1])
    most = min(n, MOST_SWEPT)
    for first, last in SWEEPS:
        if first > most:
            break
        places, pairs, bins = _sweep(n, first, min(last, most))
        rates = np.diff(np.interp(places, size_up_to, right_up_to)) / np.diff(places)
        rising = rates[pairs + 1] > rates[pairs] + 1e-12  # the surest first: rates must not rise
        if rising.any():
            return int(bins[rising.argmax()]) - 1
    return most


@lru_cache(maxsize=256)  # resamples of one file have the same n, those of groups a few
def _sweep(n: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the borders of ``first`` to ``last`` bins in one row; of each two neighbours, place and bins."""
    numbers = np.arange(first, last + 1)
    starts = np.cumsum(numbers + 1) - numbers - 1
    pairs = [start + np.arange(bins - 1) for start, bins in zip(starts, numbers, strict=True)]
    places = np.concatenate([_borders(n, int(bins)) for bins in numbers])
    return places, np.concatenate(pairs), np.repeat(numbers, numbers - 1)


def _borders(n: float, bins: int) -> np.ndarray:
    """Return the places that part n items, the surest first, where ``array_split`` parts them the other way round."""
    small, larger = divmod(int(n), bins)  # the larger bins hold the lowest confidences
    steps = np.arange(bins + 1)
    return (steps * small + np.maximum(steps - (bins - larger), 0)).astype(np.float64)


def _ranked(confidence: np.ndarray, correct: np.ndarray) -> tuple[RankedDraws, np.ndarray]:
    """Return the sample itself as the one draw, and its running sum of confidence less correctness."""
    ranking, once = Ranking.by(confidence), np.ones((1, len(confidence)))
    return RankedDraws.of(ranking, correct, once), running_sum(ranking.sums(once, confidence - correct)[1])


def _mass_draws(drawn: RankedDraws, gaps_up_to: np.ndarray, bins: int | None) -> np.ndarray:
    """Return equal-mass errors (draw,); with None the number of bins is swept for each. Borders share out a tie."""
    errors = np.empty(len(drawn.size))
    for k, (size, right, gap) in enumerate(zip(drawn.size_up_to, drawn.right_up_to, gaps_up_to, strict=True)):
        places = _borders(size[-1], swept_bins(size, right) if bins is None else bins)
        errors[k] = np.abs(np.diff(np.interp(places, size, gap))).sum() / size[-1]
    return errors


def classwise_ece(answers: Answers, bins: int = 15) -> float:
    """Return the mean over choices k of ECE of (p_k, whether k is gold): a probe of letter bias.

    Letters are arbitrary, so this says something about the reading of answers, not about the questions. Raises
    Undefined where questions have different numbers of choices: no letter then means the same everywhere.

    >>> classwise_ece(Answers.of([[0.75, 0.25]], answer=[0]), bins=1)
    0.25
    """
    cells, gaps = _class_gaps(answers, bins)
    sums = np.bincount(cells.ravel(), weights=gaps.ravel())
    return float(np.abs(sums).sum() / gaps.size)


def _class_gaps(answers: Answers, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cell of class and bin that each probability falls in, and p_k - 1[k is gold]; (n, class) each."""
    if not answers.mask.all():
        sizes = answers.mask.sum(axis=1)
        raise Undefined(f"questions have {sizes.min()} to {sizes.max()} choices; classes need the same number")
    classes = np.arange(answers.probabilities.shape[1])
    gold = classes == answers.answer[:, None]
    return bin_index(answers.probabilities, bins) + bins * classes, answers.probabilities - gold


def _class_draws(answers: Answers, bins: int, weights: np.ndarray) -> np.ndarray:
    def table() -> Any:
        return cell_table(*_class_gaps(answers, bins), bins * answers.probabilities.shape[1])

    gaps = weights @ answers.once(f"class gaps {bins}", table)
    return np.abs(gaps).sum(axis=1) / answers.probabilities.shape[1] / weights.sum(axis=1)


def cell_table(cells: np.ndarray, values: np.ndarray, number: int) -> Any:
    """Return the sparse (n, number) matrix with the values (n, k) of each answer at its cells (n, k).

    >>> cell_table(np.array([[0, 2]]), np.array([[0.25, 0.75]]), 3).toarray().tolist()
    [[0.25, 0.0, 0.75]]
    """
    from scipy import sparse  # takes its time to import

    n, k = cells.shape
    return sparse.csr_array((values.ravel(), cells.ravel(), np.arange(0, n * k + 1, k)), shape=(n, number))


Score = Callable[[Answers], np.ndarray]
"""What is read as a confidence: (n,) in [0, 1]."""


def _bin_sums(answers: Answers, name: str, score: Score, bins: int, weights: np.ndarray) -> list[np.ndarray]:
    """Return number, right answers and confidence by bin, (draw, bin) each."""

    def table() -> Any:
        columns = np.stack([np.ones(answers.n), answers.correct, score(answers)], axis=1)
        cells = bin_index(score(answers), bins)[:, None] + bins * np.arange(3)
        return cell_table(cells, columns, 3 * bins)

    return np.split(weights @ answers.once(f"bins of {name} {bins}", table), 3, axis=1)


def _gap_draws(answers: Answers, name: str, score: Score, bins: int, weights: np.ndarray) -> np.ndarray:
    """Return (n_b / n) (confidence_b - accuracy_b), (draw, bin)."""

    def table() -> Any:
        return cell_table(bin_index(score(answers), bins)[:, None], (score(answers) - answers.correct)[:, None], bins)

    return weights @ answers.once(f"gaps of {name} {bins}", table) / weights.sum(axis=1, keepdims=True)


def _gaps_up_to(answers: Answers, weights: np.ndarray) -> np.ndarray:
    gap = answers.confidence - answers.correct
    return answers.once_for(weights, "gaps", lambda: running_sum(answers.by_confidence.sums(weights, gap)[1]))


def _steady(score: Score, sides: tuple[int, ...] = (1, -1)) -> Callable[[Answers, Settings], np.ndarray]:
    """Return numbers (n,) whose mean is the part of ECE from bins of these sides, 1 too sure, -1 too little sure."""

    def numbers(answers: Answers, settings: Settings) -> np.ndarray:
        index, gap = bin_index(score(answers), settings.bins), score(answers) - answers.correct
        direction = np.sign(np.bincount(index, weights=gap, minlength=settings.bins))
        return np.where(np.isin(direction, sides), direction, 0.0)[index] * gap

    return numbers


def _steady_classes(answers: Answers, settings: Settings) -> np.ndarray:
    cells, gaps = _class_gaps(answers, settings.bins)
    return (np.sign(np.bincount(cells.ravel(), weights=gaps.ravel()))[cells] * gaps).mean(axis=1)


def _steady_mass(answers: Answers, settings: Settings) -> np.ndarray:
    """Return the numbers of equal-mass ECE; an answer of a parted tie counts with the bin of its place in the file."""
    order = np.argsort(-answers.confidence, kind="stable")
    sizes = np.diff(_borders(answers.n, settings.bins)).astype(np.int64)
    index = np.empty(answers.n, np.int64)
    index[order] = np.repeat(np.arange(settings.bins), sizes)
    gap = answers.confidence - answers.correct
    return np.sign(np.bincount(index, weights=gap, minlength=settings.bins))[index] * gap


def _confidence(answers: Answers) -> np.ndarray:
    return answers.confidence


METRICS = (
    Metric(
        "ece",
        "expected calibration error: mean |accuracy - confidence| over equal-width bins",
        "lower",
        lambda a, s: ece(a.confidence, a.correct, s.bins),
        lambda a, s, weights: np.abs(_gap_draws(a, "confidence", _confidence, s.bins, weights)).sum(axis=1),
        "pivotal",
        _steady(_confidence),
    ),
    Metric(
        "overconfidence",
        "part of ECE from bins with too much confidence",
        "lower",
        lambda a, s: over_under(a.confidence, a.correct, s.bins)[0],
        lambda a, s, weights: np.maximum(_gap_draws(a, "confidence", _confidence, s.bins, weights), 0).sum(axis=1),
        "pivotal",
        _steady(_confidence, (1,)),
    ),
    Metric(
        "underconfidence",
        "part of ECE from bins with too little confidence",
        "lower",
        lambda a, s: over_under(a.confidence, a.correct, s.bins)[1],
        lambda a, s, weights: np.maximum(-_gap_draws(a, "confidence", _confidence, s.bins, weights), 0).sum(axis=1),
        "pivotal",
        _steady(_confidence, (-1,)),
    ),
    mean_of(
        "signed_gap",
        "mean confidence minus accuracy: positive is overconfident",
        "zero",
        lambda a: a.confidence - a.correct,
    ),
    mean_of("confidence", "mean probability of the predicted choice", "none", lambda a: a.confidence),
    Metric(
        "ece_equal_mass",
        "ECE over bins of equal numbers of answers",
        "lower",
        lambda a, s: ece_equal_mass(a.confidence, a.correct, s.bins),
        lambda a, s, weights: _mass_draws(a.ranked(weights), _gaps_up_to(a, weights), s.bins),
        "pivotal",
        _steady_mass,
    ),
    Metric(
        "ece_sweep",
        "ECE over the most equal-mass bins whose accuracies rise with confidence",
        "lower",
        lambda a, s: ece_sweep(a.confidence, a.correct),
        lambda a, s, weights: _mass_draws(a.ranked(weights), _gaps_up_to(a, weights), None),
        "pivotal",
    ),
    Metric(
        "rms_calibration_error",
        "root mean square calibration error over equal-width bins, less what chance adds",
        "lower",
        lambda a, s: rms_calibration_error(a.confidence, a.correct, s.bins),
        lambda a, s, weights: _rms(_bin_sums(a, "confidence", _confidence, s.bins, weights)),
        "pivotal",
    ),
    Metric(
        "classwise_ece",
        "mean over letters of the ECE of the letter's own probability",
        "lower",
        lambda a, s: classwise_ece(a, s.bins),
        lambda a, s, weights: _class_draws(a, s.bins, weights),
        "pivotal",
        _steady_classes,
    ),
    Metric(
        "feu_ece",
        "expected calibration error of FEU read as a confidence",
        "lower",
        lambda a, s: ece(feu_of(a), a.correct, s.bins),
        lambda a, s, weights: np.abs(_gap_draws(a, "feu", feu_of, s.bins, weights)).sum(axis=1),
        "pivotal",
        _steady(feu_of),
    ),
)
