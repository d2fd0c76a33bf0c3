"""Does a method reach the target of the study? On the same seeds and questions as its rivals, by task and pooled.

The target: an NLL no higher than that of LoRA with a temperature; where the best rival without a temperature has an ECE
of at least 2 points beyond that of calibrated models, at least a quarter less of that excess; at most 1 point of
accuracy less than LoRA.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.study.shown import signed
from uq4ct.concluding import RESAMPLES
from uq4ct.metrics.answers import Settings
from uq4ct.metrics.paired import over_seeds
from uq4ct.report.answered import Answered, Scored, read
from uq4ct.report.comparison import resampled

Json = Mapping[str, Any]
KEEPS = 0.75  # the share of a rival's excess that may be left
EXCESS = 0.02  # of the best rival, from which on the target asks for less


def target_of(finished: Sequence[Scored], asked: Json) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of two tables, each by task and then pooled: ``target`` and ``beside``.

    ``asked`` names ``ours``, ``temperature``, ``baseline``, ``rivals`` and ``tasks``, as evaluations are called, and
    the methods ``beside`` which ours is put, demanded or not. A pooled value is the mean over tasks; its tasks'
    questions are drawn independently of each other. Raises ValueError where the methods have different seeds.
    """
    beside = asked.get("beside", ())
    wanted = dict.fromkeys([asked["ours"], asked["temperature"], asked["baseline"], *asked["rivals"], *beside])
    runs = [run._replace(evaluations=tuple(asked["tasks"])) for run in finished if run.method in wanted]
    seeds = {name: sorted(run.seed for run in runs if run.method == name) for name in wanted}
    if len(set(map(tuple, seeds.values()))) > 1:
        raise ValueError(f"methods have different seeds: {seeds}")
    found = read(sorted(runs, key=lambda run: run.seed))
    rows: dict[str, list[dict[str, Any]]] = {"target": [], "beside": []}
    parts: dict[tuple[str, str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for number, task in enumerate(asked["tasks"]):
        drawn = resampled(found[task], Settings(resamples=RESAMPLES, seed=number))
        values = {name: _values(found[task][name], drawn[name]) for name in wanted}
        demanded = [("target", *demand) for demand in _demands(asked, values)]
        others = [("beside", demand, theirs, 1.0) for theirs in beside for demand in ("nll", "ece")]
        for kind, demand, theirs, weight in [*demanded, *others]:
            own, other = values[asked["ours"]][demand], values[theirs][demand]
            part = tuple(mine - weight * rival for mine, rival in zip(own, other, strict=True))
            parts.setdefault((kind, demand, theirs if kind == "beside" else ""), []).append(part)
            means = [float(own[0].mean()), float(other[0].mean())]
            rows[kind].append({"task": task, **_row(demand, *part), "rival": theirs, "values": means})
    for (kind, demand, theirs), by_task in parts.items():
        if len(by_task) > 1:
            pooled = (np.mean(part, axis=0) for part in zip(*by_task, strict=True))
            rivals = {row["rival"] for row in rows[kind] if row["demand"] == demand}
            rival = theirs or (rivals.pop() if len(rivals) == 1 else "best of each")
            rows[kind].append({"task": "all", **_row(demand, *pooled), "rival": rival})
    return {kind: [{**row, "ours": asked["ours"]} for row in one] for kind, one in rows.items()}


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
    found = over_seeds(difference, drawn, pivotal=demand in ("ECE excess", "ece"))
    return {"demand": demand, "difference": found.mean, "interval": list(found.interval), "seeds": len(difference)}


def table(found: Json, args: Sequence[str]) -> Iterator[str]:
    """Return the table of a campaign's target."""
    yield "| task | demand | ours | rival | difference | reached |"
    yield "|---|---|---|---|---|---|"
    for row in found["target"]:
        scale, digits = (1, 3) if row["demand"] == "nll" else (100, 1)
        mine, theirs = [f" {scale * value:.{digits}f}" for value in row.get("values", ())] or ["", ""]
        asks, reached = _verdict(row)
        yield (
            f"| {row['task']} | {asks} | `{row['ours']}`{mine} | `{row['rival']}`{theirs} | "
            f"{signed(row, scale, digits)} | {reached} |"
        )


def _verdict(row: Json) -> tuple[str, str]:
    low, high = row["interval"]
    if row["demand"] == "ECE excess":
        return "ECE excess over null, points: ours - 0.75 x rival < 0", _decided(high < 0, low >= 0)
    if row["demand"] == "nll":
        return "NLL no higher", _decided(high <= 0, low > 0)
    return "accuracy, points: at most 1 less", _decided(low >= -0.01, high < -0.01)


def _decided(yes: bool, no: bool) -> str:
    """Say what the whole interval says, if it does."""
    return "yes" if yes else "no" if no else "not resolved"


def beside(found: Json, args: Sequence[str]) -> Iterator[str]:
    """Return how far ours is from other methods in NLL and ECE, by task and over all; further words choose methods."""
    rows = {(row["rival"], row["demand"], row["task"]): row for row in found["beside"]}
    tasks = list(dict.fromkeys(row["task"] for row in found["beside"]))
    yield f"| beside | ours minus it | {' | '.join(tasks)} |"
    yield "|---|---|" + "---|" * len(tasks)
    for rival in args or dict.fromkeys(row["rival"] for row in found["beside"]):
        for demand, title, scale, digits in (("nll", "NLL", 1, 3), ("ece", "ECE, points", 100, 1)):
            shown = [signed(rows[rival, demand, task], scale, digits) for task in tasks]
            yield f"| `{rival}` | {title} | {' | '.join(shown)} |"
