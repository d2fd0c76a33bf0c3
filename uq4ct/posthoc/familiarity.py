"""Familiarity scaling: one temperature, raised where FEU (Eq. 9) is lower than the questions fitted on have it."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from pydantic import Field

from uq4ct.posthoc.base import LIMIT, Calibrator, labelled, mean_nll
from uq4ct.posthoc.feu import NO_FEU, feu_of, spread
from uq4ct.types import Prediction


class Familiarity(Calibrator):
    """Divide log p by T(x), log T = a + max(0, (mean - FEU(x)) / sd - 1), kept in [-3, 3].

    Mean and sd are those of FEU that the calibration split lets expect of a new question (``expected``). L_cal raises
    FEU on what the model was trained on, so that a low FEU says that a question is unlike that. How much surer than
    right a model is there cannot be fitted on questions like those of the training: the rise of log T is a constant,
    chosen on other questions (docs/study.md), and only a is fitted, with a standard normal prior, so that five
    questions that all were right do not make every answer certain. The most probable choice never changes.

    FEU hears wording more than knowledge, and on the encoder of docs/study.md length: there a question that is shorter
    than usual passes for familiar whatever it asks.

    >>> p = Prediction(("1", "2"), np.log([[[0.8, 0.2]]] * 2), np.full((2, 2), True), feu=np.array([0.5, 0.3]))
    >>> usual = Familiarity(items=9, level=0.0, feu_mean=0.5, feu_sd=0.1)
    >>> usual.apply(p).probabilities.round(3).tolist()                             # the second is 2 sd below: log T = 1
    [[0.8, 0.2], [0.625, 0.375]]
    """

    name: ClassVar[str] = "familiarity"
    summary: ClassVar[str] = "one temperature, raised where FEU is unusually low"

    level: float = Field(ge=-LIMIT, le=LIMIT)  # a
    feu_mean: float
    feu_sd: float | None = Field(gt=0)  # None: not known, and no FEU is unusual
    margin: float = Field(default=1.0, ge=0)  # standard deviations below the mean that are still usual
    rate: float = Field(default=1.0, gt=0)  # rise of log T for each further one

    @classmethod
    def fit(cls, prediction: Prediction, answer: np.ndarray) -> Self:
        """Fit a by NLL and prior, to within 1e-8.

        Raises UserError when the method has no FEU, and where a temperature cannot be fitted.
        """
        log_probs, answer, rows = labelled(prediction, answer)
        mean, sd = expected(feu_of(prediction)[rows])
        fitted = cls(items=len(answer), level=0.0, feu_mean=mean, feu_sd=sd)
        level = best_level(log_probs, answer, fitted.rise(prediction)[rows])
        return fitted.model_copy(update={"level": level, "at_bound": abs(level) > LIMIT - 1e-6})

    @classmethod
    def unfit(cls, questions: int, has_router: bool) -> list[str]:
        """Say where there is no FEU."""
        return [] if has_router else [NO_FEU]

    def logits(self, prediction: Prediction) -> np.ndarray:
        """Return log p / T(x)."""
        return prediction.log_probabilities / temperatures(self.level, self.rise(prediction))

    def rise(self, prediction: Prediction) -> np.ndarray:
        """Return by how much log T is raised for each question, (item,).

        >>> p = Prediction(("1", "2"), np.zeros((2, 1, 2)), np.full((2, 2), True), feu=np.array([0.41, 0.25]))
        >>> Familiarity(items=9, level=0.0, feu_mean=0.5, feu_sd=0.1).rise(p).round(9).tolist()
        [0.0, 1.5]
        """
        feu = feu_of(prediction)
        if self.feu_sd is None:
            return np.zeros(len(feu))
        return self.rate * np.maximum(0.0, (self.feu_mean - feu) / self.feu_sd - self.margin)

    def _fitted(self) -> str:
        level = f"T = {np.exp(self.level):.4g}"
        if self.feu_sd is None:
            return f"{level} for every question: too few of them, or all with the same FEU, to say what is unusual"
        usual = f"{self.feu_mean - self.margin * self.feu_sd:.4g}"
        return f"{level}, times e for each {self.feu_sd / self.rate:.3g} of FEU below {usual}"


def expected(feu: np.ndarray) -> tuple[float, float | None]:
    """Return mean and standard deviation that the FEU of some questions lets expect of another question's.

    They are those of Student's t, the prediction of a normal value by n others: s sqrt((1 + 1/n) (n - 1) / (n - 3)). Up
    to three questions allow none, and equal values say nothing about others: None.

    >>> mean, sd = expected(np.array([0.3, 0.4, 0.5, 0.6, 0.7]))
    >>> round(mean, 3), round(sd, 3), expected(np.full(9, 0.5)), expected(np.array([0.4, 0.5, 0.6]))[1]
    (0.5, 0.245, (0.5, None), None)
    """
    (mean, sd), n = spread(feu), len(feu)
    if not sd or n < 4:
        return mean, None
    return mean, sd * float(np.sqrt((n + 1) / (n - 3)))  # sd is that of n values: s^2 = sd^2 n / (n - 1)


def temperatures(level: float, rise: np.ndarray) -> np.ndarray:
    """Return T of each question, (item, 1)."""
    return np.exp(np.minimum(level + rise, LIMIT))[:, None]


def best_level(log_probs: np.ndarray, answer: np.ndarray, rise: np.ndarray) -> float:
    """Return the log T in [-3, 3] of the lowest NLL plus half its square.

    >>> sure, none = np.log([[0.9, 0.1]] * 5), np.zeros(5)
    >>> round(best_level(sure, np.zeros(5, int), none), 2), round(best_level(sure, np.array([0, 1, 0, 1, 0]), none), 2)
    (-0.49, 0.74)
    """
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        return len(answer) * mean_nll(log_probs / temperatures(log_t, rise), answer) + log_t**2 / 2

    step = 0.05  # the loss may have two valleys: where questions go, and 0
    start = min(np.arange(-LIMIT, LIMIT + step, step), key=loss)
    ends = max(-LIMIT, start - step), min(LIMIT, start + step)
    return float(minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-9}).x)
