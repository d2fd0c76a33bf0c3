"""Smooth calibration error (Blasiok and Nakkiran 2023): no bins, so no borders to choose."""

from __future__ import annotations

from typing import Any

import numpy as np

from uq4ct.metrics.answers import Answers, Metric, check_pairs
from uq4ct.metrics.calibration_error import cell_table

GRID = 512  # cells of the smooth error: value within 1e-4 of the continuous one
COARSE_GRID = 128  # the same for bootstrap draws, where only differences count


def smooth_ece(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the smooth calibration error.

    The residuals (correct - confidence), placed at their confidence, are smoothed by a Gaussian reflected at 0 and 1;
    its width is the fixed point sigma = integral |smoothed residual|. The error is that width. A confidence of
    exactly 0 or 1 keeps its whole weight, as the definition says; the authors' package (relplot 1.0.3) halves it.

    >>> round(smooth_ece([0.7] * 10, [1] * 7 + [0] * 3), 6)
    0.0
    """
    confidence, correct = check_pairs(confidence, correct)
    cells, share = _places(confidence, GRID)
    residual = sum(
        np.bincount(cells + side, weights=part * (correct - confidence), minlength=GRID)
        for side, part in ((0, 1 - share), (1, share))
    )
    return float(_smooth(np.asarray(residual)[None] / len(confidence))[0])


def _places(confidence: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cell below each item, and the share of the item that goes to the next: the grid moves no mass."""
    place = np.clip(confidence * cells - 0.5, 0, cells - 1)
    left = np.minimum(place.astype(np.int64), cells - 2)
    return left, place - left


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


def _draws(answers: Answers, weights: np.ndarray) -> np.ndarray:
    """Return smooth errors of resamples, moved by what the coarser grid changes in the full sample."""
    residual = answers.correct - answers.confidence

    def table() -> Any:
        left, share = _places(answers.confidence, COARSE_GRID)
        parts = np.stack([(1 - share) * residual, share * residual], axis=1)
        return cell_table(np.stack([left, left + 1], axis=1), parts, COARSE_GRID)

    spread = answers.once("spread residuals", table)
    sums = np.concatenate([np.asarray(spread.sum(axis=0))[None] / answers.n, weights @ spread / _totals(weights)])
    coarse = _smooth(sums)
    return coarse[1:] - coarse[0] + answers.once("smooth", lambda: smooth_ece(answers.confidence, answers.correct))


def _totals(weights: np.ndarray) -> np.ndarray:
    return weights.sum(axis=1, keepdims=True)


METRICS = (
    Metric(
        "smooth_ece",
        "smooth calibration error: as ECE, without bins",
        "lower",
        lambda a, s: smooth_ece(a.confidence, a.correct),
        lambda a, s, weights: _draws(a, weights),
        "pivotal",
    ),
)
