"""How a training went: the logged quantities over its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from uq4ct.report.drawing import Drawing, Plane, plain_number, ticks
from uq4ct.report.figures.base import Figure, Panel
from uq4ct.report.material import RunFacts

CURVES = {
    "ce": "answer loss",
    "accuracy": "accuracy in training",
    "feu": "FEU (a confidence)",
    "calibration": "calibration loss (Eq. 10)",
    "balance": "load balance (1 is even)",
    "expert_load_entropy": "evenness of expert load",
}
Points = list[tuple[float, float]]


def training(label: str, runs: Sequence[RunFacts]) -> Figure | None:
    """Draw each logged quantity of a method over the steps, a line per seed; None where nothing was logged twice."""
    panels, numbers = [], []
    for key, title in CURVES.items():
        lines = [(run.seed, points) for run in runs if len(points := _points(run, key)) > 1]
        if lines:
            panels.append(_panel(title, [points for _, points in lines]))
            numbers += [
                {"method": label, "seed": seed, "quantity": key, "step": step, "value": value}
                for seed, points in lines
                for step, value in points
            ]
    return Figure("training", label, f"Training of {label}", tuple(panels), tuple(numbers)) if panels else None


def _points(run: RunFacts, key: str) -> Points:
    return [
        (float(entry["step"]), float(entry[key]))
        for entry in run.log
        if _is_number(entry.get(key)) and _is_number(entry.get("step"))
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _panel(title: str, lines: Sequence[Points]) -> Panel:
    steps = [step for points in lines for step, _ in points]
    values = [value for points in lines for _, value in points]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * max(abs(high), 0.1)
    drawing = Drawing(176, 124)
    plane = Plane(drawing, 38, 6, 170, 90, (min(steps), max(max(steps), min(steps) + 1)), (low - margin, high + margin))
    plane.y_axis([(v, plain_number(v)) for v in ticks(*plane.y, 3)])
    drawing.lines(
        [[plane.at(*point) for point in points] for points in lines], colour="accent", width=1.1, opacity=0.75
    )
    plane.x_axis([(v, plain_number(v)) for v in ticks(*plane.x, 3)], "step")
    ends = ", ".join(f"{points[-1][1]:.3g}" for points in lines)
    return Panel(title, drawing, f"{ends} at the end")
