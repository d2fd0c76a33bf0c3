"""What finished cells say: results.json and the tables of a comparison, from files alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from uq4ct.campaign import Outcome, Plan
from uq4ct.campaign.cells import RECEIPT
from uq4ct.errors import UserError, did_you_mean
from uq4ct.manifest import verify_manifest, write_atomically
from uq4ct.metrics.answers import Settings
from uq4ct.protocols import PROTOCOLS, Protocol
from uq4ct.report import answered, comparison, comparison_tables
from uq4ct.report.answered import Scored
from uq4ct.report.differences import FALL
from uq4ct.runs import code_digest

Json = dict[str, Any]

TOLD = ("cells", "results", "baseline", "differences", "verdicts", "shift_detection", "feu_usefulness")  # by --json
RESAMPLES = 2000  # two-level, of a comparison; eval.resamples, which is for single evaluations, may ask for more


def baseline_of(methods: Sequence[str], asked: str | None) -> str:
    """Return the method that all are compared with: the one asked for, else lora, else the first.

    >>> baseline_of(["mixlora", "lora"], None), baseline_of(["mixlora", "uq4ct"], None)
    ('lora', 'mixlora')
    """
    if asked is not None and asked not in methods:
        near = did_you_mean(asked, list(methods))
        raise UserError(f"--baseline: '{asked}' is not one of the methods.{near} Methods: {', '.join(methods)}")
    return asked or ("lora" if "lora" in methods else methods[0])


def write_results(
    made: Plan,
    outcomes: Sequence[Outcome],
    held: Protocol,
    output: Path,
    baseline: str | None = None,
    *,
    preset: str,
) -> Json:
    """Write results.json and the tables from the files of finished cells, and return what is in results.json.

    ``preset`` is the one that the cells' options start from. Where the finished cells are the same as the last time,
    nothing is computed again, and written is only a file that is gone or has changed.
    """
    scored = [
        Scored(outcome.cell.method, outcome.cell.seed, outcome.cell.folder, _evaluations(outcome.cell.folder))
        for outcome in outcomes
        if outcome.status == "complete"
    ]
    options = outcomes[0].cell.config.eval
    settings = Settings(bins=options.bins, resamples=max(RESAMPLES, options.resamples))
    methods = list(dict.fromkeys(outcome.cell.method for outcome in outcomes))
    facts = {
        "cells": list(map(_told, outcomes)),
        "absent": dict(made.absent),
        "remarks": list(made.notes),
        "protocol": _protocol(held, preset, {o.cell.config.data.calibration_fraction for o in outcomes}),
    }
    return _write(scored, held, settings, baseline_of(methods, baseline), output, facts, code_digest())


def reread(output: Path, baseline: str | None = None) -> Json:
    """Write results.json and the tables of a comparison anew from the files of its cells; nothing is planned or run.

    Raises UserError where the folder holds no finished cell, or cells of several comparisons and no results.json that
    says which belong together.
    """
    before = _read(output / "results.json")
    scored = _finished(output, before)
    cells = before.get("cells") or [_cell(run) for run in sorted(scored, key=lambda run: (run.seed, run.method))]
    cells = [{**cell, "folder": str(output.resolve() / "cells" / Path(cell["folder"]).name)} for cell in cells]
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    scored.sort(key=lambda run: (run.seed, methods.index(run.method)))
    options = answered.options_of(scored[0])["eval"]
    settings = Settings(bins=options["bins"], resamples=max(RESAMPLES, options["resamples"]))
    chosen = baseline_of(methods, baseline if baseline is not None else before.get("baseline"))
    code = before.get("code_sha256") or _read(scored[0].folder / "environment.json").get("code_sha256")
    facts = {"cells": cells, "absent": before.get("absent", {}), "remarks": before.get("remarks", [])}
    held = PROTOCOLS[before.get("protocol", {}).get("name", "sound")]
    shares = {answered.options_of(run)["data"]["calibration_fraction"] for run in scored}
    facts["protocol"] = before.get("protocol") or _protocol(held, None, shares)
    return _write(scored, held, settings, chosen, output, facts, code)


def _folders(output: Path, before: Json) -> list[Path]:
    """Return the folders of finished cells: those that results.json names, where it is there, else all."""
    if "cells" not in before:
        if folders := sorted(receipt.parent for receipt in output.glob(f"cells/*/{RECEIPT}")):
            return folders
        raise UserError(f"{output}: holds no comparison with a finished cell; --methods and --data start one")
    named = [Path(cell["folder"]).name for cell in before["cells"] if cell["status"] == "complete"]
    if not named:
        ends = ", ".join(dict.fromkeys(f"{cell['method']} {cell['status']}" for cell in before["cells"]))
        raise UserError(f"{output}: no cell of its last comparison is finished ({ends}); compare other --methods")
    return [output / "cells" / name for name in named]  # the whole folder may have moved since


def _finished(output: Path, before: Json) -> list[Scored]:
    """Return the finished cells of a folder; UserError where there are none, or of several comparisons."""
    folders = _folders(output, before)
    receipts = [_read(folder / RECEIPT) for folder in folders]
    if absent := [folder for folder, receipt in zip(folders, receipts, strict=True) if not receipt]:
        raise UserError([f"{folder}: no {RECEIPT}; the command that made the cell runs it again" for folder in absent])
    for folder, receipt in zip(folders, receipts, strict=True):
        for name in receipt["evaluations"]:
            verify_manifest(folder / "evaluations" / name)
    found = [
        Scored(receipt["method"], receipt["seed"], folder, tuple(receipt["evaluations"]))
        for folder, receipt in zip(folders, receipts, strict=True)
    ]
    tasks = {receipt["task"] for receipt in receipts}
    if len(tasks) > 1 or len({(run.method, run.seed) for run in found}) < len(found):
        raise UserError(
            f"{output}: holds cells of several comparisons, and no results.json says which belong together; give the "
            "command that made it, with --methods and --data"
        )
    return found


def _write(
    scored: Sequence[Scored],
    held: Protocol,
    settings: Settings,
    baseline: str,
    output: Path,
    facts: Json,
    code: str | None,
) -> Json:
    """Compute what finished cells say, unless it is there already, and write the files that are gone or differ."""
    seeds = len({cell["seed"] for cell in facts["cells"]})
    about = [answered.fingerprint(scored), held.name, baseline, vars(settings), _digest()]
    identity = json.dumps([*about, facts["absent"], facts["cells"], facts["protocol"]])
    found = _read(output / "results.json")
    if found.get("identity") != identity:
        there = baseline in {run.method for run in scored}
        found = {
            "notes": _notes(held, settings, facts, baseline if there else None),
            "settings": {"bins": settings.bins, "resamples": settings.resamples, "level": settings.level},
            "code_sha256": code,
            "machine": _together([_read(run.folder / "environment.json") for run in scored]),
            **facts,
            **comparison.compare(scored, seeds, settings, baseline if there else None),
            "baseline": baseline,
            "costs": comparison.costs(scored),
            "identity": identity,
        }
    results = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in {**comparison_tables.files(found), "results.json": results}.items():
        path = output / name
        if not path.is_file() or path.read_bytes() != content.encode():
            write_atomically(path, content)
    return found


def text_of(found: Json) -> str:
    """Return the tables of results.json for a terminal."""
    table = comparison_tables.text(found)
    return f"{comparison_tables.cost_table(found['costs'])}\n\n{table}" if found["results"] else table


def _protocol(held: Protocol, preset: str | None, shares: Collection[float]) -> Json:
    """Describe what was held to; without a preset where nothing tells it."""
    return {"name": held.name, "preset": preset, "summary": held.summary(preset, shares)}


def _digest() -> str:
    """SHA-256 over the files that turn finished runs into tables: others compute them anew."""
    package = Path(__file__).parent
    names = ("answered", "comparison", "comparison_tables", "differences", "tables", "usefulness")
    files = [*sorted(package.glob("metrics/*.py")), *(package / "report" / f"{name}.py" for name in names)]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in (*files, Path(__file__)))).hexdigest()


def _told(outcome: Outcome) -> Json:
    cell = outcome.cell
    plain = {"method": cell.method, "task": cell.task, "seed": cell.seed, "status": outcome.status}
    more = {"seconds": outcome.seconds, "passes": cell.config.method.passes, "folder": str(cell.folder)}
    return {**plain, **more, "digest": cell.digest, "message": outcome.message}


def _cell(run: Scored) -> Json:
    """Describe a finished cell by its own files."""
    receipt, facts = _read(run.folder / RECEIPT), _read(run.folder / "uq4ct.json")
    plain = {key: receipt[key] for key in ("method", "task", "seed", "seconds", "digest")}
    return {**plain, "status": "complete", "passes": facts.get("passes"), "folder": str(run.folder), "message": ""}


def _notes(held: Protocol, settings: Settings, facts: Json, baseline: str | None) -> list[str]:
    seeds, level = len({cell["seed"] for cell in facts["cells"]}), f"{100 * settings.level:.0f} %"
    scaled = any(cell["method"].endswith("+temperature") for cell in facts["cells"])
    few = (
        f"{seeds} paired seed{'s' if seeds > 1 else ''}, where protocol {held.name} asks for {held.fewest} or more: "
        f"the intervals are as wide as so few make them{'' if seeds > 1 else ', and one seed claims nothing'}."
    )
    return [
        f"Protocol {held.name}: {facts['protocol']['summary']}.",
        *([few] if seeds < held.fewest else []),
        *(["+temperature: one temperature per run, fitted on its calibration split and kept under shift."] * scaled),
        f"± is the standard deviation over seeds; intervals (files) {level}, by {settings.resamples:,} two-level "
        "resamples: seeds, then questions; the seeds' part is stretched to Student's t.",
        f"band: where the ECE of {level} of perfectly calibrated models of this confidence and n would lie.",
        *([] if baseline is None else [_rule(baseline)]),
        *(f"{note[0].upper()}{note[1:]}." for note in facts["remarks"]),
    ]


def _rule(baseline: str) -> str:
    return (
        f"Verdicts: difference from {baseline}, and of a method with a suffix from {baseline} with that suffix, else "
        "with a temperature, where it is there; on the same seeds and questions. better: NLL or Brier is lower, its "
        "interval without zero, after Holm's correction over tasks (not over methods), the other is not higher, and "
        "AUROC does not fall, that is: its interval does not lie below zero and it is not lower by more than "
        f"{FALL}."
    )


def _evaluations(folder: Path) -> tuple[str, ...]:
    return tuple(_read(folder / RECEIPT)["evaluations"])


def _together(values: Sequence[Any]) -> Any:
    """Return what all values are; of dictionaries what each entry is, and a list where they differ.

    >>> _together([{"device": "cpu", "threads": 1}, {"device": "cuda", "threads": 1}])
    {'device': ['cpu', 'cuda'], 'threads': 1}
    """
    if all(isinstance(value, dict) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _together([value[name] for value in values if name in value]) for name in names}
    different = list(dict.fromkeys(values))
    return different[0] if len(different) == 1 else different


def _read(path: Path) -> Json:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
