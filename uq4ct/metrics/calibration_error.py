"""Calibration error: binned (Eqs. 15-17), with the value that a perfectly calibrated model would show, and smooth.

Bins are (k/M, (k+1)/M], the first one includes 0; an empty bin adds nothing; a bin's confidence is the mean of its
items, not its middle. No two popular libraries agree on these borders, so results state them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uq4ct.metrics.answers import Metric, check_pairs, check_unit_interval, feu_of, mean_of
from uq4ct.metrics.intervals import wilson

GRID = 512  # cells of the smooth error: value within 1e-4 of the continuous one
COARSE_GRID = 128  # the same for bootstrap draws, where only differences count


def ece(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error, sum_b (n_b / n) |accuracy_b - confidence_b| (Eq. 15).

    >>> ece([0.95, 1.0], [1, 0])  # 1.0 belongs to the last bin
    0.475
    """
    confidence, correct = check_pairs(confidence, correct)
    gaps = np.bincount(bin_index(confidence, bins), weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


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


@dataclass(frozen=True)
class CalibratedDraws:
    """ECE and accuracy by bin that models with these very confidences show when they are perfectly calibrated."""

    ece: np.ndarray  # (draw,)
    accuracy: np.ndarray  # (draw, bin); NaN in empty bins


def consistency_resample(confidence: np.ndarray, bins: int = 15, draws: int = 1000, seed: int = 0) -> CalibratedDraws:
    """Draw each answer's correctness from its own confidence and return what ECE and the bins then show.

    Bin accuracy of n answers is noisy, and ECE sums absolute noise, so a perfect model does not score 0; this says
    what it scores (Broecker and Smith 2007).

    >>> bool(consistency_resample(np.full(100, 0.7)).ece.mean() > 0.02)
    True
    """
    confidence = check_unit_interval(confidence, "confidences")
    index, generator = bin_index(confidence, bins), np.random.default_rng(seed)
    members = np.eye(bins)[index]
    counts, expected = members.sum(axis=0), confidence @ members
    hits = np.empty((draws, bins))
    step = max(1, 4_000_000 // len(confidence))
    for start in range(0, draws, step):
        stop = min(draws, start + step)
        hits[start:stop] = (generator.random((stop - start, len(confidence))) < confidence) @ members
    with np.errstate(invalid="ignore"):
        return CalibratedDraws(np.abs(hits - expected).sum(axis=1) / len(confidence), hits / counts)


def ece_null(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15, draws: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Return what ECE would be under perfect calibration: mean, 95 % band, and how far the observed ECE lies above.

    ``low`` and ``high`` are the 2.5 and 97.5 % points, ``p95`` the 95 % point; ``excess`` is ECE minus the mean;
    ``p_value`` is the chance that a perfectly calibrated model shows an ECE at least as large.

    >>> null = ece_null(np.full(100, 0.7), np.repeat([1.0, 0.0], [30, 70]))
    >>> null["excess"] > null["high"], round(null["p_value"], 3)
    (True, 0.001)
    """
    observed = ece(confidence, correct, bins)
    null = consistency_resample(confidence, bins, draws, seed).ece
    low, p95, high = np.quantile(null, [0.025, 0.95, 0.975])
    return {
        "mean": float(null.mean()),
        "low": float(low),
        "high": float(high),
        "p95": float(p95),
        "excess": observed - float(null.mean()),
        "p_value": float((1 + (null >= observed - 1e-12).sum()) / (1 + draws)),
    }


def bin_table(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15, draws: int = 1000, seed: int = 0
) -> list[dict[str, float | int | None]]:
    """Return one row per bin: borders, count, mean confidence, accuracy with its Wilson interval, and the null band.

    ``null_low`` and ``null_high`` bound the accuracy that a perfectly calibrated model shows in this bin in 95 % of
    draws. An empty bin has null values.

    >>> row = bin_table(np.array([0.8, 0.9]), np.array([1.0, 0.0]), bins=2)[1]
    >>> row["n"], round(row["confidence"], 6), row["accuracy"]
    (2, 0.85, 0.5)
    """
    confidence, correct = check_pairs(confidence, correct)
    index = bin_index(confidence, bins)
    null = consistency_resample(confidence, bins, draws, seed).accuracy
    rows: list[dict[str, float | int | None]] = []
    for b in range(bins):
        inside = index == b
        n, right = int(inside.sum()), float(correct[inside].sum())
        row: dict[str, float | int | None] = {"lower": b / bins, "upper": (b + 1) / bins, "n": n}
        if n:
            low, high = wilson(right, n)
            null_low, null_high = np.quantile(null[:, b], [0.025, 0.975])
            row |= {"confidence": float(confidence[inside].mean()), "accuracy": right / n, "accuracy_low": low}
            row |= {"accuracy_high": high, "null_low": float(null_low), "null_high": float(null_high)}
        else:
            row |= dict.fromkeys(("confidence", "accuracy", "accuracy_low", "accuracy_high", "null_low", "null_high"))
        rows.append(row)
    return rows


def smooth_ece(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the smooth calibration error (Blasiok and Nakkiran 2023): no bins, so no borders to choose.

    The residuals (correct - confidence), placed at their confidence, are smoothed by a Gaussian reflected at 0 and 1;
    its width is the fixed point sigma = integral |smoothed residual|. The error is that width. A confidence of
    exactly 0 or 1 keeps its whole weight, as the definition says; the authors' package (relplot 1.0.3) halves it.

    >>> round(smooth_ece([0.7] * 10, [1] * 7 + [0] * 3), 6)
    0.0
    """
    confidence, correct = check_pairs(confidence, correct)
    return float(_smooth((correct - confidence)[None] @ _spread(confidence, GRID) / len(confidence))[0])


def _spread(confidence: np.ndarray, cells: int) -> np.ndarray:
    """Share each item between the two nearest cell centres, (n, cells), so that the grid moves no mass."""
    place = np.clip(confidence * cells - 0.5, 0, cells - 1)
    left = np.minimum(place.astype(np.int64), cells - 2)
    spread = np.zeros((len(confidence), cells))
    rows = np.arange(len(confidence))
    spread[rows, left] = 1 - (place - left)
    spread[rows, left + 1] = place - left
    return spread


def _smooth(residual: np.ndarray) -> np.ndarray:
    """Solve sigma = integral |residual smoothed with sigma| for each row of (draw, cells), by bisection.

    A Gaussian reflected at both ends is the heat kernel of the interval: on the mirrored signal it multiplies the k-th
    frequency by exp(-(pi k sigma)^2 / 2).
    """
    cells = residual.shape[1]
    spectrum = np.fft.rfft(np.concatenate([residual, residual[:, ::-1]], axis=1))
    decay = -0.5 * (np.pi * np.arange(spectrum.shape[1])) ** 2
    low, high = np.zeros(len(residual)), np.ones(len(residual))
    for _ in range(16):
        sigma = (low + high) / 2
        smoothed = np.fft.irfft(spectrum * np.exp(decay * sigma[:, None] ** 2), n=2 * cells)[:, :cells]
        above = np.abs(smoothed).sum(axis=1) > sigma  # the left side falls with sigma, the right side rises
        low, high = np.where(above, sigma, low), np.where(above, high, sigma)
    return np.where(np.abs(residual).sum(axis=1) < 1e-12, 0.0, (low + high) / 2)


def _ece_draws(confidence: np.ndarray, correct: np.ndarray, bins: int, weights: np.ndarray) -> np.ndarray:
    gaps = np.eye(bins)[bin_index(confidence, bins)] * (confidence - correct)[:, None]
    return np.abs(weights @ gaps).sum(axis=1) / len(confidence)


def _smooth_draws(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return smooth errors of resamples, moved by what the coarser grid changes in the full sample."""
    residual = _spread(confidence, COARSE_GRID) * (correct - confidence)[:, None] / len(confidence)
    coarse = _smooth(np.concatenate([residual.sum(axis=0)[None], weights @ residual]))
    return coarse[1:] - coarse[0] + smooth_ece(confidence, correct)


METRICS = (
    Metric(
        "ece",
        "expected calibration error: mean |accuracy - confidence| over equal-width bins",
        "lower",
        lambda a, s: ece(a.confidence, a.correct, s.bins),
        lambda a, s, weights: _ece_draws(a.confidence, a.correct, s.bins, weights),
        "pivotal",
    ),
    Metric(
        "smooth_ece",
        "smooth calibration error: as ECE, without bins",
        "lower",
        lambda a, s: smooth_ece(a.confidence, a.correct),
        lambda a, s, weights: _smooth_draws(a.confidence, a.correct, weights),
        "pivotal",
    ),
    mean_of(
        "signed_gap",
        "mean confidence minus accuracy: positive is overconfident",
        "zero",
        lambda a: a.confidence - a.correct,
    ),
    mean_of("confidence", "mean probability of the predicted choice", "none", lambda a: a.confidence),
    Metric(
        "feu_ece",
        "expected calibration error of FEU read as a confidence",
        "lower",
        lambda a, s: ece(feu_of(a), a.correct, s.bins),
        lambda a, s, weights: _ece_draws(feu_of(a), a.correct, s.bins, weights),
        "pivotal",
    ),
)
