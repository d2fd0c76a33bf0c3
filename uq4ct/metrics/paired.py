"""Is one method better than another? Differences over paired seeds and the same questions, with what chance can do.

A difference is uncertain twice: other seeds would train other models, and other questions could have been asked. The
two-level bootstrap draws both: seeds, then questions, the same draw of questions for all methods and seeds.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from uq4ct.metrics.intervals import percentile


class OverSeeds(NamedTuple):
    """The mean over seeds of a statistic, how sure it is, and where the doubt comes from."""

    mean: float
    interval: tuple[float, float]
    p: float  # two-sided, of zero
    seed_sd: float | None  # between the values of single seeds (n - 1); None for one seed
    item_sd: float  # of the mean when questions are drawn and seeds are kept


def seed_shares(seeds: int, resamples: int, seed: int) -> np.ndarray:
    """Return how often each seed is drawn in each resample, as a share; (resample, seed), rows summing to 1.

    >>> seed_shares(3, 2, 0).sum(axis=1).tolist()
    [1.0, 1.0]
    """
    generator = np.random.default_rng([seed, seeds])
    return generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds


def few_seeds(seeds: int, resamples: int, seed: int) -> np.ndarray:
    """Return by how much to stretch the seeds' part of each resample, sqrt(S / chi2), (resample,); 1 for one seed.

    Drawing S seeds from S shows (S - 1) / S of their variance, and hides that this variance is itself a guess. The
    stretched part has Student's t with S - 1 degrees of freedom in place of the normal that many seeds would give.

    >>> bool(np.median(few_seeds(3, 1000, 0)) > np.median(few_seeds(30, 1000, 0)) > 1)
    True
    """
    if seeds < 2:
        return np.ones(resamples)
    return np.sqrt(seeds / np.random.default_rng([seed, seeds, 1]).chisquare(seeds - 1, size=resamples))


def two_level(draws: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return resampled means over seeds, (resample,), of values by resample and seed; one not drawn may be undefined.

    >>> two_level(np.array([[1.0, 3.0], [1.0, np.nan]]), np.array([[0.5, 0.5], [1.0, 0.0]])).tolist()
    [2.0, 1.0]
    """
    return (shares * np.where(shares > 0, draws, 0.0)).sum(axis=1)


def over_seeds(
    values: np.ndarray, draws: np.ndarray, *, level: float = 0.95, pivotal: bool = False, seed: int = 0
) -> OverSeeds:
    """Return the mean over seeds of a statistic, or of its paired difference, with interval and p-value.

    ``values`` (seed,) belong to all questions, ``draws`` (resample, seed) to drawn ones, the same for all seeds and
    methods; of a paired difference both are differences. Percentile interval, or, for a statistic whose draws are
    biased as ECE's are, the pivotal one, reflected at the mean. The p-value is that of the interval: twice the share of
    draws on the far side of zero. One seed gives both for questions only. Raises ValueError where no draw is defined.

    >>> draws = np.random.default_rng(0).normal(0.5, 0.1, size=(1000, 1))
    >>> over_seeds(np.array([0.5]), draws).p < 0.01
    True
    """
    resamples, seeds = draws.shape
    mean, by_items = float(np.mean(values)), draws.mean(axis=1)
    drawn = by_items
    if seeds > 1:
        by_seeds = two_level(draws, seed_shares(seeds, resamples, seed))
        drawn = by_items + few_seeds(seeds, resamples, seed) * (by_seeds - by_items)
    drawn = drawn[np.isfinite(drawn)]
    if pivotal:
        drawn = 2 * mean - drawn
    ends = percentile(drawn, level)
    if ends is None:
        raise ValueError("no resample has a value")
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return OverSeeds(
        mean=mean,
        interval=ends,
        p=min(1.0, 2 * (1 + beyond) / (1 + len(drawn))),
        seed_sd=float(np.std(values, ddof=1)) if seeds > 1 else None,
        item_sd=float(np.nanstd(by_items)),
    )


def standard_error(values: np.ndarray, groups: Sequence[Hashable] | None = None) -> float:
    """Return the standard error of the mean of one number per question; clustered where questions come in groups.

    Without groups that of the central limit theorem, sd / sqrt(n). With groups the root of the summed squares of each
    group's summed deviations, over n: questions on one passage are not independent (Miller 2024, Eq. 4).

    >>> values = np.array([1.0, 1.0, 0.0, 0.0])
    >>> round(standard_error(values), 4), round(standard_error(values, ["a", "a", "b", "b"]), 4)
    (0.2887, 0.3536)
    """
    values = np.asarray(values, dtype=np.float64)
    if groups is None:
        return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    sums = np.bincount([names[name] for name in groups], weights=values - values.mean())
    return float(np.sqrt((sums**2).sum()) / len(values))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for how many questions are asked at once, by Holm's step-down method.

    The k-th smallest of m is multiplied by m - k + 1; none may come out below one that was smaller. The chance of any
    false finding among all m is then at most the level, whatever their dependence.

    >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    corrected, floor = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = floor
    return corrected
