"""Does a score tell shifted questions from those like the training questions? Compare any score with the confidence.

A score here is an UNCERTAINTY: large means unlike the training questions. Of a confidence (FEU too) pass the negative.
"""

from __future__ import annotations

import numpy as np

from uq4ct.metrics.answers import Undefined


def ood_auroc(in_distribution: np.ndarray, shifted: np.ndarray) -> float:
    """Return the chance that a shifted question has a higher score than an in-distribution one, ties counting 1/2.

    Raises Undefined where either side has no question.

    >>> ood_auroc([0.1, 0.4], [0.4, 0.9])
    0.875
    """
    inside, outside = _checked(in_distribution, shifted)
    return float(ood_auroc_draws(inside, outside, np.ones((1, len(inside))), np.ones((1, len(outside))))[0])


def ood_auroc_draws(
    in_distribution: np.ndarray, shifted: np.ndarray, in_weights: np.ndarray, shifted_weights: np.ndarray
) -> np.ndarray:
    """Return ``ood_auroc`` of weighted resamples, (draw,); weights are (draw, n), one set for each side.

    >>> ood_auroc_draws([0.1, 0.4], [0.4, 0.9], np.array([[0.0, 2.0]]), np.array([[2.0, 0.0]])).tolist()
    [0.5]
    """
    inside, outside = _checked(in_distribution, shifted)
    order = np.argsort(inside, kind="stable")
    below = np.pad(np.cumsum(in_weights[:, order], axis=1), ((0, 0), (1, 0)))  # weight of the k lowest
    less, not_more = (np.searchsorted(inside[order], outside, side) for side in ("left", "right"))
    wins = ((below[:, less] + below[:, not_more]) * shifted_weights).sum(axis=1) / 2
    return wins / (in_weights.sum(axis=1) * shifted_weights.sum(axis=1))


def fpr_at_recall(in_distribution: np.ndarray, shifted: np.ndarray, recall: float = 0.95) -> float:
    """Return the share of shifted questions that pass at the threshold which lets ``recall`` of the others pass.

    FPR@95 with in-distribution questions as the positives (Liang et al. 2018): the threshold is the smallest score at
    or below which at least 95 % of them lie. 0 is perfect, and a score without information gives about 0.95. Raises
    Undefined where either side has no question.

    >>> fpr_at_recall([0.1, 0.2, 0.3, 0.4], [0.35, 0.45, 0.5, 0.9], recall=0.75)
    0.0
    """
    inside, outside = _checked(in_distribution, shifted)
    if not 0 < recall <= 1:
        raise ValueError(f"recall lies in (0, 1], got {recall}")
    kept = int(np.ceil(recall * len(inside) - 1e-9))  # 0.95 * 20 is 19.000000000000004 on some machines
    return float((outside <= np.sort(inside)[kept - 1]).mean())


def _checked(in_distribution: np.ndarray, shifted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 vectors."""
    inside, outside = np.asarray(in_distribution, np.float64), np.asarray(shifted, np.float64)
    if inside.ndim != 1 or outside.ndim != 1 or np.isnan(inside).any() or np.isnan(outside).any():
        raise ValueError("expected one score per question, none of them NaN")
    if not len(inside) or not len(outside):
        raise Undefined("needs in-distribution and shifted questions")
    return inside, outside
