"""Reading what a report is made of: run folders, comparisons, prediction files; never a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from uq4ct import predictions
from uq4ct.errors import UserError
from uq4ct.manifest import MANIFEST, verify_manifest
from uq4ct.metrics import Answers, summarize
from uq4ct.posthoc.abstain import AbstainRule
from uq4ct.report.material import Comparison, Json, Material, Member, RunFacts, Series
from uq4ct.report.pooling import result_of

MISTAKES = 3
RESULTS = "results.json"
Read = Callable[[Path], list[Any]]  # a prediction file, or a results folder of lm-eval, to its rows
Say = Callable[[str], None]


def read_sources(sources: Sequence[Path | str], read: Read = predictions.read, say: Say = lambda _: None) -> Material:
    """Read runs, folders of runs or of ``uq4ct compare``, and, with ``read``, prediction files or samples of lm-eval.

    Several seeds of one method become one series; a comparison's own results are taken as they are, and for loose runs
    means and intervals are computed. Raises UserError where a source is none of these, where a file of an evaluation
    has changed, where two comparisons are given, or where nothing has a label.
    """
    if not sources:
        raise UserError("a report needs at least one run folder or prediction file")
    comparisons = [found for source in sources if (found := _comparison(Path(source))) is not None]
    if len(comparisons) > 1:
        places = " and ".join(found.place for found in comparisons)
        raise UserError(f"a report shows one comparison, got {places}; run one `uq4ct compare` with all methods")
    comparison = comparisons[0] if comparisons else None
    named = _named(comparison)
    parts = [part for source in sources for part in _read(Path(source), read, say, named)]
    if not any(part.evaluations for part in parts):
        places = ", ".join(part.place for part in parts)
        raise UserError(f"{places}: no evaluation yet; `uq4ct evaluate RUN --data ...` makes one")
    groups = _groups(parts)
    labels = _labels(groups)
    series = [
        one for label, group in zip(labels, groups, strict=True) for one in _series(label, group, comparison, say)
    ]
    runs = [
        replace(part.run, label=label)
        for label, group in zip(labels, groups, strict=True)
        for part in group
        if part.run is not None
    ]
    return Material(tuple(series), tuple(runs), comparison)


@dataclass(frozen=True)
class _Part:
    """One run, or one method and seed of a prediction file."""

    place: str
    method: str
    seed: Any
    evaluations: Mapping[str, Member]
    run: RunFacts | None = None
    fit: tuple[Any, ...] = ()  # what seeds of one method have in common
    is_cell: bool = False  # of the report's comparison, told by its folder


def _comparison(source: Path) -> Comparison | None:
    """Return the comparison of a folder: it holds results.json, or is the folder ``cells`` beside one."""
    folder = source.parent if source.name == "cells" and (source.parent / RESULTS).is_file() else source
    path = folder / RESULTS
    if not source.is_dir() or not path.is_file():
        return None
    found = _json(path)
    if not isinstance(found.get("cells"), list) or not isinstance(found.get("results"), list):
        raise UserError(f"{path}: not the results of a comparison, expected lists 'cells' and 'results'")
    return Comparison(str(folder), found)


def _named(comparison: Comparison | None) -> dict[Path, str]:
    """Return the complete cells of a comparison, and how its results call the method of each, options included."""
    if comparison is None:
        return {}
    cells = [cell for cell in comparison.rows("cells") if cell.get("status") == "complete"]
    place = Path(comparison.place) / "cells"
    return {(place / Path(cell["folder"]).name).resolve(): str(cell.get("method") or "") for cell in cells}


def _read(source: Path, read: Read, say: Say, named: Mapping[Path, str]) -> Iterator[_Part]:
    if source.is_file() or _has_samples(source):
        yield from _file(source, read)
        return
    if not source.is_dir():
        raise UserError(f"{source}: no such run folder or prediction file")
    for number, folder in enumerate(folders := _folders(source), 1):
        if len(folders) > 10 and number % 10 == 0:
            say(f"read {number} of {len(folders)} runs")
        yield _run(folder, named)


def _has_samples(source: Path) -> bool:
    """Tell whether a folder holds samples of lm-eval and no run."""
    if not source.is_dir() or _is_run(source):
        return False
    return any(next(source.glob(f"{depth}samples_*.jsonl"), None) for depth in ("", "*/"))


def _folders(source: Path) -> list[Path]:
    """Return the run folders of a source: itself, the complete cells of a comparison, or the runs inside it."""
    if _is_run(source):
        return [source]
    if (comparison := _comparison(source)) is not None:
        return _cells(comparison)
    if (source / "cells").is_dir() and (inside := sorted(filter(_is_finished, (source / "cells").iterdir()))):
        return inside  # a comparison that is still running
    folders = sorted(folder for folder in source.iterdir() if folder.is_dir() and _is_run(folder))
    if not folders:
        raise UserError(
            f"{source}: neither a run folder (no uq4ct.json, no evaluations/) nor a folder of runs, nor one with "
            "samples of lm-eval"
        )
    return folders


def _cells(comparison: Comparison) -> list[Path]:
    """Return the folders of complete cells, wherever the comparison was moved to; UserError where there are none."""
    cells = Path(comparison.place) / "cells"
    names = [Path(cell["folder"]).name for cell in comparison.rows("cells") if cell.get("status") == "complete"]
    if not names:
        raise UserError(f"{comparison.place}: no cell of the comparison is finished, so there is nothing to report")
    absent = [str(cells / name) for name in names if not _is_run(cells / name)]
    if absent:
        raise UserError([f"{place}: missing, {comparison.place}/{RESULTS} lists it as complete" for place in absent])
    return [cells / name for name in names]


def _is_run(folder: Path) -> bool:
    return (folder / "uq4ct.json").is_file() or (folder / "evaluations").is_dir()


def _is_finished(folder: Path) -> bool:
    return _is_run(folder) and (folder / "cell.json").is_file()


def _file(path: Path, read: Read) -> Iterator[_Part]:
    """Split a prediction file, or a folder of samples, by the method and seed that its rows name."""
    groups: dict[tuple[Any, Any], dict[str, Member]] = {}
    for (task, method, seed), rows in predictions.evaluations(read(path)).items():
        named = path.parent.name if path.stem == "predictions" else path.stem if method else "predictions"
        groups.setdefault((method, seed), {})[task or named] = _member(seed, summarize(rows), rows)
    for (method, seed), evaluations in groups.items():
        yield _Part(str(path), str(method or path.stem), seed, evaluations)


def _run(folder: Path, named: Mapping[Path, str]) -> _Part:
    """Read a run; a cell is called as it was asked for, ``uq4ct[top_k=3]``: its facts know the bare name only."""
    facts = _json(folder / "uq4ct.json")
    seed = facts.get("seed")
    evaluations = {}
    for path in sorted(folder.glob("evaluations/*/predictions.jsonl")):
        if (path.parent / MANIFEST).is_file():
            verify_manifest(path.parent)
        rows = predictions.read(path)
        if any(row["label"] is not None for row in rows):
            metrics = _complete(_json(path.parent / "metrics.json"), rows)
            member = replace(_member(seed, metrics, rows), rule=_rule(path.with_name(MANIFEST)))
            evaluations[path.parent.name] = member  # "task", or "task.split" for another split
    place = {name: number for number, name in enumerate(_order(facts))}
    tasks = {name: str(member.metrics.get("task", name)) for name, member in evaluations.items()}  # without the split
    ordered = sorted(evaluations, key=lambda name: (place.get(tasks[name], len(place)), name))
    rule, kept = folder / "abstain.json", folder / "calibration.jsonl"
    run = RunFacts(
        label="",
        seed=seed,
        folder=str(folder),
        facts=facts,
        environment=_json(folder / "environment.json"),
        log=_log(folder / "training_log.jsonl"),
        finished=(folder / MANIFEST).is_file(),
        rule=AbstainRule.load(rule).describe() if rule.is_file() else "",
        posthoc=_json(folder / "posthoc.json"),
        calibration=str(kept) if kept.is_file() else "",
    )
    base, prompt = _object(facts, "base"), _object(facts, "prompt")
    names = (facts.get("task"), facts.get("n"), base.get("fingerprint"), prompt.get("hash"), _options(folder))
    fit = tuple(map(str, names))
    asked_for = named.get(folder.resolve()) or _json(folder / "cell.json").get("method")
    method = str(asked_for or facts.get("method") or folder.name)
    own = {name: evaluations[name] for name in ordered}
    return _Part(str(folder), method, seed, own, run, fit, is_cell=folder.resolve() in named)


def _rule(manifest: Path) -> str | None:
    """Return what the abstain rule of an evaluation promises, empty where none was applied, None where it is not told.

    The rule that the run holds may be a later one: a prediction saves its rule and leaves evaluations as they are.
    """
    facts = _json(manifest)
    if facts.get("rule") is None:
        return "" if "rule" in facts else None
    try:
        return AbstainRule.from_dict(facts["rule"]).describe()
    except UserError as error:
        raise UserError(f"{manifest}: {error}; evaluate again") from error


def _options(folder: Path) -> str:
    """Return the configuration of a run without its place and seed: what seeds of one method have in common."""
    path = folder / "config.yaml"
    if not path.is_file():
        return ""
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not readable as YAML ({error})") from error
    kept = {key: value for key, value in options.items() if key != "output"} if isinstance(options, dict) else options
    return json.dumps(kept, sort_keys=True, default=str)


def _object(facts: Json, key: str) -> Json:
    value = facts.get(key)
    return value if isinstance(value, Mapping) else {}


def _member(seed: Any, metrics: Json, rows: list[Any]) -> Member:
    """Keep the answers as arrays, and of the texts only those of the surest mistakes."""
    pairs = [(row["id"], row["label"]) for row in rows]
    scored = sorted((row["id"], _right_answer(row)) for row in rows if row["correct"] is not None)
    wrong = [row for row in rows if row.get("correct") is False and row["probabilities"]]
    surest = tuple(sorted(wrong, key=lambda row: -row["confidence"])[:MISTAKES])
    return Member(seed, metrics, Answers.of_rows(rows), _digest(pairs), _digest(scored), surest)


def _right_answer(row: Json) -> str:
    """Return the place of the right answer, however a file calls its choices; its name where there are no choices."""
    choices = list(row["probabilities"] or ())
    return str(choices.index(row["label"])) if row["label"] in choices else str(row["label"])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _complete(metrics: Json, rows: list[Any]) -> Json:
    """Return metrics, computed from the rows where the file lacks some: written by another version, or not at all."""
    needed = ("n", "accuracy", "ece", "intervals", "bins", "ece_null", "predicted_letters", "gold_letters")
    return metrics if all(metrics.get(key) is not None for key in needed) else {**summarize(rows), **metrics}


def _order(facts: Json) -> tuple[str, ...]:
    """Put the task that the run was fitted on first, then its shifted versions from near to far."""
    task = facts.get("task")
    return () if not task else (task, f"{task}-near", f"{task}-far", f"{task}-unanswerable")


# ------------------------------------------------------------------------------------------------- seeds of one method


def _groups(parts: Sequence[_Part]) -> list[list[_Part]]:
    """Put the seeds of one method together: same fit, another seed, the same questions on the tasks they share.

    A run that is no cell of the comparison stays apart from its cells: the comparison knows nothing of that seed.
    """
    groups: list[list[_Part]] = []
    for part in parts:
        fitting = (group for group in groups if all(_is_sibling(part, other) for other in group))
        group = next(fitting, None)
        groups.append([part]) if group is None else group.append(part)
    return [
        sorted(group, key=lambda part: (not isinstance(part.seed, int), str(part.seed).zfill(12))) for group in groups
    ]


def _is_sibling(part: _Part, other: _Part) -> bool:
    if part.method != other.method or part.fit != other.fit or part.is_cell != other.is_cell:
        return False
    if (part.run is None) != (other.run is None):
        return False
    shared = set(part.evaluations) & set(other.evaluations)
    if part.seed == other.seed or None in (part.seed, other.seed):  # perhaps two files of one method, a task each
        return part.run is None and part.seed == other.seed and not shared
    return all(_alike(part.evaluations[task], other.evaluations[task]) for task in shared)


def _alike(one: Member, other: Member) -> bool:
    return one.questions == other.questions and len(one.metrics["bins"]) == len(other.metrics["bins"])


def _series(label: str, group: Sequence[_Part], comparison: Comparison | None, say: Say) -> Iterator[Series]:
    for task in dict.fromkeys(task for part in group for task in part.evaluations):
        members = tuple(part.evaluations[task] for part in group if task in part.evaluations)
        known = _known(group[0].method, members, comparison) if group[0].is_cell else None
        if known is None and len(members) > 1:
            say(f"intervals over {len(members)} seeds: {label} on {task}")
        yield Series(label, task, members, known or result_of(members))


def _known(method: str, members: Sequence[Member], comparison: Comparison | None) -> Json | None:
    """Return what a comparison says about its own cells; None where it says nothing of this task or all these seeds."""
    facts = members[0].metrics
    seeds = [member.seed for member in members]
    for row in comparison.rows("results") if comparison else ():
        named = (row.get("method"), row.get("task"), row.get("split"), row.get("seeds"))
        if named == (method, facts.get("task"), facts.get("split"), seeds):
            return row
    return None


def _labels(groups: Sequence[Sequence[_Part]]) -> list[str]:
    """Name each group by its method; add the seed, or at last the place, where that leaves two with one name.

    A comparison's method keeps its name beside others: what the comparison says of it is found by that.
    """
    labels = [group[0].method for group in groups]
    cells = [group[0].method for group in groups if group[0].is_cell]
    keeps = [group[0].is_cell and cells.count(group[0].method) == 1 for group in groups]
    for more in (_seed_in_words, lambda group: f" ({group[0].place})"):
        labels = [
            label + more(group) if labels.count(label) > 1 and not kept else label
            for label, group, kept in zip(labels, groups, keeps, strict=True)
        ]
    return labels


def _seed_in_words(group: Sequence[_Part]) -> str:
    return f" seed {group[0].seed}" if len(group) == 1 and group[0].seed is not None else ""


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
