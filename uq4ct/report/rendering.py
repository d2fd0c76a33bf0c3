"""Drawings as PDF and PNG for papers and slides, by matplotlib; the same bytes each time."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any, Literal

from uq4ct.report.drawing import LIGHT, Drawing, Fill, Mark, Spots, Stroke, Words, outline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCH = 96.0  # pixels, as in CSS
POINT = 0.75  # points per pixel
STYLE: dict[Any, Any] = {"font.family": "DejaVu Sans", "pdf.fonttype": 42, "text.parse_math": False}
COLOURS = {**LIGHT, "paper": "#ffffff"}


def render(drawing: Drawing, title: str, form: Literal["pdf", "png"]) -> bytes:
    """Return a drawing as a file: PDF with text that can be selected, or PNG at 192 dots per inch."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script that DejaVu lacks
        figure = Figure(figsize=(drawing.width / INCH, drawing.height / INCH), facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
        axes.axis("off")
        for order, mark in enumerate(drawing.marks):
            _add(axes, mark, order)
        buffer = io.BytesIO()
        told: dict[str, Any] = {"Software": None} if form == "png" else {"Creator": None, "Producer": None}
        told |= {"Title": title} if form == "png" else {"Title": title, "CreationDate": None}
        figure.savefig(buffer, format=form, dpi=192, metadata=told)
    return buffer.getvalue()


def _add(axes: Axes, mark: Mark, order: int) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    colour = COLOURS[mark.colour]
    if isinstance(mark, Words):
        places = {"start": "left", "middle": "center", "end": "right"}
        axes.text(
            mark.x,
            mark.y,
            mark.text,
            color=colour,
            fontsize=mark.size * POINT * 0.92,  # DejaVu is wider than what browsers use
            ha=places[mark.anchor],
            va="baseline",
            rotation=90 if mark.turned else 0,
            rotation_mode="anchor",
            fontweight="bold" if mark.bold else "normal",
            zorder=order,
        )
    elif isinstance(mark, Stroke):
        path = Path.make_compound_path(*(Path(line) for line in mark.lines))
        dash = (0, [part / max(mark.width, 0.5) for part in mark.dash]) if mark.dash else "solid"
        look: dict[str, Any] = {"linewidth": mark.width * POINT, "linestyle": dash, "edgecolor": colour}
        axes.add_patch(PathPatch(path, facecolor="none", alpha=mark.opacity, zorder=order, capstyle="butt", **look))
    elif isinstance(mark, Fill):
        shapes = Path.make_compound_path(*(Path([*shape, shape[0]], closed=True) for shape in mark.shapes))
        axes.add_patch(PathPatch(shapes, facecolor=colour, linewidth=0, alpha=mark.opacity, zorder=order))
    else:
        _add_spots(axes, mark, order)


def _add_spots(axes: Axes, mark: Spots, order: int) -> None:
    """Add all markers of one look as one path: a patch each would take most of the time."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if mark.shape == "circle":
        parts = [Path.circle(place, mark.radius) for place in mark.places]
    else:
        corners = [outline(mark.shape, place, mark.radius) for place in mark.places]
        parts = [Path([*shape, shape[0]], closed=True) for shape in corners]
    colour = COLOURS[mark.colour]
    look: dict[str, Any] = {"facecolor": COLOURS["paper"] if mark.hollow else colour, "edgecolor": colour}
    look |= {"linewidth": 1.2 * POINT, "alpha": mark.opacity, "zorder": order}
    axes.add_patch(PathPatch(Path.make_compound_path(*parts), **look))
