"""What a metric reads (scored answers with their gold labels) and what a metric is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np

from uq4ct.errors import UserError
from uq4ct.metrics.ranking import RankedDraws, Ranking
from uq4ct.metrics.sampling import Decomposition, decompose

Made = TypeVar("Made")


class Undefined(ValueError):
    """A metric has no value for these answers; the message is the reason that results print beside the null."""


@dataclass(frozen=True)
class Answers:
    """Hold n labelled answers as arrays; ``K`` is the largest number of choices, ``mask`` says which choices a row has.

    ``probabilities`` and ``log_probs`` have shape (n, K), zero and ``-inf`` where a row has no such choice. They are
    kept apart: 0.2 is not always ``exp(log(0.2))`` (bin edges matter), and logits still tell 1e-40 from 0.
    ``answer`` (n,) is the index of the gold choice. ``feu`` is a CONFIDENCE, despite its name.

    >>> a = Answers.of([[0.7, 0.3], [0.6, 0.4]], answer=[0, 1])
    >>> a.confidence.tolist(), a.correct.tolist()
    ([0.7, 0.6], [1.0, 0.0])
    """

    probabilities: np.ndarray
    log_probs: np.ndarray
    mask: np.ndarray
    answer: np.ndarray
    feu: np.ndarray | None = None
    letter_mass: np.ndarray | None = None
    true_probabilities: np.ndarray | None = None
    strata: tuple[str | None, ...] | None = None
    kept: np.ndarray | None = None  # (n,) bool: answers that an abstain rule lets through
    groups: np.ndarray | None = None  # (n,) whole numbers: answers of one group (a passage, a subject) belong together
    entropies: Decomposition | None = None  # of methods with several passes
    ginis: Decomposition | None = None
    length: np.ndarray | None = None  # (n,) characters of passage, question and choices
    unlabelled: int = 0  # rows that were left out because their gold label is unknown
    chosen: np.ndarray | None = None  # (n,) index of the choice that was predicted; the most probable one without it
    _made: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _drawn: list[Any] = field(default_factory=lambda: [None, {}], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows, choices = self.probabilities.shape
        if rows == 0:
            raise ValueError("no labelled answers: every metric needs at least one")
        shapes = self.log_probs.shape, self.mask.shape, self.answer.shape
        if shapes != ((rows, choices), (rows, choices), (rows,)):
            raise ValueError(f"log_probs, mask and answer {shapes} do not fit probabilities {(rows, choices)}")
        check_unit_interval(self.probabilities, "probabilities")
        if self.probabilities[~self.mask].any():
            raise ValueError("choices that a row does not have must have probability 0")
        if self.answer.min() < 0 or self.answer.max() >= choices or not self.mask[np.arange(rows), self.answer].all():
            raise ValueError("every answer must be the index of a choice that its row has")

    @classmethod
    def of(cls, probabilities: object, answer: object, **fields: object) -> Answers:
        """Make answers from probabilities alone, where every row has all choices."""
        values = np.asarray(probabilities, dtype=np.float64)
        everywhere = np.ones(values.shape, bool)
        return cls(values, _log(values), everywhere, np.asarray(answer, dtype=np.int64), **fields)  # type: ignore[arg-type]

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]]) -> Answers:
        """Make answers from prediction rows; rows without a label are left out and counted.

        Log-probabilities come from ``logits`` where a row has them, predictions from ``prediction``. Rows without any
        distribution become ``Confidences``. Raises UserError when no row has a label, or a prediction is no choice.
        """
        if rows and all(row.get("probabilities") is None for row in rows):
            from uq4ct.metrics.confidences import Confidences

            return Confidences.of_rows(rows)
        labelled = [row for row in rows if row.get("label") is not None]
        if not labelled:
            raise UserError(f"none of the {len(rows)} predictions has a label; metrics need the gold answers")
        sizes = np.array([len(row["probabilities"]) for row in labelled])
        shape = (len(labelled), int(sizes.max()))
        probabilities, logits, truth = np.zeros(shape), np.full(shape, -np.inf), np.zeros(shape)
        knows_truth = all(row.get("true_probabilities") is not None for row in labelled)
        has_logits = np.array([bool(row.get("logits")) for row in labelled])
        for i, row in enumerate(labelled):
            probabilities[i, : sizes[i]] = np.fromiter(row["probabilities"].values(), np.float64)
            if has_logits[i]:
                logits[i, : sizes[i]] = row["logits"]
            if knows_truth:
                truth[i, : sizes[i]] = row["true_probabilities"]
        log_probs = _log(probabilities)
        log_probs[has_logits] = _log_softmax(logits[has_logits])
        strata = tuple(row.get("stratum") for row in labelled)
        entropies, ginis = _passes(labelled)
        return cls(
            probabilities,
            log_probs,
            mask=np.arange(shape[1]) < sizes[:, None],
            answer=np.array([list(row["probabilities"]).index(row["label"]) for row in labelled]),
            feu=_column(labelled, "feu"),
            letter_mass=_column(labelled, "letter_mass"),
            true_probabilities=truth if knows_truth else None,
            strata=strata if any(strata) else None,
            kept=np.array([not row.get("abstained") for row in labelled]),
            groups=numbered([row.get("group") for row in labelled]),
            entropies=entropies,
            ginis=ginis,
            length=_lengths(labelled),
            unlabelled=len(rows) - len(labelled),
            chosen=np.array(list(map(_chosen, labelled))),
        )

    def take(self, index: np.ndarray) -> Answers:
        """Return the answers at these places, in this order; a place may be named several times.

        >>> Answers.of([[0.7, 0.3], [0.6, 0.4]], answer=[0, 1]).take(np.array([1, 1])).confidence.tolist()
        [0.6, 0.6]
        """
        taken: dict[str, Any] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, np.ndarray):
                taken[part.name] = value[index]
            elif isinstance(value, Decomposition):
                taken[part.name] = Decomposition(*(column[index] for column in value))
            elif isinstance(value, tuple):
                taken[part.name] = tuple(value[i] for i in index)
            elif part.init:
                taken[part.name] = value
        return Answers(**taken)

    def once(self, key: str, make: Callable[[], Made]) -> Made:
        """Return what ``make`` makes, made at the first call with this key only: resamples come in many blocks."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def once_for(self, weights: np.ndarray, key: str, make: Callable[[], Made]) -> Made:
        """Return what ``make`` makes of a block of resamples; kept until the next block, for metrics that share it."""
        if self._drawn[0] is not weights:
            self._drawn[:] = [weights, {}]
        if key not in self._drawn[1]:
            self._drawn[1][key] = make()
        return self._drawn[1][key]

    def ranked(self, weights: np.ndarray) -> RankedDraws:
        """Return a block of resamples ranked by confidence."""
        return self.once_for(weights, "ranked", lambda: RankedDraws.of(self.by_confidence, self.correct, weights))

    @property
    def n(self) -> int:
        """Number of answers."""
        return len(self.answer)

    @cached_property
    def predicted(self) -> np.ndarray:
        """Index of the predicted choice: ``chosen``, else the most probable one, the first in a tie, (n,)."""
        return self.probabilities.argmax(axis=-1) if self.chosen is None else self.chosen

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted choice (Eq. 17), (n,)."""
        return self.probabilities[np.arange(self.n), self.predicted]

    @cached_property
    def correct(self) -> np.ndarray:
        """1.0 where the predicted choice is the gold one, (n,)."""
        return (self.predicted == self.answer).astype(np.float64)

    @cached_property
    def by_confidence(self) -> Ranking:
        """The answers from the surest to the least sure."""
        return Ranking.by(self.confidence)


@dataclass(frozen=True)
class Settings:
    """Say how metrics are computed: bins of ECE, resamples and seed of every interval, and their level."""

    bins: int = 15
    resamples: int = 1000
    seed: int = 0
    level: float = 0.95


@dataclass(frozen=True)
class Metric:
    """Name a number of the results, how to compute it, and how its interval is made.

    ``draws`` maps bootstrap weights (resample, n), whole numbers that say how often each answer is drawn, to one value
    per resample; rows need not sum to n, because resampled groups differ in size.
    ``pivotal`` intervals are for statistics whose resamples are biased upwards, like ECE; ``percentile`` for the rest.
    ``steady`` gives a pivotal metric numbers (n,) whose mean it is as long as no gap of a bin turns over:
    the interval then takes its width from these (``intervals.corrected``).
    """

    name: str
    summary: str
    better: Literal["higher", "lower", "zero", "none"]
    value: Callable[[Answers, Settings], float]
    draws: Callable[[Answers, Settings, np.ndarray], np.ndarray] | None = None
    interval: Literal["wilson", "percentile", "pivotal", "none"] = "percentile"
    steady: Callable[[Answers, Settings], np.ndarray] | None = None


def mean_of(
    name: str, summary: str, better: Literal["higher", "lower", "zero", "none"], items: Callable[[Answers], np.ndarray]
) -> Metric:
    """Make the metric that is the mean of one number per answer, with a percentile interval."""

    def numbers(answers: Answers) -> np.ndarray:
        return answers.once(f"items of {name}", lambda: items(answers))

    return Metric(
        name=name,
        summary=summary,
        better=better,
        value=lambda answers, _: float(numbers(answers).mean()),
        draws=lambda answers, _, weights: weights @ numbers(answers) / weights.sum(axis=1),
    )


def check_unit_interval(values: np.ndarray, what: str) -> np.ndarray:
    """Return the values as float64 and refuse any outside [0, 1]: nothing is clipped, no softmax is guessed."""
    values = np.asarray(values, dtype=np.float64)
    inside = (values >= 0.0) & (values <= 1.0 + 1e-9)  # a mean of probabilities may round to one more bit
    if not inside.all():
        raise ValueError(
            f"{what} must lie in [0, 1], got {values[~inside].flat[0]:g}; if these are logits, apply softmax first"
        )
    return values


def check_pairs(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 arrays of one length; refuse values outside [0, 1] and empty input."""
    confidence, correct = check_unit_interval(confidence, "confidences"), check_unit_interval(correct, "correctness")
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(f"expected one correctness per confidence, got shapes {confidence.shape} and {correct.shape}")
    return confidence, correct


