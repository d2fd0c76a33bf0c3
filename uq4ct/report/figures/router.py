"""What the router of a mixture knows: FEU, which is a confidence, by kind of question, and the load of its experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uq4ct.report.drawing import SMALL, Drawing, Plane
from uq4ct.report.figures.base import Figure, Panel
from uq4ct.report.figures.rows import Spot, Track, chart
from uq4ct.report.figures.selective import percent_tick, right_and_wrong
from uq4ct.report.material import RunFacts, Series
from uq4ct.report.tables import percent

Json = Mapping[str, Any]
FEU_AXIS = "FEU, a confidence: large is certain"


def feu_of(task: str, series: Sequence[Series]) -> Figure:
    """Draw how FEU is spread over right and wrong answers."""
    title = "FEU when right and when wrong"
    return right_and_wrong(task, series, "feu", title, FEU_AXIS, lambda member: np.asarray(member.answers.feu))


def strata_of(series: Series) -> dict[str, dict[str, float]]:
    """Return means over seeds of n, accuracy, truth, confidence and FEU by stratum."""
    found = [member.metrics.get("strata") or {} for member in series.members]
    strata: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for each in found for name in each):
        rows = [each[name] for each in found if name in each]
        keys = [k for k in ("n", "accuracy", "truth", "confidence", "feu") if all(r.get(k) is not None for r in rows)]
        strata[name] = {key: float(np.mean([row[key] for row in rows])) for key in keys}
    return strata


def feu_by_stratum(task: str, series: Sequence[Series]) -> Figure | None:
    """Draw FEU and accuracy side by side for each kind of question; None where there is one kind, or none."""
    panels, numbers = [], []
    for one in series:
        strata = {name: row for name, row in strata_of(one).items() if "feu" in row}
        if len(strata) < 2:
            continue
        names = sorted(strata, key=lambda name: strata[name]["accuracy"])
        tracks = [
            Track(
                "accuracy, %", [[Spot(strata[k]["accuracy"], colour="ink")] for k in names], show=percent_tick, width=84
            ),
            Track(
                "FEU (a confidence)", [[Spot(strata[k]["feu"], shape="diamond")] for k in names], width=112, least=0.02
            ),
        ]
        told = ", ".join(f"{k}: accuracy {percent(strata[k]['accuracy'])} %, FEU {strata[k]['feu']:.3f}" for k in names)
        panels.append(Panel(one.label, chart(names, tracks), told))
        numbers += [{"method": one.label, "task": task, "stratum": name, **strata[name]} for name in names]
    title = f"FEU by kind of question on {task}"
    return Figure("feu-strata", task, title, tuple(panels), tuple(numbers)) if panels else None


def load(runs: Sequence[RunFacts]) -> Figure | None:
    """Draw each expert's share of the tokens by layer at the end of training; the line is an even share.

    Experts have no identity across seeds, so the first seed of each method is drawn. None where no log has it.
    """
    panels, numbers, seen = [], [], set()
    for run in runs:
        layers = last_load(run.log)
        if not layers or run.label in seen:
            continue
        seen.add(run.label)
        seed = f", seed {run.seed}" if run.seed is not None else ""
        panels.append(_load(f"{run.label}{seed}", layers))
        numbers += [
            {"method": run.label, "seed": run.seed, "layer": k, "expert": e, "share": share}
            for k, layer in enumerate(layers, 1)
            for e, share in enumerate(layer, 1)
        ]
    return Figure("load", "", "Expert load by layer", tuple(panels), tuple(numbers)) if panels else None


def last_load(log: Sequence[Json]) -> list[list[float]]:
    """Return shares by layer and expert from the last entry of a log that has them."""
    for entry in reversed(log):
        layers = entry.get("expert_load")
        if isinstance(layers, list) and layers and all(isinstance(layer, list) and layer for layer in layers):
            return layers
    return []


def _load(label: str, layers: Sequence[Sequence[float]]) -> Panel:
    height, gap = 30, 8
    top = max(0.3, *(share for layer in layers for share in layer))
    drawing = Drawing(218, 14 + len(layers) * (height + gap) + 20)
    experts = max(map(len, layers))
    for number, layer in enumerate(layers):
        y = 8 + number * (height + gap)
        plane = Plane(drawing, 50, y, 204, y + height, (0, experts), (0, top))
        drawing.boxes(
            [plane.box(e + 0.12, 0, e + 0.88, share) for e, share in enumerate(layer)], colour="accent", opacity=0.7
        )
        drawing.line(plane.at(0, 0), plane.at(experts, 0), colour="muted", width=0.8)
        drawing.line(
            plane.at(0, 1 / len(layer)), plane.at(experts, 1 / len(layer)), colour="ink", width=0.9, dash=(3, 2)
        )
        drawing.words(44, y + height - 3, f"layer {number + 1}", size=SMALL, anchor="end")
    base = 8 + len(layers) * (height + gap) + 6
    drawing.words((50 + 204) / 2, base + 8, f"experts 1 to {experts}; dashed: even", anchor="middle", size=SMALL)
    told = "; ".join(f"layer {k}: " + ", ".join(percent(s) for s in layer) for k, layer in enumerate(layers, 1))
    return Panel(label, drawing, told)
