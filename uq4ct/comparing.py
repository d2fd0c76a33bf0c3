"""Compare methods over seeds: plan the grid, run what has no result yet, and print what the files then say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from uq4ct import campaign, tasks
from uq4ct.campaign import Outcome, Plan
from uq4ct.campaign.cells import RECEIPT
from uq4ct.campaign.estimate import disk_bytes
from uq4ct.campaign.planning import Problems
from uq4ct.campaign.progress import duration, title
from uq4ct.config import Layer, resolve
from uq4ct.data.files import SUFFIXES
from uq4ct.errors import UserError, did_you_mean
from uq4ct.manifest import write_atomically
from uq4ct.metrics.answers import Settings
from uq4ct.report import comparison
from uq4ct.report.comparison import Scored
from uq4ct.runs import Say, code_digest, environment, to_stderr

Json = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """What is held to when methods are compared."""

    name: str
    preset: str
    calibration: float
    split: Literal["test", "paper"]
    summary: str

    @property
    def layer(self) -> Layer:
        """The options that it sets."""
        return Layer.of({"data": {"calibration_fraction": self.calibration}}, f"--protocol {self.name}")


PROTOCOLS = {
    "sound": Protocol(
        "sound",
        "product",
        0.1,
        "test",
        "the labelled test split (where there is none, validation), 10 % of train kept for post-hoc calibration",
    ),
    "paper": Protocol(
        "paper",
        "paper",
        0.0,
        "paper",
        "the paper's settings, evaluated on validation where it does, no calibration split. That validation split was "
        "used to choose hyper-parameters, so expect numbers that flatter",
    ),
}


def protocol(name: str) -> Protocol:
    """Return a protocol by its name; raise UserError for another one."""
    if name not in PROTOCOLS:
        raise UserError(f"--protocol: '{name}' is not one of {', '.join(PROTOCOLS)}.{did_you_mean(name, [*PROTOCOLS])}")
    return PROTOCOLS[name]


def plan(
    methods: str,
    evaluate: Sequence[str],
    seeds: str,
    *,
    output: Path,
    held: Protocol,
    layers: Sequence[Layer],
) -> Plan:
    """Lay out the comparison; raise UserError with every mistake of the call."""
    source = str(resolve(layers).data.source)
    problems = Problems()
    with problems.caught():
        refuse_foreign(output)
    with problems.caught():
        specs = campaign.parse_methods(methods, calibration=held.calibration > 0)
    with problems.caught():
        numbers = parse_seeds(seeds)
    with problems.caught():
        sources = list(evaluate) or [evaluation_of(source)]
    problems.end()
    asked = [(each, split_of(each, held)) for each in sources]
    return campaign.plan(specs, source, numbers, asked, output=output, layers=layers)


def parse_seeds(text: str) -> list[int]:
    """Read seeds: whole numbers with commas between.

    >>> parse_seeds("1,2,3")
    [1, 2, 3]
    """
    parts = [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if not (part.isascii() and part.isdigit() and int(part) < 2**32)]:
        raise UserError(f"--seeds: expected whole numbers from 0 with commas between, as in 1,2,3, got '{wrong[0]}'")
    if len({int(part) for part in parts}) < len(parts):
        raise UserError(f"--seeds: {text}: a seed is named twice; name each once")
    return [int(part) for part in parts]


def evaluation_of(source: str) -> str:
    """Return where a training source is evaluated when nothing else is named: its own evaluation split.

    For a file it is the file called test, or validation, beside it. Raises UserError where there is none.
    """
    path = Path(source)
    if source.partition("@")[0] in tasks.names() or not path.is_file():
        return source
    beside = [path.with_name(f"{name}{suffix}") for name in ("test", "validation") for suffix in SUFFIXES]
    for other in beside:
        if other.is_file() and other != path:
            return str(other)
    raise UserError(
        f"--eval-data: name the questions to evaluate on; {path} is trained on, and there is no test{path.suffix} or "
        f"validation{path.suffix} beside it"
    )


def split_of(source: str, held: Protocol) -> str | None:
    """Return the split of a source that a protocol reports, None for its default one."""
    name = source.partition("@")[0]
    return tasks.get(name).paper_split if held.split == "paper" and name in tasks.names() else None


def describe(made: Plan, outcomes: Sequence[Outcome]) -> list[Json]:
    """Return the cells of a plan as plain values: what is done, and how long the rest will take."""
    estimates = campaign.estimate(made, outcomes)
    return [
        {
            "method": outcome.cell.method,
            "task": outcome.cell.task,
            "seed": outcome.cell.seed,
            "status": outcome.status,
            "seconds": estimates[outcome.cell.name].seconds,
            "passes": outcome.cell.config.method.passes,
            "basis": estimates[outcome.cell.name].basis,
            "folder": str(outcome.cell.folder),
            **({"message": outcome.message} if outcome.message else {}),
        }
        for outcome in outcomes
    ]


def plan_table(cells: Sequence[Json], made: Plan, outcomes: Sequence[Outcome]) -> str:
    """Return a plan for people: each cell, then time and disk in all."""
    width = max(len(cell["method"]) for cell in cells)
    lines = [
        f"{c['method']:<{width}}  {c['task']}  seed {c['seed']:<3} {c['status']:<11} {duration(c['seconds']):>8} "
        f"({c['basis']}), {c['passes']} passes"
        for c in cells
    ]
    todo = [outcome.cell for outcome in outcomes if outcome.status not in ("complete", "diverged")]
    left = sum(cell["seconds"] for cell in cells if cell["status"] not in ("complete", "diverged"))
    lines.append(f"\n{len(todo)} of {len(cells)} cells to run: about {duration(left)} of work, divided by the workers")
    lines.append(f"disk: about {disk_bytes(made, todo) / 1e6:,.0f} MB while it runs")
    lines += [f"no data: {reason}" for reason in made.absent.values()]
    return "\n".join(lines)


def write_results(made: Plan, outcomes: Sequence[Outcome], held: Protocol, output: Path) -> Json:
    """Write results.json and the tables from the files of finished cells, and return what is in results.json.

    Nothing is computed again, or written, where the finished cells are the same as the last time.
    """
    scored = [
        Scored(outcome.cell.method, outcome.cell.seed, outcome.cell.folder, _evaluations(outcome))
        for outcome in outcomes
        if outcome.status == "complete"
    ]
    options = outcomes[0].cell.config.eval
    settings = Settings(bins=options.bins, resamples=options.resamples)
    seeds = len({outcome.cell.seed for outcome in outcomes})
    cells = list(map(_told, outcomes))
    identity = json.dumps([comparison.fingerprint(scored, settings), held.name, made.absent, cells])
    before = _read(output / "results.json")
    if before.get("identity") == identity:
        return before
    found: Json = {
        "protocol": {"name": held.name, "preset": held.preset, "summary": held.summary},
        "notes": _notes(held, settings, made),
        "code_sha256": code_digest(),
        "machine": environment("cpu" if outcomes[0].cell.config.model.device == "cpu" else _device()),
        "settings": {"bins": settings.bins, "resamples": settings.resamples, "level": settings.level},
        "cells": cells,
        "results": comparison.compare(scored, seeds, settings),
        "costs": comparison.costs(scored),
        "absent": dict(made.absent),
        "identity": identity,
    }
    write_atomically(output / "results.json", json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    results, absent, notes = found["results"], found["absent"], found["notes"]
    write_atomically(output / "table.md", comparison.markdown_table(results, absent, notes))
    write_atomically(output / "table.tex", comparison.latex_table(results, absent, notes))
    write_atomically(output / "table.csv", comparison.csv_table(results, absent))
    return found


def text_of(found: Json) -> str:
    """Return the tables of results.json for a terminal."""
    table = comparison.text_table(found["results"], found["absent"], found["notes"])
    return f"{comparison.cost_table(found['costs'])}\n\n{table}" if found["results"] else table


def problems_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line for each cell without a result."""
    return [f"{title(o.cell)}: {o.status}: {o.message}" for o in outcomes if o.status != "complete"]


