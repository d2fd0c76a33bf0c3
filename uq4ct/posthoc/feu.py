"""FEU-aware scaling: a temperature for each question that follows its FEU (Eq. 9), so that FEU reaches the answer."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from pydantic import Field

from uq4ct.errors import UserError
from uq4ct.posthoc.base import LIMIT, Calibrator, finite, labelled, mean_nll, residuals
from uq4ct.posthoc.temperature import best_log_temperature
from uq4ct.types import Prediction

NO_FEU = (
    "calibration by FEU needs a method with a router (mixlora, confidence_loss, uq4ct), and this one has none; "
    "use temperature"
)


class FeuScaling(Calibrator):
    """Divide log p by T(x), log T = a + b (FEU(x) - mean) / sd, kept in [-3, 3]; mean and sd of the calibration split.

    FEU is a CONFIDENCE: high FEU means a low temperature, b <= 0. A slope of the other sign would be noise of the
    calibration split, and far from it, under shift, would make the least familiar questions the surest. The most
    probable choice never changes, but the order of confidences between questions does.
    """

    name: ClassVar[str] = "feu"
    summary: ClassVar[str] = "a temperature that follows FEU"

    level: float = Field(ge=-LIMIT, le=LIMIT)  # a
    slope: float = Field(ge=-LIMIT, le=0)  # b
    feu_mean: float
    feu_sd: float = Field(gt=0)

    @classmethod
    def fit(cls, prediction: Prediction, answer: np.ndarray) -> Self:
        """Fit a and b <= 0 by the mean NLL (L-BFGS, exact gradient, from the best single temperature).

        A constant FEU leaves b = 0, and so does one that is higher where the answers are worse. Raises UserError when
        the method has no FEU.
        """
        log_probs, answer, rows = labelled(prediction, answer)
        feu = feu_of(prediction)[rows]
        mean, sd = spread(feu)
        if not sd:
            level, at_bound = best_log_temperature(log_probs, answer)
            return cls(items=len(answer), at_bound=at_bound, level=level, slope=0.0, feu_mean=mean, feu_sd=1.0)
        level, slope = _fitted(log_probs, answer, (feu - mean) / sd)
        at_bound = max(abs(level), -slope) >= LIMIT - 1e-9
        return cls(items=len(answer), at_bound=at_bound, level=level, slope=slope, feu_mean=mean, feu_sd=sd)

    @classmethod
    def unfit(cls, questions: int, has_router: bool) -> list[str]:
        """Say where there is no FEU."""
        return [] if has_router else [NO_FEU]

    def logits(self, prediction: Prediction) -> np.ndarray:
        """Return log p / T(x)."""
        z = (feu_of(prediction) - self.feu_mean) / self.feu_sd
        return prediction.log_probabilities / np.exp(log_temperature(self.level, self.slope, z))[:, None]

    def _fitted(self) -> str:
        return f"log T = {self.level:.4g} {self.slope:+.4g} x (FEU - {self.feu_mean:.4g}) / {self.feu_sd:.4g}"


def log_temperature(level: float, slope: float, z: np.ndarray) -> np.ndarray:
    """Return a + b z of each item, kept in [-3, 3].

    >>> log_temperature(0.5, -1.0, np.array([0.5, 10.0])).tolist()
    [0.0, -3.0]
    """
    return np.clip(level + slope * z, -LIMIT, LIMIT)


def objective(values: np.ndarray, log_probs: np.ndarray, answer: np.ndarray, z: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean NLL for (a, b) and its gradient."""
    level, slope = values
    log_t = log_temperature(level, slope, z)
    logits = log_probs / np.exp(log_t)[:, None]
    by_log_t = -(residuals(logits, answer) * finite(logits)).sum(axis=1)
    by_log_t = np.where(np.abs(level + slope * z) > LIMIT, 0.0, by_log_t) / len(answer)
    return mean_nll(logits, answer), np.array([by_log_t.sum(), (by_log_t * z).sum()])


def _fitted(log_probs: np.ndarray, answer: np.ndarray, z: np.ndarray) -> tuple[float, float]:
    """Return the best (a, b) from two starts, as the NLL may have several valleys; never worse than one T."""
    from scipy.optimize import minimize

    single, _ = best_log_temperature(log_probs, answer)
    best, lowest = np.array([single, 0.0]), objective(np.array([single, 0.0]), log_probs, answer, z)[0]
    for start in (0.0, -0.5):
        options = {"ftol": 1e-15, "gtol": 1e-10}
        bounds = [(-LIMIT, LIMIT), (-LIMIT, 0.0)]
        found = minimize(
            objective, [single, start], (log_probs, answer, z), "L-BFGS-B", jac=True, bounds=bounds, options=options
        )
        if found.fun < lowest:
            best, lowest = found.x, found.fun
    return float(best[0]), float(best[1])


def spread(feu: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of FEU, 0 for that of a constant."""
    sd = float(feu.std())
    return float(feu.mean()), sd if sd > 1e-12 else 0.0  # constant but for rounding


def feu_of(prediction: Prediction) -> np.ndarray:
    """Return the FEU of each item, (item,); raise UserError when the method has none, or one that is no number."""
    if prediction.feu is None:
        raise UserError(NO_FEU)
    if not np.isfinite(prediction.feu).all():
        first = prediction.ids[int(np.argmin(np.isfinite(prediction.feu)))]
        raise UserError(f"the FEU of question '{first}' is not a number, so that no answer can be scaled by it")
    return prediction.feu
