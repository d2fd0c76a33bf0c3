"""What each method costs, and all that is needed to judge the numbers or to make them again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from uq4ct.report.blocks import Block, Cell, Facts, Group, Section, Table, listed, said, shortened
from uq4ct.report.material import Json, Material, RunFacts

OWN = ("seed", "seconds", "fingerprint", "config_hash", "notes")  # facts that differ between any two runs
VALUES_SHOWN = 4


def cost(material: Material) -> Section | str:
    """Return what each method costs to fit, to keep and to ask."""
    if not material.runs:
        return "Cost: prediction files do not tell; run folders do."
    spent = {str(row.get("method")): row for row in material.rows("costs")}
    rows: list[tuple[Cell, ...]] = []
    for label in dict.fromkeys(run.label for run in material.runs):
        facts = [run.facts for run in material.runs if run.label == label]
        known = spent.get(label, {})
        extra = facts[0].get("extra_bytes")
        rows.append(
            (
                said(label),
                Cell(_count(facts[0].get("trainable_parameters"))),
                Cell("–" if not isinstance(extra, int) else f"{extra / 1e6:.1f}"),
                Cell(_duration(_mean([each.get("seconds") for each in facts]))),
                Cell(_count(facts[0].get("n"))),
                Cell(_count(facts[0].get("passes"))),
                Cell(_duration(known.get("evaluation_seconds"))),
            )
        )
    header: tuple[str, ...] = (
        "method",
        "trainable parameters",
        "extra memory, MB",
        "training time",
        "questions to fit",
        "passes per answer",
        "evaluation time",
    )
    if not any(row[-1].text != "–" for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    devices = sorted({str(run.environment["device"]) for run in material.runs if run.environment.get("device")})
    machine = f" Measured on {listed(devices)}." if devices else ""
    shared = " A dash: another method's predictions served." if spent else ""
    intro = f"Times are means over seeds; a training that methods share is counted for each.{machine}{shared}"
    table = Table("Cost of each method", header, tuple(rows), hidden_caption=True)
    return Section("cost", "Cost", "Cost", intro, (Group("", (table,)),))


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return float(np.mean(known)) if known else None


def _count(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def provenance(material: Material) -> Section:
    """Return how the metrics were computed, on which questions, by which runs of which code."""
    blocks: list[Block] = [_questions(material)]
    common, differing = _shared(material.runs)
    if material.comparison is not None:
        common = _of_comparison(material.comparison.found) + common
    if common:
        blocks.append(_pairs("The same in all runs" if len(material.runs) > 1 else "The run", common))
    if differing:
        blocks.append(_pairs("Differing between runs", differing))
    blocks += list(_runs(material.runs))
    return Section("provenance", "Provenance", "Provenance", _method(material), (Group("", tuple(blocks)),))


def _method(material: Material) -> str:
    settings = material.settings
    level = f"{100 * settings['level']:g} %"
    over = "; over seeds a two-level bootstrap, seeds first, then questions" if material.has_seeds else ""
    seeds = (
        ""
        if material.has_seeds
        else " They say how much another draw of questions would change a number, not how much another seed would."
    )
    return (
        f"Calibration error: {settings['bins']} bins, {settings['binning']}; a bin's confidence is the mean of its "
        f"answers. Intervals, {level}: Wilson for the accuracy of one run, pivotal bootstrap for calibration errors, "
        f"percentile bootstrap for the rest, with {settings['resamples']:,} resamples, seed "
        f"{settings['seed']}{over}.{seeds} The null band draws each answer's correctness from its own confidence, as "
        f"often. Brier is the sum over choices, 0 to 2. Made by uq4ct {metadata.version('uq4ct')}; this page was "
        "computed from files alone."
    )


def _questions(material: Material) -> Table:
    """Say which rows were scored and how: the hash tells whether two results saw the same questions."""
    rows = []
    for task in material.tasks:
        series = material.of_task(task)
        metrics = [member.metrics for one in series for member in one.members]
        data = [each["data"] for each in metrics if isinstance(each.get("data"), Mapping)]
        rows.append(
            (
                said(task),
                said(_distinct(each.get("split") for each in metrics)),
                said(_distinct(f"{one.n:,}" for one in series)),
                said(_distinct(str(seed) for one in series for seed in one.seeds if seed is not None)),
                said(_distinct((each.get("settings") or {}).get("bins") for each in metrics)),
                said(_distinct(each.get("dtype") for each in metrics)),
                said(_distinct(each.get("path") for each in data), _distinct(each.get("sha256") for each in data)),
            )
        )
    header = ("task", "split", "n", "seeds", "bins", "dtype", "file and SHA-256")
    return Table("Questions scored", header, tuple(rows))


def _distinct(values: Iterator[Any] | Any) -> str:
    known = list(dict.fromkeys(str(value) for value in values if value is not None))
    if len(known) > VALUES_SHOWN + 1:
        known = [*known[:VALUES_SHOWN], f"{len(known) - VALUES_SHOWN} more"]
    return ", ".join(shortened(value, 90) for value in known) or "–"


def _of_comparison(found: Json) -> list[tuple[str, str]]:
    protocol = found.get("protocol")
    kept = {
        "comparison": {
            "protocol": protocol.get("summary") if isinstance(protocol, Mapping) else protocol,
            "baseline": found.get("baseline"),
            "code_sha256": found.get("code_sha256"),
        }
    }
    pairs = list(_flat(kept))
    pairs += [("note", str(note)) for note in found.get("notes") or ()]
    pairs += [(f"no data: {name}", str(why)) for name, why in (found.get("absent") or {}).items()]
    failed = [
        f"{cell.get('method')}, seed {cell.get('seed')}: {cell.get('status')}"
        for cell in found.get("cells") or ()
        if isinstance(cell, Mapping) and cell.get("status") != "complete"
    ]
    return pairs + [("no result", line) for line in failed]


def _shared(runs: Sequence[RunFacts]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the facts that all runs have in common, and the values of those that differ."""
    facts: dict[str, list[str]] = {}
    for run in runs:
        kept = {key: value for key, value in run.facts.items() if key not in OWN or len(runs) == 1}
        for name, value in _flat({**kept, "environment": dict(run.environment)}):
            facts.setdefault(name, []).append(value)
    common, differing = [], []
    for name, values in facts.items():
        if len(values) == len(runs) and len(set(values)) == 1:
            common.append((name, values[0]))
        else:
            differing.append((name, _distinct(values)))
    return common, differing


