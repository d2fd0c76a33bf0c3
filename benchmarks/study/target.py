"""Does a method reach the target of the study? On the same seeds and questions as its rivals, by task and pooled.

The target: an NLL no higher than that of LoRA with a temperature; where the best rival without a temperature has an ECE
of at least 2 points beyond that of calibrated models, at least a quarter less of that excess; at most 1 point of
accuracy less than LoRA.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uq4ct.metrics.answers import Settings
from uq4ct.metrics.paired import over_seeds
from uq4ct.report.answered import Answered, Scored, read
from uq4ct.report.comparison import resampled

Json = Mapping[str, Any]
KEEPS = 0.75  # the share of a rival's excess that may be left
EXCESS = 0.02  # of the best rival, from which on the target asks for less


def target_of(folder: Path, asked: Json) -> list[dict[str, Any]]:
    """Return the rows of the table: one for each task and demand, then those pooled over tasks.

    ``asked`` names ``ours``, ``temperature``, ``baseline``, ``rivals`` and ``tasks``, as evaluations are called. A
    pooled value is the mean over tasks; its tasks' questions are drawn independently of each other.
    """
    wanted = dict.fromkeys([asked["ours"], asked["temperature"], asked["baseline"], *asked["rivals"]])
    scored = [
        Scored(cell["method"], cell["seed"], path.parent, tuple(asked["tasks"]))
        for path in sorted(folder.glob("cells/*/cell.json"))
        if (cell := json.loads(path.read_text(encoding="utf-8")))["method"] in wanted
    ]
    read_all = read(scored)
    settings = Settings(resamples=2000)
    demands: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    rows = []
    for number, task in enumerate(asked["tasks"]):
        methods = {name: sorted(read_all[task][name], key=lambda run: run.run.seed) for name in wanted}
        seeds = {name: [run.run.seed for run in runs] for name, runs in methods.items()}
        if len(set(map(tuple, seeds.values()))) > 1:
            raise ValueError(f"{folder}: {task}: methods have different seeds: {seeds}")
        draws = resampled(methods, Settings(resamples=settings.resamples, seed=number))
        values = {name: _values(runs) for name, runs in methods.items()}
        for demand, mine, theirs, weight in _demands(asked, values):
            metric = "ece" if demand == "ECE excess" else demand
            difference = values[mine][metric] - weight * values[theirs][metric]
            drawn = draws[mine][metric] - weight * draws[theirs][metric]
            if demand == "ECE excess":
                null = values[mine]["null"] - weight * values[theirs]["null"]
                difference, drawn = difference - null, drawn - null
            demands.setdefault(demand, []).append((difference, drawn))
            rows.append(_row(task, demand, mine, theirs, weight, difference, drawn, values))
    for demand, parts in demands.items():
        if len(parts) > 1:
            difference, drawn = (np.mean(part, axis=0) for part in zip(*parts, strict=True))
            mine, theirs, weight = next((r["ours"], r["rival"], r["weight"]) for r in rows if r["demand"] == demand)
            rival = theirs if len({r["rival"] for r in rows if r["demand"] == demand}) == 1 else "best of each"
            rows.append(_row("all", demand, mine, rival, weight, difference, drawn, None))
    return rows


def _values(runs: Sequence[Answered]) -> dict[str, np.ndarray]:
    found = {name: np.array([run.metrics[name] for run in runs]) for name in ("nll", "accuracy", "ece")}
    return {**found, "null": np.array([run.metrics["ece_null"]["mean"] for run in runs])}


def _demands(asked: Json, values: Mapping[str, Json]) -> Iterator[tuple[str, str, str, float]]:
    """Yield demand, method, rival, and how much of the rival's value is subtracted."""
    ours = asked["ours"]
    yield "nll", ours, asked["temperature"], 1.0
    yield "accuracy", ours, asked["baseline"], 1.0
    best = min(asked["rivals"], key=lambda name: float((values[name]["ece"] - values[name]["null"]).mean()))
    if float((values[best]["ece"] - values[best]["null"]).mean()) >= EXCESS:
        yield "ECE excess", ours, best, KEEPS


def _row(
    task: str,
    demand: str,
    mine: str,
    theirs: str,
    weight: float,
    difference: np.ndarray,
    drawn: np.ndarray,
    values: Mapping[str, Json] | None,
) -> dict[str, Any]:
    found = over_seeds(difference, drawn, pivotal=demand == "ECE excess")
    row = {"task": task, "demand": demand, "ours": mine, "rival": theirs, "weight": weight}
    if values is not None:
        excess = demand == "ECE excess"
        own, other = (values[name] for name in (mine, theirs))
        both = [each["ece"] - each["null"] if excess else each[demand] for each in (own, other)]
        row["values"] = [float(value.mean()) for value in both]
    return {**row, "difference": found.mean, "interval": list(found.interval), "seeds": len(difference)}


def table(found: Json, args: Sequence[str]) -> Iterator[str]:
    """Return the table of a campaign's target."""
    yield "| task | demand | ours | rival | difference | reached |"
    yield "|---|---|---|---|---|---|"
    for row in found["target"]:
        scale, digits = (1, 3) if row["demand"] == "nll" else (100, 1)
        show = [f"{scale * value:+.{digits}f}" for value in (row["difference"], *row["interval"])]
        mine, theirs = [f" {scale * value:.{digits}f}" for value in row.get("values", ())] or ["", ""]
        asks, reached = _verdict(row)
        yield (
            f"| {row['task']} | {asks} | `{row['ours']}`{mine} | `{row['rival']}`{theirs} | "
            f"{show[0]} ({show[1]}, {show[2]}) | {reached} |"
        )


def _verdict(row: Json) -> tuple[str, str]:
    low, high = row["interval"]
    if row["demand"] == "ECE excess":
        asks = "ECE excess over null, points: ours - 0.75 x rival < 0, interval too"
        return asks, "yes" if high < 0 else "no" if row["difference"] >= 0 else "not resolved"
    if row["demand"] == "nll":
        return "NLL no higher", "yes" if row["difference"] <= 0 else "no" if low > 0 else "not resolved"
    return "accuracy, points: at most 1 less", "yes" if low >= -0.01 else "no" if high < -0.01 else "not resolved"
