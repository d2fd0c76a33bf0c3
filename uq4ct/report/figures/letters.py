"""Does a model favour a letter? Predicted beside gold letters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from uq4ct.report.drawing import Drawing, Plane, ticks
from uq4ct.report.figures.base import Figure, Panel
from uq4ct.report.figures.selective import percent_tick
from uq4ct.report.material import Series
from uq4ct.report.tables import percent


def letter_shares(series: Series) -> list[tuple[str, float, float]]:
    """Return (letter, share predicted, share gold), means over seeds."""
    names = list(dict.fromkeys(name for m in series.members for name in m.metrics.get("gold_letters") or {}))
    shares = []
    for name in names:
        pairs = [
            [(m.metrics[key] or {}).get(name, 0) / m.answers.n for key in ("predicted_letters", "gold_letters")]
            for m in series.members
        ]
        predicted, gold = np.mean(pairs, axis=0)
        shares.append((name, float(predicted), float(gold)))
    return shares


def letters(task: str, series: Sequence[Series]) -> Figure:
    """Draw the share of each letter among the predictions (bars) and among the gold answers (lines across)."""
    shares = {one.label: letter_shares(one) for one in series}
    top = 1.15 * max(share for rows in shares.values() for row in rows for share in row[1:])
    panels = tuple(_panel(one.label, shares[one.label], top) for one in series)
    numbers = tuple(
        {"method": label, "task": task, "letter": name, "predicted": predicted, "gold": gold}
        for label, rows in shares.items()
        for name, predicted, gold in rows
    )
    return Figure("letters", task, f"Letters on {task}", panels, numbers)


def _panel(label: str, shares: Sequence[tuple[str, float, float]], top: float) -> Panel:
    drawing = Drawing(218, 124)
    plane = Plane(drawing, 36, 6, 204, 102, (0, len(shares)), (0, top))
    plane.y_axis([(v, percent_tick(v)) for v in ticks(0, top, 3)], "answers, %")
    drawing.boxes(
        [plane.box(k + 0.2, 0, k + 0.8, row[1]) for k, row in enumerate(shares)], colour="accent", opacity=0.45
    )
    drawing.lines([[plane.at(k + 0.08, row[2]), plane.at(k + 0.92, row[2])] for k, row in enumerate(shares)], width=2)
    plane.x_axis([(k + 0.5, row[0]) for k, row in enumerate(shares)])
    told = ", ".join(
        f"{name}: {percent(predicted)} % predicted, {percent(gold)} % gold" for name, predicted, gold in shares
    )
    return Panel(label, drawing, told)
