"""What a reproduced table says, in plain values: the numbers, where they come from, and what is amiss."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    title = f"{experiment.number} of the UQ4CT paper, with {request.model}: {experiment.title}"
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
        "settings": list(_settings(request)),
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
    return {
        "row": row,
        "title": experiment.named(row),
        "method": method,
        "passes": max(passes, default=None),
        "columns": columns,
    }


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


def _lost(request: Request, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Say where fewer questions were scored than there are: that would be a fault of ours."""
    for each in request.columns:
        for n in sorted({result["n"] for result in _results(each, outcomes)}):
            if each.test and n != len(each.test):
                yield f"{each.column.title}: {n:,} of {len(each.test):,} questions were scored."


def _settings(request: Request) -> Iterator[str]:
    """Yield the options of training, by task where they differ, and of the methods: those of all, then of each."""
    cells = [cell for cell in request.plan.cells if _options(cell.config)]  # zero-shot has none, and is not trained
    for text, tasks in _grouped((_training(cell.config), cell.task) for cell in cells).items():
        yield f"training on {', '.join(tasks)}: {text}"
    adapted = {cell.method: _options(cell.config) for cell in cells}
    common = set.intersection(*(set(options.items()) for options in adapted.values()))
    if len(adapted) > 1 and common:
        yield f"all methods: {_listed(dict(sorted(common)))}"
    own = (
        (_listed({name: value for name, value in adapted[method].items() if (name, value) not in common}), row)
        for row, method in request.methods.items()
        if method in adapted
    )
    for text, rows in _grouped(own).items():
        yield f"{', '.join(map(request.experiment.named, rows))}: {text or 'nothing else'}"


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Gather the names of each text, both in the order in which they come."""
    found: dict[str, dict[str, None]] = {}
    for text, name in pairs:
        found.setdefault(text, {})[name] = None
    return {text: list(names) for text, names in found.items()}


def _training(config: Config) -> str:
    train, batch = config.train, config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps
    length = f"{train.max_steps} steps" if train.max_steps > 0 else f"{train.num_train_epochs:g} epochs"
    kept = config.data.calibration_fraction
    parts = [
        f"learning rate {train.learning_rate:g} {train.lr_scheduler_type}, warm-up {train.warmup_steps:g}",
        f"weight decay {train.weight_decay:g}",
        f"dropout {getattr(config.method, 'dropout', 0.0):g}",
        f"batch {batch}",
        length,
        f"cut-off {config.prompt.max_length} tokens",
        f"{f'{kept:.0%} of the questions' if kept else 'no questions'} kept for calibration",
    ]
    return ", ".join(parts)


def _options(config: Config) -> dict[str, str]:
    """Return the options of a method as text, without what is not used; dropout, which tasks set, is with training."""
    options = {name: value for name, value in config.method.options().items() if name != "dropout"}
    if options.get("rank"):
        options["alpha"] = options["alpha"] or 2 * options["rank"]
        options.pop("matched_to", None)
    return {name: _text(value) for name, value in options.items() if value}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _listed(options: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _machine(cell: Cell) -> str:
    facts = json.loads((cell.folder / "environment.json").read_text(encoding="utf-8"))
    packages = ", ".join(f"{name} {facts['packages'][name]}" for name in ("torch", "transformers", "peft"))
    place = facts["device"] if facts["device"] != "cpu" else f"{facts['processor']} CPU"
    return f"{place}, {facts['threads']} threads, {facts['platform']}; uq4ct {facts['uq4ct']}, {packages}"