def _runs(runs: Sequence[RunFacts]) -> Iterator[Block]:
    """Yield the folders, and what runs say about themselves in words."""
    pairs = []
    for run in runs:
        seed = f", seed {run.seed}" if run.seed is not None else ""
        digest = f", configuration {str(run.facts['config_hash'])[:12]}" if run.facts.get("config_hash") else ""
        took = (
            f", {_duration(run.facts['seconds'])} of training"
            if isinstance(run.facts.get("seconds"), int | float)
            else ""
        )
        unfinished = "" if run.finished else "; unfinished: no manifest"
        pairs.append((f"{run.label}{seed}", f"{run.folder}{digest}{took}{unfinished}"))
    if pairs:
        yield _pairs("Run folders", pairs)
    notes = dict.fromkeys(f"{run.label}: {note}" for run in runs for note in run.facts.get("notes") or ())
    if notes:
        yield Facts("Notes of the runs", (), tuple(notes))


def _pairs(title: str, pairs: Sequence[tuple[str, str]]) -> Facts:
    return Facts(title, tuple(pairs), remark=f"{len(pairs)} entries")


def _flat(value: Json, prefix: str = "") -> Iterator[tuple[str, str]]:
    """List nested facts as dotted names; long lists of numbers, such as fingerprints, are left to the file."""
    for key, part in value.items():
        name = f"{prefix}{key}"
        if isinstance(part, Mapping):
            if key == "letters" and len(part) > 8:
                continue
            yield from _flat(part, f"{name}.")
        elif not isinstance(part, list) and part not in (None, ""):
            yield name, shortened(str(part), 200)
