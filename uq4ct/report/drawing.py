"""Drawings as plain marks in pixels, and their SVG: small, the same bytes each time, in the colours of the page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Literal

import numpy as np

Colour = Literal["ink", "muted", "rule", "band", "accent", "right", "wrong", "paper", "shade"]
Anchor = Literal["start", "middle", "end"]
Shape = Literal["circle", "square", "triangle", "diamond", "wedge", "bar"]
Point = tuple[float, float]

LIGHT: Mapping[Colour, str] = {
    "paper": "#fcfcfa",
    "shade": "#f2f2ee",
    "ink": "#1d2329",
    "muted": "#5a636f",
    "rule": "#dadde1",
    "band": "#c2c8d0",
    "accent": "#1b5e96",
    "right": "#1f7a66",
    "wrong": "#b4452f",
}
DARK: Mapping[Colour, str] = {
    "paper": "#15181c",
    "shade": "#1e2227",
    "ink": "#e6e9ec",
    "muted": "#a3acb8",
    "rule": "#363c45",
    "band": "#4f5968",
    "accent": "#7ab6e8",
    "right": "#5cbfa6",
    "wrong": "#ec8a76",
}
SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle", "diamond", "wedge", "bar")
TEXT, SMALL = 11.0, 10.0  # px; a panel is printed at about its own size, on a phone a little smaller


@dataclass(frozen=True)
class Stroke:
    """Lines of one look."""

    lines: tuple[tuple[Point, ...], ...]
    colour: Colour = "ink"
    width: float = 1.2
    dash: tuple[float, ...] = ()
    opacity: float = 1.0


@dataclass(frozen=True)
class Fill:
    """Polygons of one look."""

    shapes: tuple[tuple[Point, ...], ...]
    colour: Colour = "band"
    opacity: float = 1.0


@dataclass(frozen=True)
class Spots:
    """Markers of one look; hollow ones are filled with the paper."""

    places: tuple[Point, ...]
    colour: Colour = "accent"
    radius: float = 3.0
    hollow: bool = False
    shape: Shape = "circle"
    opacity: float = 1.0


@dataclass(frozen=True)
class Words:
    """One line of text; ``y`` is its baseline."""

    x: float
    y: float
    text: str
    colour: Colour = "muted"
    size: float = TEXT
    anchor: Anchor = "start"
    bold: bool = False
    turned: bool = False  # a quarter turn to the left, read upwards


Mark = Stroke | Fill | Spots | Words


@dataclass
class Drawing:
    """A canvas in pixels, y downwards, to which marks are added in the order in which they are painted."""

    width: float
    height: float
    marks: list[Mark] = field(default_factory=list)

    def line(self, *points: Point, **look: object) -> None:
        """Add one line."""
        self.marks.append(Stroke((points,), **look))  # type: ignore[arg-type]

    def lines(self, lines: Sequence[Sequence[Point]], **look: object) -> None:
        """Add lines of one look."""
        if lines:
            self.marks.append(Stroke(tuple(map(tuple, lines)), **look))  # type: ignore[arg-type]

    def boxes(self, boxes: Sequence[tuple[float, float, float, float]], **look: object) -> None:
        """Add upright rectangles (x, y, x, y)."""
        corners = tuple(((x, y), (end, y), (end, low), (x, low)) for x, y, end, low in boxes)
        if corners:
            self.marks.append(Fill(corners, **look))  # type: ignore[arg-type]

    def polygon(self, points: Sequence[Point], **look: object) -> None:
        """Add a filled shape."""
        self.marks.append(Fill((tuple(points),), **look))  # type: ignore[arg-type]

    def spots(self, places: Sequence[Point], **look: object) -> None:
        """Add markers."""
        if places:
            self.marks.append(Spots(tuple(places), **look))  # type: ignore[arg-type]

    def words(self, x: float, y: float, text: str, **look: object) -> None:
        """Add a line of text; an empty one adds nothing."""
        if text:
            self.marks.append(Words(x, y, printable(text), **look))  # type: ignore[arg-type]

    def place(self, other: Drawing, x: float, y: float) -> None:
        """Add the marks of another drawing, moved."""
        self.marks += [_moved(mark, x, y) for mark in other.marks]


@dataclass(frozen=True)
class Plane:
    """A rectangle of a drawing with a linear scale on each side."""

    drawing: Drawing
    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> Point:
        """Return the pixel of a point of the data; values beyond the scale lie at its end."""
        return self.across(x), self.up(y)

    def across(self, x: float) -> float:
        """Return the horizontal pixel."""
        low, high = self.x
        return self.left + (self.right - self.left) * min(1.0, max(0.0, (x - low) / (high - low)))

    def up(self, y: float) -> float:
        """Return the vertical pixel."""
        low, high = self.y
        return self.bottom - (self.bottom - self.top) * min(1.0, max(0.0, (y - low) / (high - low)))

    def path(self, x: np.ndarray, y: np.ndarray) -> list[Point]:
        """Return the pixels of a curve."""
        return [self.at(float(a), float(b)) for a, b in zip(x, y, strict=True)]

    def box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        """Return the pixels of a rectangle."""
        return self.across(x0), self.up(y1), self.across(x1), self.up(y0)

    def x_axis(self, ticks: Sequence[tuple[float, str]], title: str = "") -> None:
        """Draw the lower edge with ticks, and its title below."""
        draw = self.drawing
        draw.line((self.left, self.bottom), (self.right, self.bottom), colour="muted", width=0.8)
        places = [self.across(value) for value, _ in ticks]
        draw.lines([[(x, self.bottom), (x, self.bottom + 3)] for x in places], colour="muted", width=0.8)
        for x, (_, text) in zip(places, ticks, strict=True):
            draw.words(x, self.bottom + 14, text, anchor="middle", size=SMALL)
        if title:
            draw.words((self.left + self.right) / 2, self.bottom + 28, title, anchor="middle")

    def y_axis(self, ticks: Sequence[tuple[float, str]], title: str = "", grid: bool = True) -> None:
        """Draw ticks at the left edge, faint lines across, and the title along it."""
        draw = self.drawing
        if grid:
            draw.lines([[self.at(self.x[0], v), self.at(self.x[1], v)] for v, _ in ticks], colour="rule", width=0.7)
        for value, text in ticks:
            draw.words(self.left - 5, self.up(value) + 3.5, text, anchor="end", size=SMALL)
        if title:
            draw.words(10, (self.top + self.bottom) / 2, title, anchor="middle", turned=True)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round numbers within a scale, about as many as asked.

    >>> ticks(0.0, 0.17, 4)
    [0.0, 0.05, 0.1, 0.15]
    """
    if not high > low:
        return [low]
    rough = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = min((magnitude * k for k in (1, 2, 2.5, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, last + 1)]


def plain_number(value: float) -> str:
    """Print a tick: no trailing zeros, a true minus.

    >>> plain_number(-0.05), plain_number(20.0)
    ('−0.05', '20')
    """
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return text.replace("-", "−") if text not in ("-0", "") else "0"


def fitted(text: str, width: float, size: float = TEXT) -> str:
    """Shorten a text so that it takes no more than a width in pixels, in most fonts."""
    most = max(4, int(width / (0.56 * size)))
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def printable(text: str) -> str:
    """Replace what a page or an XML file must not hold by spaces: control characters, halves of characters, and signs
    that turn the direction of the text around them.

    >>> printable("a\\x1b[1mb\\u202ec")
    'a [1mb c'
    """
    return _UNPRINTABLE.sub(" ", str(text))


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def inline_svg(drawing: Drawing, title: str, description: str = "") -> str:
    """Return a drawing for the page, whose colours and font it takes; title and description are for the ear."""
    label = escape(printable(title))
    told = f"<desc>{escape(printable(description), quote=False)}</desc>" if description else ""
    return f'<svg {_root(drawing, _VARIABLES)} role="img" aria-label="{label}">{told}{_body(drawing, _VARIABLES)}</svg>'


def svg_file(drawing: Drawing, title: str) -> str:
    """Return a drawing as a file of its own: light colours on white."""
    colours = {**LIGHT, "paper": "#ffffff"}
    size = f'width="{_n(drawing.width)}" height="{_n(drawing.height)}" font-family="Helvetica, Arial, sans-serif"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {_root(drawing, colours)} {size}>'
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return f"{head}<title>{escape(printable(title), quote=False)}</title>{ground}{_body(drawing, colours)}</svg>\n"


_VARIABLES: Mapping[Colour, str] = {name: f"var(--{name})" for name in LIGHT}


def _root(drawing: Drawing, colours: Mapping[Colour, str]) -> str:
    """Return the box, and the look of most texts, which then need not repeat it."""
    box = f"0 0 {_n(drawing.width)} {_n(drawing.height)}"
    return f'viewBox="{box}" font-size="{_n(SMALL)}" fill="{colours["muted"]}"'


def _body(drawing: Drawing, colours: Mapping[Colour, str]) -> str:
    return "".join(_mark(mark, colours) for mark in drawing.marks)


def _mark(mark: Mark, colours: Mapping[Colour, str]) -> str:
    if isinstance(mark, Words):
        return _words(mark, colours)
    colour = colours[mark.colour]
    faint = f' opacity="{mark.opacity:g}"' if mark.opacity < 1 else ""
    if isinstance(mark, Fill):
        return f'<path d="{"".join(map(_closed, mark.shapes))}" fill="{colour}"{faint}/>'
    if isinstance(mark, Stroke):
        dash = f' stroke-dasharray="{" ".join(map(_n, mark.dash))}"' if mark.dash else ""
        look = f'fill="none" stroke="{colour}" stroke-width="{_n(mark.width)}"{dash}{faint}'
        return f'<path d="{"".join(map(_open, mark.lines))}" {look}/>'
    if mark.shape == "circle":
        return _circles(mark, colours, faint)
    look = f'fill="{colours["paper"] if mark.hollow else colour}" stroke="{colour}" stroke-width="1.2"{faint}'
    return f'<path d="{"".join(_closed(outline(mark.shape, place, mark.radius)) for place in mark.places)}" {look}/>'


def _words(mark: Words, colours: Mapping[Colour, str]) -> str:
    look = "" if mark.size == SMALL else f' font-size="{_n(mark.size)}"'
    look += "" if mark.colour == "muted" else f' fill="{colours[mark.colour]}"'
    look += "" if mark.anchor == "start" else f' text-anchor="{mark.anchor}"'
    look += ' font-weight="600"' if mark.bold else ""
    look += f' transform="rotate(-90 {_n(mark.x)} {_n(mark.y)})"' if mark.turned else ""
    return f'<text x="{_n(mark.x)}" y="{_n(mark.y)}"{look}>{escape(mark.text, quote=False)}</text>'


def _circles(mark: Spots, colours: Mapping[Colour, str], faint: str) -> str:
    """Draw circles as round ends of lines without length, a tenth of the bytes of circles; a ring is two of them."""
    dots = "".join(f"M{_n(x)} {_n(y)}h0" for x, y in mark.places)

    def of(width: float, colour: Colour) -> str:
        look = f'stroke="{colours[colour]}" stroke-width="{_n(width)}" stroke-linecap="round"'
        return f'<path d="{dots}" {look}{faint}/>'

    outer = of(2 * mark.radius + 1.2, mark.colour)
    return outer + of(2 * mark.radius - 1.2, "paper") if mark.hollow else outer


def outline(shape: Shape, place: Point, radius: float) -> tuple[Point, ...]:
    """Return the corners of a marker."""
    x, y = place
    r = radius
    corners: Mapping[str, tuple[Point, ...]] = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "triangle": ((0, -1.2), (1.15, 0.85), (-1.15, 0.85)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        "wedge": ((0, 1.2), (1.15, -0.85), (-1.15, -0.85)),
        "bar": ((-0.35, -1.5), (0.35, -1.5), (0.35, 1.5), (-0.35, 1.5)),
    }
    return tuple((x + r * a, y + r * b) for a, b in corners[shape])


def _open(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)


def _closed(points: Sequence[Point]) -> str:
    if (
        len(points) == 4
        and points[0][1] == points[1][1]
        and points[1][0] == points[2][0]
        and points[2][1] == points[3][1]
    ):
        (x, y), (end, _), (_, low), _ = points  # an upright rectangle
        return f"M{_n(x)} {_n(y)}H{_n(end)}V{_n(low)}H{_n(x)}Z"
    return f"{_open(points)}Z"


def _n(value: float) -> str:
    """Print a coordinate with one digit, which no eye can tell from more."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") and text != "-0.0" else "0" if text == "-0.0" else text


def _moved(mark: Mark, x: float, y: float) -> Mark:
    def shift(points: Sequence[Point]) -> tuple[Point, ...]:
        return tuple((a + x, b + y) for a, b in points)

    if isinstance(mark, Words):
        return replace(mark, x=mark.x + x, y=mark.y + y)
    if isinstance(mark, Spots):
        return replace(mark, places=shift(mark.places))
    if isinstance(mark, Stroke):
        return replace(mark, lines=tuple(map(shift, mark.lines)))
    return replace(mark, shapes=tuple(map(shift, mark.shapes)))


def variables(colours: Mapping[Colour, str]) -> Iterator[str]:
    """Yield a palette as CSS declarations."""
    for name, value in colours.items():
        yield f"--{name}: {value};"
