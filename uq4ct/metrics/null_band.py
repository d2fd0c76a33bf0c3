"""What a perfectly calibrated model would show: its ECE is not 0, and neither are the gaps of its bins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uq4ct.metrics.answers import check_pairs, check_unit_interval
from uq4ct.metrics.calibration_error import bin_index, ece
from uq4ct.metrics.intervals import wilson

Ends = tuple[float, float] | list[float] | None
"""An interval, None where there is none."""


@dataclass(frozen=True)
class CalibratedDraws:
    """ECE and accuracy by bin that models with these very confidences show when they are perfectly calibrated."""

    ece: np.ndarray  # (draw,)
    accuracy: np.ndarray  # (draw, bin); NaN in empty bins


def consistency_resample(confidence: np.ndarray, bins: int = 15, draws: int = 1000, seed: int = 0) -> CalibratedDraws:
    """Draw each answer's correctness from its own confidence and return what ECE and the bins then show.

    Bin accuracy of n answers is noisy, and ECE sums absolute noise, so a perfect model does not score 0; this says
    what it scores (Broecker and Smith 2007). Answers are drawn independently of each other.

    >>> bool(consistency_resample(np.full(100, 0.7)).ece.mean() > 0.02)
    True
    """
    confidence = check_unit_interval(confidence, "confidences")
    index, generator = bin_index(confidence, bins), np.random.default_rng(seed)
    counts = np.bincount(index, minlength=bins)
    expected = np.bincount(index, weights=confidence, minlength=bins)
    order = np.argsort(index, kind="stable")  # a bin is then one stretch
    full = counts > 0
    starts = (np.cumsum(counts) - counts)[full]
    hits = np.zeros((draws, bins))
    for draw in range(draws):
        right = generator.random(len(confidence)) < confidence
        hits[draw, full] = np.add.reduceat(right[order], starts, dtype=np.int64)
    with np.errstate(invalid="ignore"):
        return CalibratedDraws(np.abs(hits - expected).sum(axis=1) / len(confidence), hits / counts)


def ece_null(
    confidence: np.ndarray,
    correct: np.ndarray,
    bins: int = 15,
    draws: int = 1000,
    seed: int = 0,
    null: CalibratedDraws | None = None,
) -> dict[str, float]:
    """Return what ECE would be under perfect calibration: mean, 95 % band, and how far the observed ECE lies above.

    ``low`` and ``high`` are the 2.5 and 97.5 % points, ``p95`` the 95 % point; ``excess`` is ECE minus the mean;
    ``p_value`` is the chance that a perfectly calibrated model shows an ECE at least as large. ``null`` are draws of
    these confidences and bins where they are made already.

    >>> null = ece_null(np.full(100, 0.7), np.repeat([1.0, 0.0], [30, 70]))
    >>> null["excess"] > null["high"], round(null["p_value"], 3)
    (True, 0.001)
    """
    observed = ece(confidence, correct, bins)
    errors = (null or consistency_resample(confidence, bins, draws, seed)).ece
    low, p95, high = np.quantile(errors, [0.025, 0.95, 0.975])
    return {
        "mean": float(errors.mean()),
        "low": float(low),
        "high": float(high),
        "p95": float(p95),
        "excess": observed - float(errors.mean()),
        "p_value": float((1 + (errors >= observed - 1e-12).sum()) / (1 + len(errors))),
    }


def verdict(error: float, high: float, gap: float, gap_interval: Ends, over: Ends = None, under: Ends = None) -> str:
    """Say in words what ECE shows beside the upper end of its null band, and in which direction confidence errs.

    Below the band is no miscalibration either. Of perfectly calibrated models 97.5 % are called so. ``over`` and
    ``under`` are the intervals of ECE's two parts.

    >>> verdict(0.03, 0.04, 0.02, (0.01, 0.05))
    'not distinguishable from calibrated'
    >>> verdict(0.05, 0.04, -0.031, (-0.05, -0.01))
    'underconfident by 3.1 points'
    >>> verdict(0.05, 0.04, 0.01, (-0.01, 0.03), over=(0.01, 0.04), under=(0.01, 0.03))
    'miscalibrated in both directions'
    """
    if error <= high + 1e-12:
        return "not distinguishable from calibrated"
    low, high = gap_interval or (gap, gap)
    if low > 0 or high < 0:
        return f"{'over' if gap > 0 else 'under'}confident by {100 * abs(gap):.1f} points"
    return without_direction(over, under)


def without_direction(over: Ends, under: Ends) -> str:
    """Say what miscalibration is whose mean gap may be 0: both ways where the intervals of both parts lie above 0.

    A gap near 0 alone is no sign of it: few answers that all err one way have a wide interval, too.

    >>> without_direction((0.0, 0.0), (0.0, 0.3))
    'miscalibrated, direction not established'
    """
    both = over is not None and under is not None and min(over[0], under[0]) > 0
    return "miscalibrated in both directions" if both else "miscalibrated, direction not established"


def bin_table(
    confidence: np.ndarray,
    correct: np.ndarray,
    bins: int = 15,
    draws: int = 1000,
    seed: int = 0,
    null: CalibratedDraws | None = None,
) -> list[dict[str, float | int | None]]:
    """Return one row per bin: borders, count, mean confidence, accuracy with its Wilson interval, and the null band.

    ``null_low`` and ``null_high`` bound the accuracy that a perfectly calibrated model shows in this bin in 95 % of
    draws. An empty bin has null values. ``null`` are draws of these confidences and bins where they are made already.

    >>> row = bin_table(np.array([0.8, 0.9]), np.array([1.0, 0.0]), bins=2)[1]
    >>> row["n"], round(row["confidence"], 6), row["accuracy"]
    (2, 0.85, 0.5)
    """
    confidence, correct = check_pairs(confidence, correct)
    index = bin_index(confidence, bins)
    band = (null or consistency_resample(confidence, bins, draws, seed)).accuracy
    rows: list[dict[str, float | int | None]] = []
    for b in range(bins):
        inside = index == b
        n, right = int(inside.sum()), float(correct[inside].sum())
        row: dict[str, float | int | None] = {"lower": b / bins, "upper": (b + 1) / bins, "n": n}
        if n:
            low, high = wilson(right, n)
            null_low, null_high = np.quantile(band[:, b], [0.025, 0.975])
            row |= {"confidence": float(confidence[inside].mean()), "accuracy": right / n, "accuracy_low": low}
            row |= {"accuracy_high": high, "null_low": float(null_low), "null_high": float(null_high)}
        else:
            row |= dict.fromkeys(("confidence", "accuracy", "accuracy_low", "accuracy_high", "null_low", "null_high"))
        rows.append(row)
    return rows
