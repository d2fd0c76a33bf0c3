"""What a report is made of: methods over seeds on tasks, the runs behind them, and what a comparison adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from uq4ct.metrics import Answers

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Member:
    """One seed of a method on one task: metrics as ``summarize`` gives them, and the labelled answers behind them."""

    seed: Any
    metrics: Json
    answers: Answers
    questions: str  # changes with the questions, their labels and their order
    asked: str  # changes with the labelled questions and their right answers, in whatever order they stand
    surest_mistakes: tuple[Json, ...] = ()
    rule: str | None = None  # what the abstain rule applied here promises, empty without one; None where it is not told


@dataclass(frozen=True)
class RunFacts:
    """What a run folder says about itself; whatever is missing is empty."""

    label: str
    seed: Any
    folder: str
    facts: Json = field(default_factory=dict)
    environment: Json = field(default_factory=dict)
    log: tuple[Json, ...] = ()
    finished: bool = True
    rule: str = ""  # what the abstain rule saved last promises; evaluations may have been made under another
    posthoc: Json = field(default_factory=dict)  # the calibrator of a method with a suffix
    calibration: str = ""  # the file of answers on the calibration split, where it is kept


@dataclass(frozen=True)
class Series:
    """One method on one task over its seeds: a single line, dot or panel of the report."""

    label: str
    task: str
    members: tuple[Member, ...]
    result: Json  # means over seeds with ``intervals``, ``sd`` (of seeds) and ``ece_null``

    @property
    def n(self) -> int:
        """Questions answered by each seed."""
        return self.members[0].answers.n

    @property
    def seeds(self) -> tuple[Any, ...]:
        """Seeds in the order of the members."""
        return tuple(member.seed for member in self.members)

    def value(self, key: str) -> float | None:
        """Return a metric, None where it is undefined."""
        return self.result.get(key)

    def interval(self, key: str) -> tuple[float, float] | None:
        """Return the interval of a metric, None where there is none."""
        ends = (self.result.get("intervals") or {}).get(key)
        return (float(ends[0]), float(ends[1])) if ends else None

    def deviation(self, key: str) -> float | None:
        """Return the standard deviation over seeds."""
        return (self.result.get("sd") or {}).get(key)

    @property
    def has_feu(self) -> bool:
        """Whether every answer carries FEU."""
        return all(member.answers.feu is not None for member in self.members)

    @cached_property
    def bins(self) -> list[dict[str, Any]]:
        """Return the reliability bins over seeds, empty ones left out.

        Counts are means over seeds; the Wilson interval is that of one seed's count, since seeds answer the same
        questions and are no new evidence about them; ``seeds`` holds each seed's (confidence, accuracy).
        """
        return [row for row in map(_merged, zip(*(m.metrics["bins"] for m in self.members), strict=True)) if row["n"]]


def _merged(rows: Sequence[Json]) -> dict[str, Any]:
    from uq4ct.metrics.intervals import wilson

    full = [row for row in rows if row["n"]]
    total = sum(row["n"] for row in full)
    if len(rows) == 1 or not total:
        row = rows[0]
        return {**row, "n": total, "seeds": [(row["confidence"], row["accuracy"])] if total else []}
    mean = {
        key: sum(row["n"] * row[key] for row in full) / total
        for key in ("confidence", "accuracy", "null_low", "null_high")
    }
    n = total / len(rows)
    size = max(1, round(n))
    low, high = wilson(mean["accuracy"] * size, size)
    borders = {key: rows[0][key] for key in ("lower", "upper")}
    seeds = [(row["confidence"], row["accuracy"]) for row in full]
    return {**borders, "n": n, **mean, "accuracy_low": low, "accuracy_high": high, "seeds": seeds}


@dataclass(frozen=True)
class Comparison:
    """What the results.json of ``uq4ct compare`` says beyond its runs; a key that it lacks is empty."""

    place: str
    found: Json

    @property
    def baseline(self) -> str:
        """The method that the others are compared with, empty where none was."""
        return str(self.found.get("baseline") or "")

    def rows(self, key: str) -> list[Json]:
        """Return a list of objects: differences, verdicts, shift_detection, feu_usefulness, costs."""
        return [row for row in self.found.get(key) or () if isinstance(row, Mapping)]


@dataclass(frozen=True)
class Material:
    """Everything that a report shows."""

    series: tuple[Series, ...]
    runs: tuple[RunFacts, ...]
    comparison: Comparison | None = None

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in the order in which they were met."""
        return tuple(dict.fromkeys(series.task for series in self.series))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Methods in the order in which they were met."""
        return tuple(dict.fromkeys(series.label for series in self.series))

    @cached_property
    def has_seeds(self) -> bool:
        """Whether a series has several seeds."""
        return any(len(series.members) > 1 for series in self.series)

    @cached_property
    def fitted_on(self) -> str:
        """The task that the runs were fitted on, where all of them name one and it was evaluated; else empty."""
        known = "" if self.comparison is None else str(self.comparison.found.get("in_distribution") or "")
        named = {str(run.facts["task"]) for run in self.runs if run.facts.get("task")}
        for task in (known, *(named if len(named) == 1 else ())):
            evaluated = [one for one in self.tasks if task and (one == task or one.startswith(f"{task}."))]
            if evaluated:
                return evaluated[0]  # as "task.split" where another split was evaluated
        return ""

    def is_variant(self, label: str) -> bool:
        """Tell whether a method is another one of the report with a calibrator on top: same training, same router."""
        base, plus, _ = label.rpartition("+")
        return bool(plus) and base in self.labels

    @cached_property
    def has_variants(self) -> bool:
        """Whether a method is shown with and without a calibrator."""
        return any(map(self.is_variant, self.labels))

    @cached_property
    def mixed(self) -> tuple[str, ...]:
        """Tasks on which the methods answered different questions, as files of one name may hold: no ranking there."""
        asked = {task: {member.asked for s in self.of_task(task) for member in s.members} for task in self.tasks}
        return tuple(task for task in self.tasks if len(asked[task]) > 1)

    def of_task(self, task: str) -> tuple[Series, ...]:
        """Return the methods on one task."""
        return tuple(series for series in self.series if series.task == task)

    def find(self, label: str, task: str) -> Series | None:
        """Return one method on one task, None where it was not evaluated."""
        return next((s for s in self.series if s.label == label and s.task == task), None)

    def rows(self, key: str) -> list[Json]:
        """Return what the comparison says under a key, with tasks named as here: another split is another task."""
        if self.comparison is None:
            return []
        return [self._named_as_here(row) for row in self.comparison.rows(key)]

    def _named_as_here(self, row: Json) -> Json:
        names = {
            key: self._names.get((row.get(key), row.get("split"))) for key in ("task", "in_distribution", "shifted")
        }
        return {**row, **{key: name for key, name in names.items() if name is not None}}

    @cached_property
    def _names(self) -> dict[tuple[Any, Any], str]:
        """The name here of a task and split as results call them; without a split, of the first that has the task."""
        names: dict[tuple[Any, Any], str] = {}
        for series in self.series:
            facts = series.members[0].metrics
            for split in (facts.get("split"), None):
                names.setdefault((facts.get("task"), split), series.task)
        return names

    @property
    def settings(self) -> dict[str, Any]:
        """How the metrics were computed."""
        usual = {"bins": 15, "binning": "equal width, right-closed", "resamples": 1000, "seed": 0, "level": 0.95}
        return usual | dict(self.series[0].members[0].metrics.get("settings") or {})
