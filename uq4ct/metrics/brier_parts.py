"""Two exact ways to part the Brier score of the confidence: what calibration costs and what discrimination saves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uq4ct.metrics.answers import check_pairs
from uq4ct.metrics.calibration_error import bin_index
from uq4ct.metrics.ranking import Ranking


class Murphy(NamedTuple):
    """mean (c - a)^2 = reliability - resolution + uncertainty + within_variance - within_covariance."""

    reliability: float
    resolution: float
    uncertainty: float
    within_variance: float
    within_covariance: float


class Corp(NamedTuple):
    """mean (c - a)^2 = miscalibration - discrimination + uncertainty."""

    miscalibration: float
    discrimination: float
    uncertainty: float


def murphy(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> Murphy:
    """Part the score over bins; the two terms within bins (Stephenson et al. 2008) make the sum exact.

    >>> murphy([0.75, 0.75, 0.25, 0.25], [1, 1, 0, 1], bins=2)
    Murphy(reliability=0.0625, resolution=0.0625, uncertainty=0.1875, within_variance=0.0, within_covariance=0.0)
    """
    confidence, correct = check_pairs(confidence, correct)
    index, n = bin_index(confidence, bins), len(correct)
    count = np.maximum(np.bincount(index, minlength=bins), 1)
    rate = np.bincount(index, weights=correct, minlength=bins) / count
    level = np.bincount(index, weights=confidence, minlength=bins) / count
    inside, overall = confidence - level[index], correct.mean()
    return Murphy(
        reliability=float(((level - rate) ** 2)[index].mean()),
        resolution=float(((rate - overall) ** 2)[index].mean()),
        uncertainty=float(overall * (1 - overall)),
        within_variance=float((inside**2).mean()),
        within_covariance=float(2 * (inside @ (correct - rate[index])) / n),
    )


def corp(confidence: np.ndarray, correct: np.ndarray) -> Corp:
    """Part the score by isotonic regression of correctness on confidence: exact, without bins (Dimitriadis 2021).

    Miscalibration is what the best monotone recalibration of these very answers would gain; it is never negative, and
    above 0 for a calibrated model too.

    >>> corp([0.75, 0.75, 0.25, 0.25], [1, 1, 0, 1])
    Corp(miscalibration=0.0625, discrimination=0.0625, uncertainty=0.1875)
    """
    from scipy.optimize import isotonic_regression  # takes its time to import

    confidence, correct = check_pairs(confidence, correct)
    n, overall = len(correct), float(correct.mean())
    size, right = (part[0, ::-1] for part in Ranking.by(confidence).sums(np.ones((1, n)), correct))
    fitted = isotonic_regression(right / size, weights=size).x
    uncertainty = overall * (1 - overall)
    recalibrated = float((size * fitted**2 - 2 * fitted * right + right).sum() / n)  # a^2 = a
    score = float(((confidence - correct) ** 2).mean())
    return Corp(max(score - recalibrated, 0.0), max(uncertainty - recalibrated, 0.0), uncertainty)
