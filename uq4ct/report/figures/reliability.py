"""Of the answers given with a confidence of about 80 %, are 80 % right?"""

from __future__ import annotations

from collections.abc import Sequence

from uq4ct.report.drawing import SMALL, Drawing, Plane
from uq4ct.report.figures.base import Figure, Panel, count
from uq4ct.report.material import Series
from uq4ct.report.tables import percent

SHARES = ((0.0, "0"), (0.25, ""), (0.5, "50"), (0.75, ""), (1.0, "100"))


def reliability(task: str, series: Sequence[Series]) -> Figure:
    """Draw accuracy over confidence by bin for each method.

    Bars and dots: accuracy, at the bin's mean confidence; whiskers: Wilson 95 %; grey: where a perfectly calibrated
    model's accuracy lies in 95 % of cases; rings: single seeds; below: answers by bin. Empty bins are not drawn.
    """
    numbers = tuple(
        {"method": one.label, "task": task, **{key: row[key] for key in row if key != "seeds"}}
        for one in series
        for row in one.bins
    )
    return Figure("reliability", task, f"Reliability on {task}", tuple(map(_panel, series)), numbers)


def _panel(series: Series) -> Panel:
    drawing = Drawing(218, 264)
    bins = series.bins
    plane = Plane(drawing, 36, 20, 204, 188, (0, 1), (0, 1))
    plane.y_axis(SHARES, "accuracy, %")
    drawing.boxes([plane.box(b["lower"], 0, b["upper"], b["accuracy"]) for b in bins], colour="accent", opacity=0.16)
    bands = [plane.box(b["lower"], b["null_low"], b["upper"], b["null_high"]) for b in bins]
    drawing.boxes(bands, colour="band", opacity=0.75)
    drawing.line(plane.at(0, 0), plane.at(1, 1), colour="muted", width=1, dash=(4, 3))
    if len(series.members) > 1:
        rings = [plane.at(*pair) for b in bins for pair in b["seeds"]]
        drawing.spots(rings, radius=1.5, hollow=True, opacity=0.6)
    whiskers = [
        [plane.at(b["confidence"], b["accuracy_low"]), plane.at(b["confidence"], b["accuracy_high"])] for b in bins
    ]
    drawing.lines(whiskers, colour="accent", width=1.3)
    drawing.spots([plane.at(b["confidence"], b["accuracy"]) for b in bins], radius=2.8)
    seeds = f", {len(series.members)} seeds" if len(series.members) > 1 else ""
    drawing.words(204, 11, f"n = {series.n:,}{seeds}", size=SMALL, anchor="end")
    _counts(drawing, bins)
    gaps = ", ".join(f"{percent(b['confidence'])} % sure: {percent(b['accuracy'])} % right" for b in bins)
    return Panel(series.label, drawing, gaps)


def _counts(drawing: Drawing, bins: Sequence[dict]) -> None:
    most = max(b["n"] for b in bins)
    plane = Plane(drawing, 36, 204, 204, 230, (0, 1), (0, most))
    drawing.boxes([plane.box(b["lower"], 0, b["upper"], b["n"]) for b in bins], colour="accent", opacity=0.5)
    tallest = max(bins, key=lambda b: b["n"])
    middle = min(0.94, max(0.08, (tallest["lower"] + tallest["upper"]) / 2))
    drawing.words(plane.across(middle), 201, count(most), anchor="middle", size=SMALL)
    plane.x_axis(SHARES, "confidence, %")
