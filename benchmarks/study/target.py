"""Does a method reach the target of the study? On the same seeds and questions as its rivals, by task and pooled.

The target: an NLL no higher than that of LoRA with a temperature; where the best rival without a temperature has an ECE
of at least 2 points beyond that of calibrated models, at least a quarter less of that excess; at most 1 point of
accuracy less than LoRA.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from uq4ct.concluding import RESAMPLES
from uq4ct.metrics.answers import Settings
from uq4ct.metrics.paired import over_seeds
from uq4ct.report.answered import Answered, Scored, read
from uq4ct.report.comparison import resampled

Json = Mapping[str, Any]
KEEPS = 0.75  # the share of a rival's excess that may be left
EXCESS = 0.02  # of the best rival, from which on the target asks for less


def target_of(finished: Sequence[Scored], asked: Json) -> list[dict[str, Any]]:
    """Return the rows of the table: one for each task and demand, then those pooled over tasks.

    ``asked`` names ``ours``, ``temperature``, ``baseline``, ``rivals`` and ``tasks``, as evaluations are called. A
    pooled value is the mean over tasks; its tasks' questions are drawn independently of each other. Raises ValueError
    where the methods have different seeds.
    """
    wanted = dict.fromkeys([asked["ours"], asked["temperature"], asked["baseline"], *asked["rivals"]])
    runs = [run._replace(evaluations=tuple(asked["tasks"])) for run in finished if run.method in wanted]
    seeds = {name: sorted(run.seed for run in runs if run.method == name) for name in wanted}
    if len(set(map(tuple, seeds.values()))) > 1:
        raise ValueError(f"methods have different seeds: {seeds}")
    found = read(sorted(runs, key=lambda run: run.seed))
    rows: list[dict[str, Any]] = []
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for number, task in enumerate(asked["tasks"]):
        drawn = resampled(found[task], Settings(resamples=RESAMPLES, seed=number))
        values = {name: _values(found[task][name], drawn[name]) for name in wanted}
        for demand, theirs, weight in _demands(asked, values):
            own, other = values[asked["ours"]][demand], values[theirs][demand]
            part = tuple(mine - weight * rival for mine, rival in zip(own, other, strict=True))
            parts.setdefault(demand, []).append(part)
            means = [float(own[0].mean()), float(other[0].mean())]
            rows.append({"task": task, **_row(demand, *part), "rival": theirs, "values": means})
    for demand, by_task in parts.items():
        if len(by_task) > 1:
            pooled = (np.mean(part, axis=0) for part in zip(*by_task, strict=True))
            rivals = {row["rival"] for row in rows if row["demand"] == demand}
            rival = rivals.pop() if len(rivals) == 1 else "best of each"
            rows.append({"task": "all", **_row(demand, *pooled), "rival": rival})
    return [{**row, "ours": asked["ours"]} for row in rows]


def _values(runs: Sequence[Answered], drawn: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return each metric of the seeds, (seed,), and of drawn questions, (resample, seed)."""
    null = np.array([run.metrics["ece_null"]["mean"] for run in runs])
    own = {name: (np.array([run.metrics[name] for run in runs]), drawn[name]) for name in ("nll", "accuracy", "ece")}
    return {**own, "ECE excess": (own["ece"][0] - null, own["ece"][1] - null)}


def _demands(asked: Json, values: Mapping[str, Json]) -> Iterator[tuple[str, str, float]]:
    """Yield a metric, the rival, and how much of the rival's value is subtracted."""
    yield "nll", asked["temperature"], 1.0
    yield "accuracy", asked["baseline"], 1.0
    excess = {name: float(values[name]["ECE excess"][0].mean()) for name in asked["rivals"]}
    best = min(excess, key=lambda name: excess[name])
    if excess[best] >= EXCESS:
        yield "ECE excess", best, KEEPS


def _row(demand: str, difference: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
    found = over_seeds(difference, drawn, pivotal=demand == "ECE excess")
    return {"demand": demand, "difference": found.mean, "interval": list(found.interval), "seeds": len(difference)}


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