def feu_of(answers: Answers) -> np.ndarray:
    """Return the FEU of every answer; raises Undefined for methods without a router."""
    if answers.feu is None:
        raise Undefined("no FEU: the method has no router, or its rows do not carry it")
    return answers.feu


def _log(probabilities: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(probabilities)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _chosen(row: Mapping[str, Any]) -> int:
    """Return the place of a row's prediction; of its most probable choice, the first in a tie, where it has none."""
    probabilities = row["probabilities"]
    best = row.get("prediction")
    if best is None:
        best = max(probabilities, key=probabilities.get)
    if best not in probabilities:
        raise UserError(f"row '{row.get('id')}': prediction {best!r} is none of its choices {', '.join(probabilities)}")
    return list(probabilities).index(best)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray | None:
    """Return a number per row, or None unless every row has it."""
    values = [row.get(name) for row in rows]
    return None if any(value is None for value in values) else np.array(values, dtype=np.float64)


def numbered(names: Sequence[object]) -> np.ndarray | None:
    """Number the groups; an answer without one is alone. None where no group has two answers."""
    own = [("alone", str(i)) if name is None else ("group", str(name)) for i, name in enumerate(names)]
    numbers = {name: number for number, name in enumerate(sorted(set(own)))}
    return None if len(numbers) == len(own) else np.array([numbers[name] for name in own])


def characters(row: Mapping[str, Any]) -> float:
    """Return how long a question is with its passage and its choices; NaN where a row does not carry its question.

    The passage counts whole, shortened or not, where the row says how long it was: rows of former versions do not.

    >>> characters({"question": "Which?", "choices": ["ice", "iron"]}), characters({})
    (13.0, nan)
    >>> characters({"question": "Which?", "choices": ["ice", "iron"], "context_characters": 20})
    33.0
    """
    texts = [row.get("question") or "", *(row.get("choices") or ())]
    return float(sum(map(len, texts)) + (row.get("context_characters") or 0)) if texts[0] else float("nan")


def _lengths(rows: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Count the characters of each question; None where a row does not carry its question."""
    if not all(row.get("question") and row.get("choices") for row in rows):
        return None
    return np.array(list(map(characters, rows)), dtype=np.float64)


def _passes(rows: Sequence[Mapping[str, Any]]) -> tuple[Decomposition | None, Decomposition | None]:
    """Return entropy and Gini decompositions over the forward passes of each row; None unless every row has several."""
    if not all(len(row.get("samples") or ()) > 1 for row in rows):
        return None, None
    members = [np.exp(_log_softmax(np.array(row["samples"], dtype=np.float64))) for row in rows]
    entropies = zip(*(decompose(one, "entropy") for one in members), strict=True)
    ginis = zip(*(decompose(one, "gini") for one in members), strict=True)
    return Decomposition(*map(np.array, entropies)), Decomposition(*map(np.array, ginis))
