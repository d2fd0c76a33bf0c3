"""Charts of one row per method: dots with intervals on one or more scales that share the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from uq4ct.report.drawing import SMALL, TEXT, Colour, Drawing, Plane, Shape, fitted, plain_number, ticks

ROW = 22.0
HEAD, FOOT, GAP = 26.0, 34.0, 20.0


@dataclass(frozen=True)
class Spot:
    """A number on a row, with its interval."""

    value: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False
    shape: Shape = "circle"
    colour: Colour = "accent"


@dataclass(frozen=True)
class Track:
    """One scale: the spots of each row, and what stands around them."""

    title: str
    rows: Sequence[Sequence[Spot]]
    zero: float | None = None  # where a line of reference stands
    better: str = ""  # "lower" or "higher": where the good end is said to be
    joined: bool = False  # draw a line through the spots of a row
    texts: Sequence[str] = ()  # printed at the right of each row
    show: Callable[[float], str] = plain_number
    bands: Sequence[tuple[float, float] | None] = ()
    width: float = 150.0
    least: float = 0.0  # the scale spans at least this much, so that noise does not fill it


def chart(labels: Sequence[str], tracks: Sequence[Track], key: Sequence[tuple[Spot, str]] = ()) -> Drawing:
    """Draw tracks side by side; the key says what each look of a spot means."""
    names = min(210.0, max(60.0, 10 + 0.58 * TEXT * max(len(label) for label in labels)))
    top = HEAD + (22 if key else 0)
    places, x = [], names + 8
    for track in tracks:
        places.append(x)
        x += track.width + GAP + _texts_width(track)
    drawing = Drawing(x - GAP + 16, top + ROW * len(labels) + FOOT)
    _key(drawing, key)
    for number, label in enumerate(labels):
        y = top + ROW * (number + 0.5)
        drawing.words(names, y + 4, fitted(label, names, TEXT), colour="ink", anchor="end")
    for track, left in zip(tracks, places, strict=True):
        _track(drawing, track, left, top, len(labels))
    return drawing


def _texts_width(track: Track) -> float:
    return 8 + 0.6 * (SMALL) * max(map(len, track.texts)) if track.texts else 0.0


def _key(drawing: Drawing, key: Sequence[tuple[Spot, str]]) -> None:
    x = 8.0
    for spot, text in key:
        drawing.spots([(x, 9)], hollow=spot.hollow, shape=spot.shape, colour=spot.colour, radius=3.6)
        drawing.words(x + 8, 13, text)
        x += 26 + 0.58 * TEXT * len(text)
    drawing.width = max(drawing.width, x)


def _track(drawing: Drawing, track: Track, left: float, top: float, count: int) -> None:
    low, high = _scale(track)
    bottom = top + ROW * count
    plane = Plane(drawing, left, top, left + track.width, bottom, (low, high), (0, 1))
    drawing.words(left + track.width / 2, top - 9, track.title, anchor="middle", colour="ink", bold=True)
    marks = _marks(track, low, high)
    drawing.lines([[(plane.across(v), top), (plane.across(v), bottom)] for v in marks], colour="rule", width=0.7)
    middles = [top + ROW * (number + 0.5) for number in range(count)]
    drawing.lines([[(left, y), (left + track.width, y)] for y in middles], colour="rule", width=0.7)
    bands = [
        (plane.across(band[0]), y - 6, plane.across(band[1]), y + 6)
        for band, y in zip(track.bands, middles, strict=False)
        if band
    ]
    drawing.boxes(bands, colour="band", opacity=0.8)
    if track.zero is not None:
        drawing.line((plane.across(track.zero), top), (plane.across(track.zero), bottom), colour="ink", width=1)
    for spots, y in zip(track.rows, middles, strict=True):
        _spots(drawing, track, plane, spots, y)
    for text, y in zip(track.texts, middles, strict=False):
        drawing.words(plane.right + 6 + _texts_width(track) - 8, y + 4, text, size=SMALL, anchor="end")
    plane.x_axis([(v, track.show(v)) for v in marks])
    if track.better:
        good = "start" if track.better == "lower" else "end"
        text = "← better" if good == "start" else "better →"
        drawing.words(left if good == "start" else plane.right, bottom + 28, text, size=SMALL, anchor=good)


def _spots(drawing: Drawing, track: Track, plane: Plane, spots: Sequence[Spot], y: float) -> None:
    if track.joined and len(spots) > 1:
        xs = [plane.across(spot.value) for spot in spots]
        drawing.line((min(xs), y), (max(xs), y), colour="muted", width=1.4)
    for spot in spots:
        if spot.low is not None and spot.high is not None:
            ends = [(plane.across(spot.low), y), (plane.across(spot.high), y)]
            drawing.line(*ends, colour=spot.colour, width=1.5)
        place = (plane.across(spot.value), y)
        drawing.spots([place], hollow=spot.hollow, shape=spot.shape, colour=spot.colour, radius=3.6)


def _scale(track: Track) -> tuple[float, float]:
    spots = [spot for row in track.rows for spot in row]
    values = [v for spot in spots for v in (spot.value, spot.low, spot.high) if v is not None]
    values += [end for band in track.bands if band for end in band]
    values += [] if track.zero is None else [track.zero]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = max(0.06 * (high - low), (track.least - (high - low)) / 2) or 0.05 * max(abs(high), 0.1)
    return low - margin, high + margin


def _marks(track: Track, low: float, high: float) -> list[float]:
    """Return as many ticks, four at most, as can be printed side by side."""
    for about in (4, 3, 2):
        marks = ticks(low, high, about)
        if sum(0.62 * TEXT * len(track.show(value)) + 8 for value in marks) <= track.width:
            return marks
    return [marks[0], marks[-1]] if len(marks) > 1 else marks
