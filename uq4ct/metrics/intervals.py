"""Intervals: Wilson for shares; bootstrap over items or groups for the rest, percentile or, where biased, pivotal."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist

import numpy as np

FEWEST_GROUPS = 10  # with fewer, a bootstrap of groups says little; they are then taken as fixed


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share; unlike the normal one it stays inside [0, 1] and works at 0 and n.

    >>> [round(x, 4) for x in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a share needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def bootstrap_weights(
    n: int, resamples: int, seed: int, groups: np.ndarray | None = None, at_once: int = 400_000
) -> Iterator[np.ndarray]:
    """Yield blocks of bootstrap weights (resample, n): how often each of n items is drawn.

    One set of weights serves every metric, so that intervals of one result belong to the same resamples. With
    ``groups`` (n,) whole groups are drawn, as many as there are: items of a group need not be
    independent. Rows then sum to n on average only.

    >>> [block.sum(axis=1).tolist() for block in bootstrap_weights(3, resamples=2, seed=0)]
    [[3.0, 3.0]]
    >>> next(bootstrap_weights(4, 1, seed=1, groups=np.array([0, 0, 1, 1]))).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """
    generator, step = np.random.default_rng(seed), max(1, at_once // n)
    numbers = None if groups is None else np.unique(groups, return_inverse=True)[1]
    units = n if numbers is None else int(numbers.max()) + 1
    for start in range(0, resamples, step):
        block = np.empty((min(step, resamples - start), n))
        for row in block:  # a row at a time: its counts stay in the cache
            counts = np.bincount(generator.integers(units, size=units), minlength=units)
            row[:] = counts if numbers is None else counts[numbers]
        yield block


def resampled_groups(groups: np.ndarray | None) -> np.ndarray | None:
    """Return the groups if there are enough of them to resample, else None: single items are then resampled.

    >>> resampled_groups(np.array([0, 0, 1, 1])) is None
    True
    """
    return None if groups is None or len(np.unique(groups)) < FEWEST_GROUPS else groups


def percentile(draws: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """Return the central interval of bootstrap draws; None where no draw is defined.

    >>> percentile(np.arange(101.0), level=0.5)
    (25.0, 75.0)
    """
    defined = draws[np.isfinite(draws)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def pivotal(value: float, draws: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """Return the reflected interval [2 value - q_high, 2 value - q_low], not below 0.

    Resampling adds its own noise to |accuracy - confidence|, so draws of ECE lie above the value that they imitate; the
    percentile interval would keep this bias twice, the pivotal one removes it.

    >>> pivotal(60.0, np.arange(101.0), level=0.5)  # the draws' own ends are 25 and 75
    (45.0, 95.0)
    """
    ends = percentile(draws, level)
    if ends is None:
        return None
    return max(0.0, 2 * value - ends[1]), max(0.0, 2 * value - ends[0])


def corrected(value: float, draws: np.ndarray, error: float, level: float = 0.95) -> tuple[float, float] | None:
    """Return 2 value - mean of the draws, plus and minus the normal quantile times ``error``; not below 0.

    The centre loses the bias that the draws show, as in ``pivotal``. The width comes from a standard error of the
    statistic with its gaps' directions held: in resamples small gaps turn over and |gap| varies less than the gap, so
    that the draws' own width is too small, and the pivotal interval covers a true ECE too seldom.

    >>> [round(end, 2) for end in corrected(0.10, np.array([0.11, 0.13]), error=0.01)]
    [0.06, 0.1]
    """
    defined = draws[np.isfinite(draws)]
    if not len(defined):
        return None
    centre, half = 2 * value - float(defined.mean()), NormalDist().inv_cdf(0.5 + level / 2) * error
    return max(0.0, centre - half), max(0.0, centre + half)
