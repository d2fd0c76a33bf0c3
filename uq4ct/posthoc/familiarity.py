"""Familiarity scaling: one temperature, raised where FEU (Eq. 9) is lower than the questions fitted on have it."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from pydantic import Field

from uq4ct.posthoc.base import LIMIT, Calibrator, labelled, mean_nll
from uq4ct.posthoc.feu import NO_FEU, feu_of, spread
from uq4ct.types import Prediction

MARGIN = 1.0  # standard deviations below the mean that are still usual
RATE = 1.0  # rise of log T for each further one


class Familiarity(Calibrator):
    """Divide log p by T(x), log T = a + max(0, (mean - FEU(x)) / sd - 1), kept in [-3, 3].

    Mean and sd are those of FEU on the calibration split. L_cal raises FEU on what the model was trained on, so that a
    low FEU says that a question is unlike that. How much surer than right a model is there cannot be fitted on
    questions like those of the training: the rise of log T is a constant, chosen on other questions (docs/study.md),
    and only a is fitted, with a standard normal prior, so that five questions that all were right do not make every
    answer certain. The most probable choice never changes.

    >>> p = Prediction(("1", "2"), np.log([[[0.8, 0.2]]] * 2), np.full((2, 2), True), feu=np.array([0.5, 0.3]))
    >>> usual = Familiarity(items=9, level=0.0, feu_mean=0.5, feu_sd=0.1)
    >>> usual.apply(p).probabilities.round(3).tolist()                             # the second is 2 sd below: log T = 1
    [[0.8, 0.2], [0.625, 0.375]]
    """

    name: ClassVar[str] = "familiarity"
    summary: ClassVar[str] = "one temperature, raised where FEU is unusually low"

    level: float = Field(ge=-LIMIT, le=LIMIT)  # a
    feu_mean: float
    feu_sd: float = Field(gt=0)

    @classmethod
    def fit(cls, prediction: Prediction, answer: np.ndarray) -> Self:
        """Fit a by NLL and prior to within 1e-8; raise UserError when the method has no FEU."""
        log_probs, answer, rows = labelled(prediction, answer)
        feu = feu_of(prediction)[rows]
        mean, sd = spread(feu)
        sd = sd or 1.0
        flattened = log_probs / np.exp(rise(feu, mean, sd))[:, None]
        return cls(items=len(answer), level=best_level(flattened, answer), feu_mean=mean, feu_sd=sd)

    @classmethod
    def unfit(cls, questions: int, has_router: bool) -> list[str]:
        """Say where there is no FEU."""
        return [] if has_router else [NO_FEU]

    def logits(self, prediction: Prediction) -> np.ndarray:
        """Return log p / T(x)."""
        log_t = self.level + rise(feu_of(prediction), self.feu_mean, self.feu_sd)
        return prediction.log_probabilities / np.exp(np.minimum(log_t, LIMIT))[:, None]

    def _fitted(self) -> str:
        usual = f"{self.feu_mean - MARGIN * self.feu_sd:.4g}"
        return f"T = {np.exp(self.level):.4g}, times e for each {self.feu_sd / RATE:.3g} of FEU below {usual}"


def best_level(log_probs: np.ndarray, answer: np.ndarray) -> float:
    """Return the log T in [-3, 3] of the lowest NLL plus half its square.

    >>> sure = np.log([[0.9, 0.1]] * 5)
    >>> round(best_level(sure, np.zeros(5, dtype=int)), 2), round(best_level(sure, np.array([0, 1, 0, 1, 0])), 2)
    (-0.49, 0.74)
    """
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        return len(answer) * mean_nll(log_probs / np.exp(log_t), answer) + log_t**2 / 2

    step = 0.05  # the loss may have two valleys: where questions go, and 0
    start = min(np.arange(-LIMIT, LIMIT + step, step), key=loss)
    ends = max(-LIMIT, start - step), min(LIMIT, start + step)
    return float(minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-9}).x)


def rise(feu: np.ndarray, mean: float, sd: float) -> np.ndarray:
    """Return by how much log T is raised for each FEU.

    >>> rise(np.array([0.7, 0.5, 0.4, 0.25]), mean=0.5, sd=0.1).round(9).tolist()
    [0.0, 0.0, 0.0, 1.5]
    """
    return RATE * np.maximum(0.0, (mean - feu) / sd - MARGIN)
