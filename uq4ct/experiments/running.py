"""Run a table of the paper, and write it: Markdown, csv, LaTeX and JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from uq4ct import campaign, comparing
from uq4ct.campaign import Outcome
from uq4ct.experiments.layout import blocks, latex, tidy_csv
from uq4ct.experiments.page import page
from uq4ct.experiments.record import entries, record
from uq4ct.experiments.request import Request
from uq4ct.manifest import write_atomically
from uq4ct.runs import Say, to_stderr


def describe(request: Request, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Describe every cell in plain values, those without data too: how far it is, and how long the rest will take."""
    found = comparing.describe(request.plan, outcomes)
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


def listing(request: Request, outcomes: Sequence[Outcome]) -> str:
    """Return the plan of a table for people: what it costs, each cell, and what sets it apart from the paper's."""
    experiment = request.experiment
    lines = [f"{experiment.number}: {experiment.title}", f"the paper's, in full: {experiment.cost}", ""]
    lines.append(comparing.plan_table(comparing.describe(request.plan, outcomes), request.plan, outcomes))
    return "\n".join([*lines, *(f"note: {note}" for note in request.deviations)])


def run(
    request: Request, *, engine: str = "local", workers: int | None = None, say: Say = to_stderr
) -> tuple[str, dict[str, Any], list[str]]:
    """Run every cell that has no result yet and write the table.

    Return its Markdown page, its record, and a line for each cell without a result.
    """
    began = time.monotonic()
    for column, reason in request.plan.absent.items():
        say(f"note: {column}: no data: {reason}")
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
    return text, facts, comparing.problems_of(outcomes)
