"""What every calibrator is: a frozen value fitted on calibration questions that maps a prediction to a better one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from uq4ct.errors import UserError
from uq4ct.types import Prediction

LIMIT = 3.0  # log T stays in [-3, 3]: temperatures from 1/20 to 20


class Calibrator(BaseModel, ABC):
    """A map of the log of the averaged probabilities, fitted by their negative log-likelihood (NLL).

    A file of this folder with one subclass is one calibrator. Samples are averaged first and calibrated then, so a
    calibrated prediction has one sample, and no epistemic part. ``apply`` depends on nothing but its argument: under
    shift the values fitted on the run's own calibration split are kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    summary: ClassVar[str]

    items: int  # calibration questions that it was fitted on
    at_bound: bool = False  # a value lies at the end of what the search allows: NLL would go on falling

    @classmethod
    @abstractmethod
    def fit(cls, prediction: Prediction, answer: np.ndarray) -> Self:
        """Fit on calibration questions with their answers, (item,), an index into the choices; negative if unknown.

        Raises UserError where it cannot be fitted: too few questions, no FEU, or an answer given probability 0, whose
        NLL no scaling makes finite.
        """

    @classmethod
    def unfit(cls, questions: int, has_router: bool) -> list[str]:
        """Return why it cannot be fitted on so many calibration questions of a method with or without a router."""
        return []

    @abstractmethod
    def logits(self, prediction: Prediction) -> np.ndarray:
        """Return calibrated logits, (item, choice); ``-inf`` where an item has no such choice."""

    def apply(self, prediction: Prediction) -> Prediction:
        """Return the calibrated prediction: one sample; ids, mask, FEU and letter mass as they were."""
        return replace(prediction, logits=log_softmax(self.logits(prediction))[:, None])

    def describe(self) -> str:
        """Say in one line what was fitted."""
        bound = ", at the end of the search: the calibration split cannot tell" if self.at_bound else ""
        return f"{self._fitted()} ({self.items} calibration questions{bound})"

    def _fitted(self) -> str:
        return self.summary

    def to_dict(self) -> dict[str, Any]:
        """Return the calibrator as a JSON value."""
        return {"name": self.name, **self.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Make the calibrator that a JSON value names. Raises UserError where it is none."""
        from uq4ct.posthoc import calibrator

        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise UserError(f"not a calibrator: expected an object with a 'name', got {value!r}")
        kind = calibrator(value["name"])
        if not issubclass(kind, cls):
            raise UserError(f"expected the calibrator '{cls.name}', got '{kind.name}'")
        try:
            return kind(**{key: entry for key, entry in value.items() if key != "name"})
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise UserError([f"calibrator '{kind.name}': {problem}" for problem in problems]) from error


def labelled(prediction: Prediction, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log-probabilities (item, choice), answers and rows of the questions whose answer is known.

    Raises UserError when there is none, or when an answer was given probability 0.
    """
    answer = np.asarray(answer)
    if answer.shape != (len(prediction.ids),):
        raise ValueError(f"expected one answer for each of {len(prediction.ids)} questions, got shape {answer.shape}")
    rows = np.flatnonzero(answer >= 0)
    if not len(rows):
        raise UserError(
            "no calibration question has a known answer, so nothing can be fitted; keep a part of the training "
            "questions for calibration, or use the method without a calibrator"
        )
    log_probs, answer = prediction.log_probabilities[rows], answer[rows]
    if not prediction.mask[rows, answer].all():
        raise ValueError("an answer is no choice of its question")
    impossible = np.isneginf(log_probs[np.arange(len(rows)), answer])
    if impossible.any():
        raise UserError(
            f"{impossible.sum()} of {len(rows)} calibration answers have probability 0, which no calibrator can repair "
            f"(first: question '{prediction.ids[rows[impossible.argmax()]]}'); keep logits or more digits"
        )
    return log_probs, answer, rows


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return normalised log-probabilities over the last axis.

    >>> np.exp(log_softmax(np.array([1.0, 1.0, -np.inf]))).tolist()
    [0.5, 0.5, 0.0]
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def mean_nll(logits: np.ndarray, answer: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the answers in nats.

    >>> round(mean_nll(np.zeros((1, 2)), np.array([0])), 6)
    0.693147
    """
    return float(-log_softmax(logits)[np.arange(len(answer)), answer].mean())


def residuals(logits: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Return the gradient of each item's NLL by its logits: probabilities minus the one-hot answer, (item, choice)."""
    gradient = np.exp(log_softmax(logits))
    gradient[np.arange(len(answer)), answer] -= 1.0
    return gradient


def finite(log_probs: np.ndarray) -> np.ndarray:
    """Return log-probabilities with 0 for ``-inf``, whose residual is 0 too, so that their product is 0."""
    return np.where(np.isneginf(log_probs), 0.0, log_probs)
