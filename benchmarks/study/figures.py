"""Figures of a campaign: methods down, tasks across, a metric with its interval, as SVG files beside the pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from uq4ct.report.drawing import svg_file
from uq4ct.report.figures.rows import Spot, Track, chart

Json = Mapping[str, Any]
DRAWN = {"nll": ("NLL", 1.0), "ece": ("ECE, %", 100.0)}
KEY = (
    (Spot(0, hollow=True), "raw"),
    (Spot(0), "scaled on 10 % of the training questions"),
    (Spot(0, shape="diamond", colour="right"), "the recommended method"),
)


def figures(name: str, found: Json) -> Iterator[tuple[str, str]]:
    """Yield name and text of each SVG file; none where the campaign asks for no figure.

    ``found["figure"]`` names the ``tasks`` and, as the figure is to call them, the ``methods``; the last is ours. Grey
    bands are where the ECE of 95 % of perfectly calibrated models with these confidences lies.
    """
    asked = found.get("figure")
    if not asked:
        return
    rows = {(row["task"], row["method"]): row for row in found["results"]}
    methods = list(asked["methods"])
    for metric, (title, scale) in DRAWN.items():
        tracks = [_track(task, [rows[task, method] for method in methods], metric, scale) for task in asked["tasks"]]
        drawing = chart(list(asked["methods"].values()), tracks, KEY)
        yield f"{name}-{metric}.svg", svg_file(drawing, f"{title} of each method and task, campaign {name}")


def _track(task: str, rows: Sequence[Json], metric: str, scale: float) -> Track:
    spots = [[_spot(row, metric, scale, row is rows[-1])] for row in rows]
    bands = [_band(row, scale) for row in rows] if metric == "ece" else ()
    texts = [f"{scale * row[metric]:.{1 if scale > 1 else 3}f}" for row in rows]
    return Track(task, spots, better="lower", bands=bands, texts=texts)


def _spot(row: Json, metric: str, scale: float, ours: bool) -> Spot:
    low, high = (scale * end for end in row["intervals"][metric])
    look: dict[str, Any] = {"shape": "diamond", "colour": "right"} if ours else {"hollow": "+" not in row["method"]}
    return Spot(scale * row[metric], low, high, **look)


def _band(row: Json, scale: float) -> tuple[float, float] | None:
    null = row["ece_null"]
    return (scale * null["low"], scale * null["high"]) if null else None