def _told(outcome: Outcome) -> Json:
    cell = outcome.cell
    plain = {"method": cell.method, "task": cell.task, "seed": cell.seed, "status": outcome.status}
    more = {"seconds": outcome.seconds, "passes": cell.config.method.passes, "folder": str(cell.folder)}
    return {**plain, **more, "digest": cell.digest, "message": outcome.message}


def _notes(held: Protocol, settings: Settings, made: Plan) -> list[str]:
    return [
        f"Protocol {held.name}: {held.summary}.",
        f"± is the standard deviation over seeds; intervals (table.md, table.csv) {100 * settings.level:.0f} %, by "
        f"{settings.resamples:,} two-level resamples: seeds, then questions.",
        "calibrated ECE: where 95 % of perfectly calibrated models of this confidence and n would lie.",
        *(f"{note[0].upper()}{note[1:]}." for note in made.notes),
    ]


def _evaluations(outcome: Outcome) -> tuple[str, ...]:
    return tuple(_read(outcome.cell.folder / RECEIPT)["evaluations"])


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def refuse_foreign(output: Path) -> None:
    """Refuse a folder that holds anything but a campaign."""
    if output.is_dir() and any(output.iterdir()) and not (output / "cells").is_dir():
        raise UserError(f"--output: {output} is not empty and holds no comparison; choose another folder")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output: {output} is a file, expected a folder")


def _read(path: Path) -> Json:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def run(
    made: Plan,
    output: Path,
    held: Protocol,
    *,
    engine: str,
    workers: int | None,
    gpus_per_cell: float | None,
    say: Say = to_stderr,
) -> tuple[list[Outcome], Json]:
    """Run what has no result yet; return what became of every cell, and what was written to results.json."""
    for note in (*made.notes, *made.absent.values()):
        say(f"note: {note}")
    outcomes = campaign.run_cells(
        made.cells, output, engine=engine, workers=workers, gpus_per_cell=gpus_per_cell, say=say
    )
    return outcomes, write_results(made, outcomes, held, output)
