"""Diagrams as inline SVG: drawn by matplotlib, in the light and dark palette of the page, the same bytes each time.

No text of a data set or a run enters a diagram: names stand beside it, in the page, where they are escaped.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = ("#2c6aa0", "#c4612d", "#2f8571", "#8a5aa8", "#a88416", "#b5476f", "#5a7d2c", "#5f6b7a")
INK, MUTED, RULE, BAND = "#20262e", "#6a7380", "#d3d8df", "#aab3bf"
RIGHT, WRONG = "#2e7f6c", "#bf4b3c"
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", BAND: "band", RIGHT: "right", WRONG: "wrong"}
VARIABLES |= {colour: f"s{k}" for k, colour in enumerate(SERIES)}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "path.simplify": True,
}


def reliability(bins: Sequence[Mapping[str, Any]], series: int, title: str) -> Markup:
    """Draw accuracy over confidence by bin, with Wilson intervals, the band of a calibrated model, and counts below."""
    full = [row for row in bins if row["n"]]
    colour = SERIES[series % len(SERIES)]

    def plot(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1], gridspec_kw={"hspace": 0.16})
        top.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
        bars = [(row["lower"], 0.0, row["upper"], row["accuracy"]) for row in full]
        bands = [(row["lower"], row["null_low"], row["upper"], row["null_high"]) for row in full]
        whiskers = [(row["confidence"], row["accuracy_low"], row["confidence"], row["accuracy_high"]) for row in full]
        _boxes(top, bars, facecolor=colour, alpha=0.22, zorder=2)
        _boxes(top, bands, facecolor=BAND, alpha=0.55, zorder=3)
        _boxes(top, whiskers, edgecolor=colour, linewidth=1.1, zorder=4)
        middle, accuracy = [row["confidence"] for row in full], [row["accuracy"] for row in full]
        top.plot(middle, accuracy, "o", color=colour, markersize=3.2, zorder=5)
        top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        _counts(bottom, full, colour)

    return _svg(plot, (2.8, 3.15), title)


def _counts(axes: Axes, full: Sequence[Mapping[str, Any]], colour: str) -> None:
    most = max((row["n"] for row in full), default=1)
    _boxes(axes, [(row["lower"], 0, row["upper"], row["n"]) for row in full], facecolor=colour, alpha=0.55)
    for row in full:
        axes.annotate(
            f"{row['n']}",
            ((row["lower"] + row["upper"]) / 2, row["n"]),
            xytext=(0, 1.5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=4.8,
            color=MUTED,
        )
    axes.set(ylim=(0, most * 1.3), xlabel="confidence", yticks=[])
    axes.spines["left"].set_visible(False)


def _boxes(axes: Axes, boxes: Sequence[tuple[float, float, float, float]], **style: Any) -> None:
    """Draw (left, bottom, right, top) boxes as one path: a page of many diagrams stays small."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if boxes:
        corners = [[(x, y), (x, top), (end, top), (end, y), (x, y)] for x, y, end, top in boxes]
        path = Path.make_compound_path(*(Path(points, closed=True) for points in corners))
        axes.add_patch(PathPatch(path, **{"facecolor": "none", "linewidth": 0, **style}))


def risk_coverage(curves: Sequence[tuple[int, np.ndarray, np.ndarray]], title: str) -> Markup:
    """Draw the error rate among the surest answers over the share answered, one line per (series, coverage, risk)."""

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        highest = 0.0
        for series, coverage, risk in curves:
            shown = coverage >= 0.02  # the error rate of the first few answers is noise
            keep = np.unique(np.linspace(0, shown.sum() - 1, min(160, shown.sum())).astype(int))
            x, y = coverage[shown][keep], risk[shown][keep]
            highest = max(highest, float(y.max()))
            axes.plot(x, y, color=SERIES[series % len(SERIES)], linewidth=1.5, solid_capstyle="round")
        axes.set(xlim=(0, 1), ylim=(0, highest * 1.08 or 1), xlabel="share answered, surest first", ylabel="error rate")
        axes.grid(axis="y", color=RULE, linewidth=0.5)
        axes.set_axisbelow(True)

    return _svg(plot, (4.2, 2.7), title, left=0.5)


def right_and_wrong(
    values: np.ndarray, correct: np.ndarray, what: str, limits: tuple[float, float], title: str
) -> Markup:
    """Draw how a confidence is spread over right answers (upwards) and wrong ones (downwards)."""
    edges = np.linspace(*limits, 26)
    right = np.histogram(values[correct == 1], edges)[0]
    wrong = np.histogram(values[correct == 0], edges)[0]

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        bars = list(zip(edges[:-1], edges[1:], right, wrong, strict=True))
        _boxes(axes, [(low, 0, high, up) for low, high, up, _ in bars if up], facecolor=RIGHT, alpha=0.85)
        _boxes(axes, [(low, 0, high, -down) for low, high, _, down in bars if down], facecolor=WRONG, alpha=0.85)
        axes.axhline(0, color=MUTED, linewidth=0.6)
        reach = max(right.max(), wrong.max(), 1)
        axes.set(xlim=limits, ylim=(-1.1 * max(wrong.max(), 0.25 * reach), 1.1 * right.max() + 1), xlabel=what)
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
        axes.locator_params(axis="y", nbins=5, integer=True)
        axes.spines["bottom"].set_visible(False)

    return _svg(plot, (2.8, 1.9), title)


def training_curve(steps: Sequence[float], values: Sequence[float], series: int, title: str) -> Markup:
    """Draw one logged quantity over the steps of a training."""

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(steps, values, color=SERIES[series % len(SERIES)], linewidth=1.3)
        axes.set(xlabel="step", xlim=(min(steps), max(max(steps), min(steps) + 1)))
        axes.locator_params(nbins=4)

    return _svg(plot, (2.3, 1.6), title)


def _svg(plot: Callable[[Figure], None], size: tuple[float, float], title: str, left: float = 0.42) -> Markup:
    """Render a plot as SVG that takes its colours and its font from the page; sizes are in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=size)
        plot(figure)
        width, height = size
        figure.subplots_adjust(left=left / width, right=1 - 0.14 / width, bottom=0.38 / height, top=1 - 0.1 / height)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(_for_the_page(buffer.getvalue(), title))


def _for_the_page(svg: str, title: str) -> str:
    """Strip what only a file needs, take colours and font from the page, and make ids its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    used = set(re.findall(r"(?:xlink:href=\"#|url\(#)([^\")]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans)", svg)
    svg = re.sub(r"#[0-9a-f]{6}", lambda match: _variable(match[0]), svg)
    svg = re.sub(r"(\d+\.\d{2})\d+", r"\1", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    head = re.search(r"viewBox=\"[^\"]*\"", svg)
    inside = svg[svg.index(">") + 1 :]
    box = head[0] if head else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box} role="img" '
        f'aria-label="{escape(title)}">{inside}'
    )


def _variable(colour: str) -> str:
    return f"var(--{VARIABLES[colour]})" if colour in VARIABLES else colour
