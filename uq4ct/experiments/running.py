"""Run a table of the paper, and write it: Markdown, csv, LaTeX and JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from uq4ct import campaign
from uq4ct.campaign.progress import duration
from uq4ct.experiments.layout import blocks, latex, tidy_csv
from uq4ct.experiments.page import page
from uq4ct.experiments.record import entries, record
from uq4ct.experiments.request import Request
from uq4ct.manifest import write_atomically
from uq4ct.runs import Say, to_stderr


def describe(request: Request) -> list[dict[str, Any]]:
    """Describe every cell in plain values: how far it is, and the seconds that it took or will take."""
    outcomes = [campaign.state(cell) for cell in request.plan.cells]
    seconds = campaign.estimate(request.plan, outcomes)
    found = [
        {
            "method": outcome.cell.method,
            "task": outcome.cell.task,
            "seed": outcome.cell.seed,
            "status": outcome.status,
            "seconds": seconds[outcome.cell.name].seconds,
            "passes": outcome.cell.config.method.passes,
        }
        for outcome in outcomes
    ]
    planned = {cell["task"] for cell in found}
    absent = dict.fromkeys(each.column.train for each in request.columns if each.missing)
    nothing = {"status": "no data", "seconds": None, "passes": None}
    return found + [
        {"method": method, "task": task, "seed": seed, **nothing}
        for task in absent
        if task not in planned
        for seed in request.seeds
        for method in request.methods.values()
    ]


def listing(request: Request, cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the cells as lines for a person, and what they cost together."""
    lines = [f"{request.experiment.number}: {request.experiment.title}. At full length with the paper's settings:"]
    lines += [request.experiment.cost, ""]
    width = max(len(cell["method"]) for cell in cells)
    for cell in cells:
        seconds = "" if cell["seconds"] is None else f"{duration(cell['seconds']):>10}  {cell['passes']} passes"
        lines.append(
            f"{cell['method']:<{width}}  {cell['task']:<14} seed {cell['seed']}  {cell['status']:<11}{seconds}"
        )
    left = sum(cell["seconds"] or 0.0 for cell in cells if cell["status"] != "complete")
    todo = [cell for cell in cells if cell["status"] not in ("complete", "no data")]
    lines += ["", f"{len(todo)} of {len(cells)} cells to run; about {duration(left)} on this machine, one at a time"]
    return "\n".join([*lines, *(f"note: {note}" for note in request.deviations)])


def run(
    request: Request, *, engine: str = "local", workers: int | None = None, say: Say = to_stderr
) -> tuple[str, dict[str, Any]]:
    """Run every cell that has no result yet and write the table; return its Markdown page and its record."""
    began = time.monotonic()
    for each in request.columns:
        if each.missing:
            say(f"{each.column.title}: no data: {each.missing}")
    outcomes = campaign.run_cells(request.plan.cells, request.output, engine=engine, workers=workers, say=say)
    facts, found = record(request, outcomes, time.monotonic() - began), entries(request, outcomes)
    text = page(request.experiment, found, facts)
    files = {
        "md": text,
        "csv": tidy_csv(request.experiment, found),
        "tex": latex(facts["title"], blocks(request.experiment, found), request.experiment.columns, facts["remark"]),
        "json": json.dumps(facts, ensure_ascii=False, allow_nan=False, indent=1) + "\n",
    }
    for suffix, content in files.items():
        write_atomically(request.output / f"{request.experiment.name}.{suffix}", content)
    return text, facts
