"""Vector scaling (Guo et al. 2017) by letter position: also takes away a liking for one letter as such."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from pydantic import model_validator

from uq4ct.errors import UserError
from uq4ct.posthoc.base import Calibrator, finite, labelled, mean_nll, residuals
from uq4ct.types import Prediction

FEWEST = 200  # 2K numbers fitted on fewer questions follow their noise


class Vector(Calibrator):
    """Scale and shift the log-probability at each letter position k: a_k log p_k + b_k, renormalised.

    A question with fewer choices uses the first positions only. The fit carries the penalty of a normal prior of
    standard deviation 1 around a = 1, b = 0 (on the summed NLL), so that a letter hardly seen stays as it is. A letter
    never seen in the calibration split gets the mean scale and the mean shift of the others.

    >>> p = Prediction(("1",), np.log([[[0.5, 0.5]]]), np.array([[True, True]]))
    >>> fitted = Vector(items=200, scale=(1.0, 1.0), shift=(0.0, float(np.log(3))))
    >>> fitted.apply(p).probabilities.round(6).tolist()
    [[0.25, 0.75]]
    """

    name: ClassVar[str] = "vector"
    summary: ClassVar[str] = "one scale and one shift per letter"

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    @model_validator(mode="after")
    def _one_of_each_per_letter(self) -> Self:
        if not 0 < len(self.scale) == len(self.shift):
            raise ValueError(f"expected as many scales as shifts, got {len(self.scale)} and {len(self.shift)}")
        return self

    @classmethod
    def fit(cls, prediction: Prediction, answer: np.ndarray) -> Self:
        """Fit scales and shifts by the mean NLL plus penalty (L-BFGS, exact gradient). Needs 200 questions."""
        log_probs, answer, _ = labelled(prediction, answer)
        if problems := cls.unfit(len(answer), has_router=False):
            raise UserError(problems)
        seen = int(np.flatnonzero((~np.isneginf(log_probs)).any(axis=0))[-1]) + 1
        scale, shift = _fitted(log_probs[:, :seen], answer)
        return cls(items=len(answer), scale=tuple(scale.tolist()), shift=tuple(shift.tolist()))

    @classmethod
    def unfit(cls, questions: int, has_router: bool) -> list[str]:
        """Say where there are some questions, but fewer than 200."""
        if questions >= FEWEST or not questions:
            return []
        return [
            f"vector scaling needs at least {FEWEST} calibration questions with a known answer, got {questions}; "
            "keep more for calibration, or use temperature"
        ]

    def logits(self, prediction: Prediction) -> np.ndarray:
        """Return a_k log p_k + b_k."""
        log_probs = prediction.log_probabilities
        unseen = max(0, log_probs.shape[1] - len(self.scale))
        scale, shift = (
            np.append(values, [np.mean(values)] * unseen)[: log_probs.shape[1]] for values in (self.scale, self.shift)
        )
        return scaled(log_probs, scale, shift)

    def _fitted(self) -> str:
        parts = zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", self.scale, self.shift, strict=False)
        return "log p of " + ", ".join(f"{letter} x {a:.3g} {b:+.3g}" for letter, a, b in parts)


def scaled(log_probs: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return a_k log p_k + b_k; what has probability 0, or is no choice, keeps it whatever the sign of a_k."""
    return np.where(np.isneginf(log_probs), -np.inf, scale * finite(log_probs) + shift)


def objective(values: np.ndarray, log_probs: np.ndarray, answer: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean NLL with its penalty for (a, b) in one vector, and the gradient."""
    scale, shift = np.split(values, 2)
    logits = scaled(log_probs, scale, shift)
    off = np.concatenate([scale - 1, shift])
    slope = residuals(logits, answer) / len(answer)
    gradient = np.concatenate([(slope * finite(log_probs)).sum(axis=0), slope.sum(axis=0)])
    return mean_nll(logits, answer) + float(off @ off) / (2 * len(answer)), gradient + off / len(answer)


def _fitted(log_probs: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.optimize import minimize

    letters = log_probs.shape[1]
    start = np.concatenate([np.ones(letters), np.zeros(letters)])
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10_000}
    found = minimize(objective, start, (log_probs, answer), method="L-BFGS-B", jac=True, options=options)
    scale, shift = np.split(found.x, 2)
    return scale, shift
