"""The values that travel between the rooms of the house: a question, and a predictive distribution over its choices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase
from typing import Literal, NamedTuple

import numpy as np

FeuTokens = Literal["prompt", "last"]


class FeuReading(NamedTuple):
    """Which number of the router's kept probabilities FEU is (Eq. 9), and at which tokens it is read."""

    reduction: Literal["mass", "top1"] = "mass"
    tokens: FeuTokens = "prompt"


AS_IN_EQ_9 = FeuReading()


@dataclass(frozen=True, slots=True)
class Question:
    """A multiple-choice question. The prompt shows letters A, B, C, ...; results use ``labels``, the row's own.

    >>> Question(id="1", question="Which melts first?", choices=("ice", "iron"), labels=("1", "2"), answer=0).gold
    '1'
    """

    id: str
    question: str
    choices: tuple[str, ...]
    labels: tuple[str, ...]
    answer: int | None = None  # index into choices; None where the answer is unknown
    context: str = ""  # a passage shown before the question; the only field that may ever be shortened
    group: str | None = None  # for clustered errors, e.g. the MMLU subject
    stratum: str | None = None  # the bundled world's kind of fact
    true_probabilities: tuple[float, ...] | None = None  # known in the bundled world only
    place: str = ""  # "file.jsonl:17", for messages

    def __post_init__(self) -> None:
        if not 2 <= len(self.choices) <= 26:
            raise ValueError(f"a question has 2 to 26 choices, got {len(self.choices)}")
        if len(self.labels) != len(self.choices) or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"one distinct label per choice, got {self.labels} for {len(self.choices)} choices")
        if self.answer is not None and not 0 <= self.answer < len(self.choices):
            raise ValueError(f"answer index {self.answer} is outside the {len(self.choices)} choices")

    @property
    def gold(self) -> str | None:
        """The gold answer as the row's own label."""
        return None if self.answer is None else self.labels[self.answer]


@dataclass(frozen=True)
class Prediction:
    """The predictive distribution of any method over questions: the one currency of metrics, reports and servers.

    ``logits`` has shape (item, sample, choice), float64, ``-inf`` where an item has no such choice; a method with one
    forward pass has one sample. ``feu`` (item,) is Eq. 9 where there is a router: despite its name a CONFIDENCE, large
    means certain. ``letter_mass`` (item,) is the probability of the item's letters under the full vocabulary.

    >>> p = Prediction(ids=("a",), logits=np.log([[[0.9, 0.1], [0.1, 0.9]]]), mask=np.array([[True, True]]))
    >>> p.probabilities.round(6).tolist(), round(float(p.epistemic[0]), 6)
    ([[0.5, 0.5]], 0.368064)
    """

    ids: tuple[str, ...]
    logits: np.ndarray
    mask: np.ndarray
    feu: np.ndarray | None = None
    letter_mass: np.ndarray | None = None

    def __post_init__(self) -> None:
        items, _, choices = self.logits.shape
        if len(self.ids) != items or self.mask.shape != (items, choices):
            raise ValueError(f"{len(self.ids)} ids, logits {self.logits.shape} and mask {self.mask.shape} do not fit")
        if not np.isneginf(self.logits[~np.broadcast_to(self.mask[:, None], self.logits.shape)]).all():
            raise ValueError("logits of choices that an item does not have must be -inf")

    @property
    def not_finite(self) -> list[str]:
        """Ids of the items with a choice whose logit is NaN or infinite, in any sample: they have no distribution."""
        wrong = ~np.isfinite(self.logits) & self.mask[:, None]
        return [name for name, row in zip(self.ids, wrong.any(axis=(1, 2)), strict=True) if row]

    @cached_property
    def log_probs(self) -> np.ndarray:
        """Log-probabilities of each sample, (item, sample, choice)."""
        shifted = self.logits - self.logits.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Probabilities averaged over samples, (item, choice); zero where an item has no such choice."""
        return np.exp(self.log_probs).mean(axis=1)

    @cached_property
    def log_probabilities(self) -> np.ndarray:
        """Logarithm of the averaged probabilities, (item, choice), computed without leaving logarithms."""
        highest = self.log_probs.max(axis=1, keepdims=True)
        safe = np.where(np.isfinite(highest), highest, 0.0)
        with np.errstate(divide="ignore"):
            return np.log(np.exp(self.log_probs - safe).mean(axis=1)) + safe[:, 0]

    @property
    def predicted(self) -> np.ndarray:
        """Index of the most probable choice, (item,)."""
        return self.probabilities.argmax(axis=-1)

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted choice (Eq. 17), (item,)."""
        return self.probabilities.max(axis=-1)

    @property
    def total(self) -> np.ndarray:
        """Entropy of the averaged distribution in nats, (item,)."""
        return _entropy(self.probabilities)

    @property
    def aleatoric(self) -> np.ndarray:
        """Mean entropy of the samples in nats, (item,)."""
        return _entropy(np.exp(self.log_probs)).mean(axis=1)

    @property
    def epistemic(self) -> np.ndarray:
        """Mutual information between answer and sample in nats, (item,); zero for a method with one pass."""
        return np.maximum(self.total - self.aleatoric, 0.0)


def position_names(count: int) -> tuple[str, ...]:
    """Return names for the positions of so many choices: A, B, C, ..., or 0, 1, 2, ... above 26.

    >>> position_names(3), position_names(27)[-1]
    (('A', 'B', 'C'), '26')
    """
    return tuple(ascii_uppercase[:count]) if count <= len(ascii_uppercase) else tuple(map(str, range(count)))


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    safe = np.where(probabilities > 0, probabilities, 1.0)
    return -(probabilities * np.log(safe)).sum(axis=-1)
