"""What a reproduced table says, in plain values: the numbers, where they come from, and what is amiss."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from uq4ct.campaign import Cell, Outcome
from uq4ct.config import Config
from uq4ct.experiments import METRICS
from uq4ct.experiments.layout import Entry
from uq4ct.experiments.request import Questions, Request

SMOKE = "SMOKE RUN: a few training steps, to see that everything runs; it proves nothing about the methods"


def entries(request: Request, outcomes: Sequence[Outcome]) -> dict[tuple[str, str], Entry]:
    """Gather the results of all seeds for every row and column of the table."""
    return {
        (row, each.column.title): _entry(method, each, outcomes)
        for row, method in request.methods.items()
        for each in request.columns
    }


def _entry(method: str, each: Questions, outcomes: Sequence[Outcome]) -> Entry:
    if each.test is None:
        return Entry({}, 0, "no data")
    mine = [o for o in outcomes if (o.cell.method, o.cell.task) == (method, each.column.train)]
    found = [result for outcome in mine for result in _results(each, [outcome])]
    values = {name: tuple(result[name] for result in found) for name in METRICS.values()}
    return Entry(values, len(mine), next((o.status for o in mine if o.status != "complete"), "-"))


def _results(each: Questions, outcomes: Sequence[Outcome]) -> list[Mapping[str, Any]]:
    """Return the evaluations on a column's test split, of runs that were trained for this column."""
    asked = (each.column.test, each.test.split if each.test else None)
    mine = [outcome for outcome in outcomes if outcome.cell.task == each.column.train]
    return [result for o in mine for result in o.results if (result["task"], result["split"]) == asked]


def record(request: Request, outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Return the whole table and everything below it; ``seconds`` is what this call took."""
    experiment, smoke = request.experiment, request.budget == "smoke"
    found, results = entries(request, outcomes), [result for outcome in outcomes for result in outcome.results]
    title = f"{experiment.number} of the UQ4CT paper with {request.model}: {experiment.title}"
    return {
        "experiment": experiment.name,
        "title": f"{title} ({SMOKE})" if smoke else title,
        "remark": SMOKE if smoke else "",
        "model": request.model,
        "paper_model": experiment.base_title,
        "preset": request.preset,
        "budget": request.budget,
        "seeds": list(request.seeds),
        "columns": [_column(each, request, outcomes) for each in request.columns],
        "rows": [_row(row, request, found) for row in request.methods],
        "settings": _settings(request),
        "bins": sorted({result["settings"]["bins"] for result in results}),
        "prompts": sorted({f"{r['prompt']['pack']}, hash {r['prompt']['hash'][:12]}" for r in results}),
        "dtypes": sorted({result["dtype"] for result in results}),
        "machines": sorted({_machine(outcome.cell) for outcome in outcomes if outcome.results}),
        "seconds": {"this_call": round(seconds, 1), "cells": round(sum(o.seconds or 0.0 for o in outcomes), 1)},
        "deviations": [*request.deviations, *_lost(request, outcomes)],
        "notes": [*experiment.notes, *request.plan.notes],
        "cells": [
            {
                **{name: getattr(outcome.cell, name) for name in ("method", "task", "seed")},
                "status": outcome.status,
                "seconds": outcome.seconds,
                "message": outcome.message,
                "folder": str(outcome.cell.folder),
            }
            for outcome in outcomes
        ],
    }


def _row(row: str, request: Request, found: Mapping[tuple[str, str], Entry]) -> dict[str, Any]:
    experiment, method = request.experiment, request.methods[row]
    passes = {cell.config.method.passes for cell in request.plan.cells if cell.method == method}
    columns = {}
    for k, column in enumerate(experiment.columns):
        entry = found[row, column.title]
        ours = {metric: list(entry.values.get(name, ())) for metric, name in METRICS.items()}
        printed = {m: rows[row][k].text for m, rows in experiment.paper.items() if row in rows}
        columns[column.title] = {
            "ours": ours,
            "paper": printed or None,
            "status": "complete" if ours["ACC"] and entry.complete else entry.state,
        }
    return {"row": row, "method": method, "passes": max(passes, default=None), "columns": columns}


def _column(each: Questions, request: Request, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    cells = [cell for cell in request.plan.cells if cell.task == each.column.train]
    return {
        "title": each.column.title,
        "group": each.column.group,
        "train": each.column.train,
        "train_questions": len(each.train) if each.train else None,
        "steps": max((request.plan.sizes[cell.name].steps for cell in cells), default=None),
        "test": each.column.test,
        "split": each.test.split if each.test else None,
        "n": sorted({result["n"] for result in _results(each, outcomes)}),
        "rows": each.rows,
        "official": each.column.rows,
        "missing": each.missing,
    }


def _lost(request: Request, outcomes: Sequence[Outcome]) -> list[str]:
    """Say where fewer questions were scored than there are: that would be a fault of ours."""
    return [
        f"{each.column.title}: {result['n']:,} of {len(each.test):,} questions were scored."
        for each in request.columns
        if each.test
        for result in _results(each, outcomes)
        if result["n"] != len(each.test)
    ]


def _settings(request: Request) -> list[str]:
    """Return the options of training, by task where they differ, and those of the methods, equal ones together."""
    cells = request.plan.cells
    lines = [(f"training: {_training(cell.config)}", cell.task) for cell in cells]
    titles = {method: row for row, method in request.methods.items()}
    lines += [(text, titles[cell.method]) for cell in cells if (text := _options(cell.config))]
    grouped: dict[str, list[str]] = {}
    for text, name in lines:
        names = grouped.setdefault(text, [])
        names += [name] if name not in names else []
    return [f"{', '.join(names)}: {text}" for text, names in grouped.items()]


def _training(config: Config) -> str:
    train, batch = config.train, config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps
    length = f"{train.max_steps} steps" if train.max_steps > 0 else f"{train.num_train_epochs:g} epochs"
    kept = config.data.calibration_fraction
    return (
        f"learning rate {train.learning_rate:g} {train.lr_scheduler_type}, warm-up {train.warmup_steps:g}, "
        f"weight decay {train.weight_decay:g}, batch {batch}, {length}, cut-off {config.prompt.max_length} tokens, "
        f"{f'{kept:.0%} of the questions' if kept else 'no questions'} kept for calibration"
    )


def _options(config: Config) -> str:
    """Return every option of a method that is set, without what its kind leaves open."""
    options = {name: value for name, value in config.method.options().items() if value is not None}
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _machine(cell: Cell) -> str:
    facts = json.loads((cell.folder / "environment.json").read_text(encoding="utf-8"))
    packages = ", ".join(f"{name} {facts['packages'][name]}" for name in ("torch", "transformers", "peft"))
    place = facts["device"] if facts["device"] != "cpu" else f"{facts['processor']} CPU"
    return f"{place}, {facts['threads']} threads, {facts['platform']}; uq4ct {facts['uq4ct']}, {packages}"
