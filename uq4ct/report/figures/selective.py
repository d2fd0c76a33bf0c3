"""Does the confidence rank right answers above wrong ones? Risk-coverage curves, and confidence by right and wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from uq4ct.metrics.selective import risk_coverage as curve_of
from uq4ct.report.drawing import SMALL, Drawing, Plane, plain_number, ticks
from uq4ct.report.figures.base import Figure, Panel
from uq4ct.report.material import Member, Series
from uq4ct.report.tables import percent

FIRST = 0.05  # the error rate of fewer answers is noise
POINTS = 41
LINES = 4  # of more methods than this the range is drawn
BARS = 20
SHARES = np.linspace(0.0, 1.0, BARS + 1)


def risk_coverage(task: str, series: Sequence[Series]) -> Figure:
    """Draw the error rate among the surest answers over the share answered, a panel per method.

    Blue: the method, its mean over seeds, in the shade of their range; grey: the other methods, or the range of many;
    dashed: the oracle, which answers all it gets right first; dotted: a confidence that does not rank.
    """
    curves = {one.label: _curves(one) for one in series}
    top = max(float(y.max()) for _, y in curves.values())
    others = {label: (x, y.mean(axis=0)) for label, (x, y) in curves.items()}
    panels = tuple(_risk(one, curves, others, max(top * 1.06, 0.02)) for one in series)
    numbers = tuple(
        {"method": label, "task": task, "coverage": float(a), "error_rate": float(b), "oracle": _oracle(a, y[-1])}
        for label, (x, y) in others.items()
        for a, b in zip(x, y, strict=True)
    )
    return Figure("risk", task, f"Risk and coverage on {task}", panels, numbers)


def _curves(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage (point,) and error rate (seed, point)."""
    n = series.n
    keep = np.unique(np.ceil(np.linspace(FIRST, 1, POINTS) * n - 1e-9).astype(int).clip(1, n)) - 1
    found = [curve_of(member.answers.confidence, member.answers.correct) for member in series.members]
    return found[0][0][keep], np.stack([risk[keep] for _, risk in found])


def _oracle(coverage: float, error: float) -> float:
    return float(max(0.0, (coverage - (1 - error)) / coverage))


def _risk(series: Series, curves: dict, others: dict, top: float) -> Panel:
    drawing = Drawing(218, 212)
    plane = Plane(drawing, 36, 14, 204, 174, (0, 1), (0, top))
    plane.y_axis([(v, percent_tick(v)) for v in ticks(0, top, 4)], "error rate, %")
    x, y = curves[series.label]
    _behind(drawing, plane, x, [curve for label, curve in others.items() if label != series.label])
    mean = y.mean(axis=0)
    error = float(mean[-1])
    drawing.line(plane.at(0, error), plane.at(1, error), colour="ink", width=1, dash=(1, 3))
    drawing.line(*plane.path(x, np.array([_oracle(c, error) for c in x])), colour="ink", width=1, dash=(5, 3))
    if len(y) > 1:
        edge = plane.path(x, y.max(axis=0)) + plane.path(x, y.min(axis=0))[::-1]
        drawing.polygon(edge, colour="accent", opacity=0.2)
    drawing.line(*plane.path(x, mean), colour="accent", width=2)
    drawing.words(204, plane.up(error) - 4, "random", size=SMALL, anchor="end")
    if error < 0.97:
        left = error > 0.7  # then its bend is at the left, and there is room to the right of it
        end = plane.across(1 - error) + (14 if left else -4)
        drawing.words(end, plane.bottom - 5, "oracle", size=SMALL, anchor="start" if left else "end")
    plane.x_axis([(0, "0"), (0.25, ""), (0.5, "50"), (0.75, ""), (1, "100")], "answered, surest first, %")
    half = float(np.interp(0.5, x, mean))
    told = f"error rate {percent(half)} % in the surest half, {percent(error)} % in all"
    return Panel(series.label, drawing, told)


