"""Temperature scaling (Guo et al. 2017): one number, which the paper's tables lack, for every method alike."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from pydantic import Field

from uq4ct.posthoc.base import LIMIT, Calibrator, finite, labelled, residuals
from uq4ct.types import Prediction


class Temperature(Calibrator):
    """Divide the log of the averaged probabilities by one T, then renormalise: p_k^(1/T) / sum_j p_j^(1/T).

    T > 1 makes answers less certain; no T changes which choice is the most probable, and T = 1 changes nothing.

    >>> p = Prediction(("1",), np.log([[[0.8, 0.2]]]), np.array([[True, True]]))
    >>> Temperature(items=1, temperature=2.0).apply(p).probabilities.round(6).tolist()
    [[0.666667, 0.333333]]
    """

    name: ClassVar[str] = "temperature"
    summary: ClassVar[str] = "one temperature"

    temperature: float = Field(gt=0)

    @classmethod
    def fit(cls, prediction: Prediction, answer: np.ndarray) -> Self:
        """Fit T by the mean NLL, to float64 precision, with log T in [-3, 3].

        NLL is convex in 1/T, so its derivative changes sign once and is searched for that. Where all calibration
        answers are right (or worse than chance) it never does: T is the bound, and ``at_bound`` says so.
        """
        log_probs, answer, _ = labelled(prediction, answer)
        log_t, at_bound = best_log_temperature(log_probs, answer)
        return cls(items=len(answer), at_bound=at_bound, temperature=float(np.exp(log_t)))

    def logits(self, prediction: Prediction) -> np.ndarray:
        """Return log p / T."""
        return prediction.log_probabilities / self.temperature

    def _fitted(self) -> str:
        return f"T = {self.temperature:.4g}"


def best_log_temperature(log_probs: np.ndarray, answer: np.ndarray) -> tuple[float, bool]:
    """Return the log T in [-3, 3] of the lowest mean NLL, and whether it is one of the ends."""
    from scipy.optimize import brentq

    below_top = log_probs - log_probs.max(axis=1, keepdims=True)  # residuals sum to 0; so uniform ones give exactly 0

    def slope(log_t: float) -> float:
        """Derivative of the mean NLL by 1/T: how far the expected log p lies above that of the answer."""
        return float((residuals(log_probs / np.exp(log_t), answer) * finite(below_top)).sum(axis=1).mean())

    coldest, hottest = slope(-LIMIT), slope(LIMIT)
    if coldest == hottest == 0:  # every prediction is uniform: T changes nothing
        return 0.0, False
    if coldest <= 0:
        return -LIMIT, True
    if hottest >= 0:
        return LIMIT, True
    return float(brentq(slope, -LIMIT, LIMIT, xtol=1e-13)), False
