"""Can a score of uncertainty tell questions of another kind from those like the training's?

Sets under shift differ in accuracy too, so any score stands beside 1 - confidence, the baseline that needs no method.
"""

from __future__ import annotations

import numpy as np

from uq4ct.metrics.selective import auroc


def ood_auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Return the chance that a question from outside has a higher uncertainty than one from inside, ties counting 1/2.

    >>> ood_auroc([0.1, 0.2], [0.2, 0.9])
    0.875
    """
    inside, outside = _scores(inside, outside)
    return auroc(np.concatenate([outside, inside]), np.repeat([1.0, 0.0], [len(outside), len(inside)]))


def ood_fpr(inside: np.ndarray, outside: np.ndarray, tpr: float = 0.95) -> float:
    """Return the share of inside questions that are flagged when at least ``tpr`` of those from outside are.

    A question is flagged from a threshold of uncertainty on. The other reading, where inside is what must be kept, is
    ``ood_fpr(-outside, -inside)``.

    >>> ood_fpr([0.1, 0.2, 0.3], [0.3, 0.8, 0.9])
    0.3333333333333333
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr lies in (0, 1], got {tpr}")
    inside, outside = _scores(inside, outside)
    flagged = int(np.ceil(tpr * len(outside) - 1e-9))
    return float((inside >= np.sort(outside)[::-1][flagged - 1]).mean())


def _scores(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inside, outside = np.asarray(inside, dtype=np.float64), np.asarray(outside, dtype=np.float64)
    if inside.ndim != 1 or outside.ndim != 1 or not len(inside) or not len(outside):
        raise ValueError(f"expected one score per question on both sides, got {inside.shape} and {outside.shape}")
    if np.isnan(inside).any() or np.isnan(outside).any():
        raise ValueError("a score is not a number")
    return inside, outside
