"""When to say nothing: a confidence threshold, fitted so that the answers kept are right often enough.

A threshold read off the calibration accuracy curve would be the luckiest of many. Here every candidate is a test of
"the answers kept are right less often than the target", and the error of all tests together is bounded (Learn then
Test, Angelopoulos et al. 2021): the candidates are 20 ranks of the calibration answers fixed beforehand, tested from
the surest answers down by the exact binomial tail, and a passed test hands its error budget on to the next (fallback
procedure, Wiens 2003). The budget starts in quarters at four ranks, so that one early unlucky answer does not end the
search.

The guarantee holds for questions like those of the calibration split, over repetitions of the whole procedure, where
accuracy crosses the target once as the threshold falls (a confidence that ranks at all). It says nothing under shift.
It takes answers as independent: where questions of one group are right or wrong together it promises too much, and
the rule says how many groups it was fitted on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uq4ct.errors import UserError
from uq4ct.manifest import write_json
from uq4ct.metrics.answers import numbered

STEPS = 20
BUDGET = {0.0: 0.25, 0.05: 0.25, 0.15: 0.25, 0.4: 0.25}  # where along the steps the error budget starts, and its share


class Search(NamedTuple):
    """The outcome of a search: threshold and number of calibration answers kept, or None, 0 and the reason."""

    threshold: float | None
    kept: int
    reason: str | None


def find_threshold(confidence: np.ndarray, correct: np.ndarray, target_accuracy: float, level: float = 0.95) -> Search:
    """Find the lowest confidence above which answers are right at least as often as the target, with this confidence.

    >>> confidence = np.arange(1, 1001) / 1000
    >>> round(find_threshold(confidence, confidence > 0.3, target_accuracy=0.9).threshold, 3)
    0.24
    >>> find_threshold(confidence[:20], np.ones(20), target_accuracy=0.9).reason
    '20 calibration answers are too few: even if all are right, 42 are needed to show 90 % with 95 % confidence'
    """
    if not 0 < target_accuracy < 1:
        raise UserError(f"the target accuracy must lie between 0 and 1, got {target_accuracy:g}; 0.9 means 90 %")
    n, error_budget = len(confidence), 1 - level
    fewest = math.ceil(math.log(error_budget * BUDGET[0.0]) / math.log(target_accuracy))
    wanted = f"{_exact(target_accuracy)} with {_exact(level)} confidence"
    if n < fewest:
        return Search(
            None, 0, f"{n} calibration answers are too few: even if all are right, {fewest} are needed to show {wanted}"
        )
    order = np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable")
    surest, wrong = np.asarray(confidence)[order], np.cumsum(1 - np.asarray(correct, dtype=np.float64)[order])
    kept, allowed = 0, 0.0
    starts = {round(place * STEPS): share for place, share in BUDGET.items()}
    for step, rank in enumerate(_ranks(surest, fewest)):
        allowed += error_budget * starts.get(step, 0.0)
        if allowed and _binomial_tail(wrong[rank - 1], rank, 1 - target_accuracy) <= allowed:
            kept = rank
        else:
            allowed = 0.0
    if not kept:
        best = 1 - (wrong / np.arange(1, n + 1))[fewest - 1 :].min()
        return Search(
            None, 0, f"no threshold shows {wanted}: of {n} calibration answers, the surest are {_percent(best)} right"
        )
    # Answers as sure as the first one left out are not covered; without ties this is the next number above it.
    return Search(0.0 if kept == n else float(np.nextafter(surest[kept], 1.0)), kept, None)


def _ranks(surest: np.ndarray, fewest: int) -> list[int]:
    """Return the ranks to test, evenly from the fewest that can pass to all, each moved to the end of its tie."""
    ranks = np.round(np.linspace(fewest, len(surest), STEPS + 1)).astype(int)
    return [int(np.searchsorted(-surest, -surest[rank - 1], side="right")) for rank in ranks]


def _binomial_tail(errors: float, n: int, rate: float) -> float:
    """Return the chance of at most so many errors among n answers that are each wrong at this rate."""
    from scipy.special import bdtr

    return float(bdtr(errors, n, rate))


@dataclass(frozen=True)
class AbstainRule:
    """Answer only where the confidence reaches a threshold; the other fields say how it was found.

    >>> AbstainRule(0.6).apply([{"confidence": 0.5}, {"confidence": 0.6}])
    [{'confidence': 0.5, 'abstained': True}, {'confidence': 0.6, 'abstained': False}]
    """

    threshold: float
    target_accuracy: float | None = None
    level: float | None = None
    n: int | None = None  # calibration answers
    kept: int | None = None  # of them, at or above the threshold
    accuracy: float | None = None  # of the kept ones
    groups: int | None = None  # of the calibration answers, where some share one

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"the abstain threshold is a confidence in [0, 1], got {self.threshold:g}")

    @classmethod
    def fit(cls, rows: Sequence[Mapping[str, Any]], target_accuracy: float, level: float = 0.95) -> AbstainRule:
        """Fit the threshold on labelled prediction rows of the calibration split.

        Raises UserError where no threshold reaches the target with this confidence.
        """
        labelled = [row for row in rows if row.get("correct") is not None]
        confidence = np.array([row["confidence"] for row in labelled], dtype=np.float64)
        correct = np.array([row["correct"] for row in labelled], dtype=np.float64)
        found = find_threshold(confidence, correct, target_accuracy, level)
        if found.threshold is None:
            raise UserError(f"{found.reason}; lower the target, or keep more questions for calibration")
        accuracy = float(correct[confidence >= found.threshold].mean())
        groups = numbered([row.get("group") for row in labelled])
        count = None if groups is None else len(np.unique(groups))
        return cls(found.threshold, target_accuracy, level, len(labelled), found.kept, accuracy, count)

    def apply(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows with ``abstained`` set: true where the confidence is below the threshold."""
        return [{**row, "abstained": bool(row["confidence"] < self.threshold)} for row in rows]

    def describe(self) -> str:
        """Say in one line what the rule promises.

        >>> AbstainRule(0.71, 0.9, 0.95, n=200, kept=150, accuracy=0.96).describe()
        'answers kept are at least 90 % right with 95 % confidence (calibration: 150 of 200 kept, 96 % right)'
        """
        if (
            self.target_accuracy is None
            or self.level is None
            or not self.n
            or self.kept is None
            or self.accuracy is None
        ):
            return f"abstains below confidence {self.threshold:g}, chosen by hand"
        grouped = (
            f"; answers are taken as independent, although the {self.n} questions form {self.groups} groups"
            if self.groups
            else ""
        )
        return (
            f"answers kept are at least {_exact(self.target_accuracy)} right with {_exact(self.level)} confidence "
            f"(calibration: {self.kept} of {self.n} kept, {_percent(self.accuracy)} right{grouped})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as a JSON value; without ``groups`` where there are none, as rules were saved before."""
        value = asdict(self)
        return value if self.groups else {name: value[name] for name in value if name != "groups"}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> AbstainRule:
        """Make the rule from its JSON value. Raises UserError where it is none."""
        known = {field.name for field in fields(cls)}
        threshold = value.get("threshold") if isinstance(value, Mapping) else None
        numbers = isinstance(value, Mapping) and all(map(_is_number_or_null, value.values()))
        if threshold is None or not numbers or set(value) - known:
            raise UserError(
                f"not an abstain rule: expected an object of numbers, {', '.join(sorted(known))}, got {value!r}"
            )
        return cls(**value)

    def save(self, path: Path) -> None:
        """Write the rule as JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> AbstainRule:
        """Read a rule that ``save`` wrote. Raises UserError naming the file where it is not one."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, UserError) as error:
            raise UserError(f"{path}: {error}; delete it and choose the threshold again") from error


def _is_number_or_null(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _percent(share: float) -> str:
    """Print a share in per cent with one decimal; near 100 % with two figures of what is missing to it."""
    missing = 1 - share
    decimals = max(1, math.ceil(-math.log10(missing)) - 1) if missing > 0 else 1
    return f"{round(100 * share, decimals):.15g} %"


def _exact(share: float) -> str:
    """Print a share that somebody chose in per cent with all its digits."""
    return f"{100 * share:.12g} %"
