"""What a report is made of: evaluations and runs, read from run folders or prediction files; never a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uq4ct import predictions
from uq4ct.errors import UserError
from uq4ct.manifest import MANIFEST, verify_manifest
from uq4ct.metrics import Answers, summarize
from uq4ct.posthoc.abstain import AbstainRule

Json = Mapping[str, Any]
Read = Callable[[Path], list[Any]]  # a prediction file, or a results folder of lm-eval, to its rows


@dataclass(frozen=True)
class RunFacts:
    """What a run folder says about itself; whatever is missing is empty."""

    label: str
    folder: str
    facts: Json = field(default_factory=dict)
    environment: Json = field(default_factory=dict)
    log: tuple[Json, ...] = ()
    finished: bool = True
    rule: str = ""  # what the abstain rule promises


@dataclass(frozen=True)
class Evaluation:
    """One method on one task: metrics as ``summarize`` gives them, and the labelled answers behind them."""

    label: str  # the method, with its seed or folder where the method alone does not tell two apart
    task: str
    metrics: Json
    rows: tuple[Json, ...]
    answers: Answers


@dataclass(frozen=True)
class Material:
    """Everything that a report shows."""

    evaluations: tuple[Evaluation, ...]
    runs: tuple[RunFacts, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in the order in which they were met."""
        return tuple(dict.fromkeys(evaluation.task for evaluation in self.evaluations))

    @property
    def labels(self) -> tuple[str, ...]:
        """Methods in the order in which they were met."""
        return tuple(dict.fromkeys(evaluation.label for evaluation in self.evaluations))

    def of_task(self, task: str) -> tuple[Evaluation, ...]:
        """Return the evaluations of one task."""
        return tuple(evaluation for evaluation in self.evaluations if evaluation.task == task)


def read_sources(sources: Sequence[Path | str], read: Read = predictions.read) -> Material:
    """Read run folders, folders of runs, and prediction files, these and results folders of lm-eval with ``read``.

    Raises UserError where a source is neither, where a file of an evaluation has changed, or where nothing has a label.
    """
    parts = [part for source in sources for part in _read(Path(source), read)]
    if not parts:
        raise UserError("a report needs at least one run folder or prediction file")
    labels = _labels(parts)
    evaluations = [
        Evaluation(label, task, metrics, tuple(row for row in rows if row["probabilities"]), Answers.of_rows(rows))
        for label, part in zip(labels, parts, strict=True)
        for task, metrics, rows in part.evaluations
    ]
    if not evaluations:
        places = ", ".join(part.place for part in parts)
        raise UserError(f"{places}: no evaluation yet; `uq4ct evaluate RUN --data ...` makes one")
    runs = [
        RunFacts(label, part.place, part.facts, part.environment, part.log, part.finished, part.rule)
        for label, part in zip(labels, parts, strict=True)
        if part.is_run
    ]
    return Material(tuple(evaluations), tuple(runs))


@dataclass(frozen=True)
class _Part:
    """One run, or one method and seed of a prediction file."""

    place: str
    method: str
    seed: Any
    evaluations: Sequence[tuple[str, Json, list[Any]]]
    is_run: bool = False
    facts: Json = field(default_factory=dict)
    environment: Json = field(default_factory=dict)
    log: tuple[Json, ...] = ()
    finished: bool = True
    rule: str = ""


def _read(source: Path, read: Read) -> Iterator[_Part]:
    if source.is_file():
        yield from _file(source, read)
    elif not source.is_dir():
        raise UserError(f"{source}: no such run folder or prediction file")
    elif _is_run(source):
        yield _run(source)
    else:
        folders = sorted(folder for folder in source.iterdir() if folder.is_dir() and _is_run(folder))
        if not folders and any(next(source.glob(f"{depth}samples_*.jsonl"), None) for depth in ("", "*/")):
            yield from _file(source, read)
        elif not folders:
            raise UserError(
                f"{source}: neither a run folder (no uq4ct.json, no evaluations/) nor a folder of runs, nor one with "
                "samples of lm-eval"
            )
        yield from map(_run, folders)


def _is_run(folder: Path) -> bool:
    return (folder / "uq4ct.json").is_file() or (folder / "evaluations").is_dir()


def _file(path: Path, read: Read) -> Iterator[_Part]:
    """Split a prediction file, or a folder of samples, by the method and seed that its rows name."""
    groups: dict[tuple[Any, Any], list[tuple[str, Json, list[Any]]]] = {}
    for (task, method, seed), rows in predictions.evaluations(read(path)).items():
        named = path.parent.name if path.stem == "predictions" else path.stem if method else "predictions"
        groups.setdefault((method, seed), []).append((task or named, summarize(rows), rows))
    for (method, seed), evaluations in groups.items():
        yield _Part(str(path), method or path.stem, seed, evaluations)


def _run(folder: Path) -> _Part:
    facts = _json(folder / "uq4ct.json")
    evaluations = []
    for path in sorted(folder.glob("evaluations/*/predictions.jsonl")):
        if (path.parent / MANIFEST).is_file():
            verify_manifest(path.parent)
        rows = predictions.read(path)
        if any(row["label"] is not None for row in rows):
            metrics = _complete(_json(path.parent / "metrics.json"), rows)
            evaluations.append((path.parent.name, metrics, rows))  # "task", or "task.split" for another split
    rule = folder / "abstain.json"
    order = {name: place for place, name in enumerate(_order(facts))}
    evaluations.sort(key=lambda evaluation: (order.get(evaluation[0], len(order)), evaluation[0]))
    return _Part(
        str(folder),
        str(facts.get("method") or folder.name),
        facts.get("seed"),
        evaluations,
        is_run=True,
        facts=facts,
        environment=_json(folder / "environment.json"),
        log=_log(folder / "training_log.jsonl"),
        finished=(folder / MANIFEST).is_file(),
        rule=AbstainRule.load(rule).describe() if rule.is_file() else "",
    )


def _complete(metrics: Json, rows: list[Any]) -> Json:
    """Return metrics, computed from the rows where the file lacks some: written by another version, or not at all."""
    needed = ("n", "accuracy", "ece", "intervals", "bins", "ece_null")
    return metrics if all(metrics.get(key) is not None for key in needed) else {**summarize(rows), **metrics}


def _order(facts: Json) -> tuple[str, ...]:
    """Put the task that the run was fitted on first, then its shifted versions from near to far."""
    task = facts.get("task")
    return () if not task else (task, f"{task}-near", f"{task}-far", f"{task}-unanswerable")


def _labels(parts: Sequence[_Part]) -> list[str]:
    """Name each part by its method; add the seed, or at last the place, where that leaves two with one name."""
    labels = [part.method for part in parts]
    for more in (lambda part: f" seed {part.seed}" if part.seed is not None else "", lambda part: f" ({part.place})"):
        labels = [
            label + more(part) if _clash(label, part, labels, parts) else label
            for label, part in zip(labels, parts, strict=True)
        ]
    return labels


def _clash(label: str, part: _Part, labels: Sequence[str], parts: Sequence[_Part]) -> bool:
    """Tell whether another part of this name is evaluated on one of the same tasks, or is a run too."""
    tasks = {task for task, _, _ in part.evaluations}
    return any(
        other is not part and name == label and (tasks & {task for task, _, _ in other.evaluations} or other.is_run)
        for name, other in zip(labels, parts, strict=True)
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _log(path: Path) -> tuple[Json, ...]:
    if not path.is_file():
        return ()
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON lines ({error})") from error
    return tuple(entry for entry in entries if isinstance(entry, dict))