def _behind(drawing: Drawing, plane: Plane, x: np.ndarray, others: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw the other methods faintly: a line each, of many the range, which stays readable and small."""
    if len(others) <= LINES:
        drawing.lines([plane.path(*curve) for curve in others], colour="band", width=1)
        return
    heights = np.stack([np.interp(x, *curve) for curve in others])
    edge = plane.path(x, heights.max(axis=0)) + plane.path(x, heights.min(axis=0))[::-1]
    drawing.polygon(edge, colour="band", opacity=0.6)


def right_and_wrong(
    task: str,
    series: Sequence[Series],
    kind: str = "confidence",
    title: str = "Confidence when right and when wrong",
    what: str = "confidence, %",
    of: Callable[[Member], np.ndarray] = lambda member: member.answers.confidence,
) -> Figure:
    """Draw how a confidence is spread over right answers (upwards) and wrong ones (downwards), means over seeds."""
    edges = [np.linspace(*_limits(one, of), BARS + 1) if kind == "feu" else SHARES for one in series]
    shares = [_shares(one, each, of) for one, each in zip(series, edges, strict=True)]
    reach = max(float(part.max()) for pair in shares for part in pair) * 1.05
    drawn = list(zip(series, edges, shares, strict=True))
    panels = tuple(_spread(one, each, pair, reach, what, kind) for one, each, pair in drawn)
    numbers = tuple(
        {"method": one.label, "task": task, "from": float(a), "to": float(b), "right": float(r), "wrong": float(w)}
        for one, each, (right, wrong) in drawn
        for a, b, r, w in zip(each[:-1], each[1:], right, wrong, strict=True)
        if r or w
    )
    return Figure(kind, task, f"{title}: {task}", panels, numbers)


def _limits(series: Series, of: Callable[[Member], np.ndarray]) -> tuple[float, float]:
    """Return where a method's values lie: those of two routers may be far apart, and each narrow."""
    values = np.concatenate([of(member) for member in series.members])
    low, high = float(values.min()), float(values.max())
    margin = max((high - low) * 0.03, 0.002)
    return low - margin, high + margin


def _shares(series: Series, edges: np.ndarray, of: Callable[[Member], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of all answers that are right, and wrong, by bar."""
    right, wrong = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    for member in series.members:
        right += np.histogram(of(member)[member.answers.correct == 1], edges)[0]
        wrong += np.histogram(of(member)[member.answers.correct == 0], edges)[0]
    total = series.n * len(series.members)
    return right / total, wrong / total


def _spread(
    series: Series, edges: np.ndarray, shares: tuple[np.ndarray, np.ndarray], reach: float, what: str, kind: str
) -> Panel:
    drawing = Drawing(218, 182)
    plane = Plane(drawing, 36, 14, 204, 144, (float(edges[0]), float(edges[-1])), (-reach, reach))
    marks = [v for v in ticks(0, reach, 2) if v]
    plane.y_axis([(s * v, percent_tick(v)) for v in marks for s in (1, -1)] + [(0, "0")], "answers, %")
    bars = list(zip(edges[:-1], edges[1:], *shares, strict=True))
    drawing.boxes([plane.box(a, 0, b, r) for a, b, r, _ in bars if r], colour="right", opacity=0.85)
    drawing.boxes([plane.box(a, -w, b, 0) for a, b, _, w in bars if w], colour="wrong", opacity=0.85)
    drawing.line(plane.at(float(edges[0]), 0), plane.at(float(edges[-1]), 0), colour="muted", width=0.8)
    drawing.words(204, 10, "right, upwards", colour="right", anchor="end", size=SMALL)
    drawing.words(36, 10, "wrong, downwards", colour="wrong", size=SMALL)
    if kind == "feu":
        low, high = float(edges[0]), float(edges[-1])
        plane.x_axis([(v, plain_number(v)) for v in ticks(low, high, 3)], what)
    else:
        plane.x_axis([(0, "0"), (0.25, ""), (0.5, "50"), (0.75, ""), (1, "100")], what)
    return Panel(series.label, drawing, f"{percent(float(shares[0].sum()))} % of the answers are right")


def percent_tick(value: float) -> str:
    """Print a share as a tick in per cent."""
    return plain_number(round(100 * value, 6))
