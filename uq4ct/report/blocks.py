"""What a page is built from: sections of groups of blocks, plain values that the template prints and escapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup

from uq4ct.report.drawing import inline_svg
from uq4ct.report.figures.base import Figure

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it says, a line below it in small print, and perhaps a drawing."""

    text: str
    small: str = ""
    beside: str = ""  # after the text, faint: a deviation
    strong: bool = False
    svg: Markup | None = None
    words: bool = False  # text rather than a number


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows."""

    form: ClassVar[str] = "table"
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    hidden_caption: bool = False  # for the ear only, where a heading says the same
    folded: bool = False  # opens on demand


@dataclass(frozen=True)
class Drawn:
    """A figure, its panels ready to print."""

    form: ClassVar[str] = "figure"
    figure: Figure

    @property
    def panels(self) -> list[dict[str, Any]]:
        """Return label, caption, width and SVG of each panel."""
        return [
            {
                "label": panel.label,
                "caption": panel.caption,
                "width": round(panel.drawing.width),
                "svg": Markup(inline_svg(panel.drawing, self._title(panel.label), panel.description)),
            }
            for panel in self.figure.panels
        ]

    @property
    def is_wide(self) -> bool:
        """Whether it is one chart across the page."""
        return len(self.figure.panels) == 1 and not self.figure.panels[0].label

    def _title(self, label: str) -> str:
        return f"{self.figure.title}: {label}" if label else self.figure.title


@dataclass(frozen=True)
class Facts:
    """Names and values that open on demand."""

    form: ClassVar[str] = "facts"
    title: str
    pairs: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    remark: str = ""


@dataclass(frozen=True)
class Mistakes:
    """Wrong answers of one method."""

    form: ClassVar[str] = "mistakes"
    title: str
    rows: tuple[Json, ...]


Block = Table | Drawn | Facts | Mistakes


@dataclass(frozen=True)
class Group:
    """What a section shows about one task; without a title it is the whole section."""

    title: str
    blocks: tuple[Block, ...]
    facts: str = ""
    folded: bool = False  # opens on demand


@dataclass(frozen=True)
class Section:
    """A question, how its answer is read, and the answer by task."""

    key: str
    short: str  # for the list of contents
    title: str
    intro: str
    groups: tuple[Group, ...]


def number(row: Json, key: str, show: Callable[[float], str], strong: bool = False) -> Cell:
    """Print a metric with its deviation over seeds and its interval; a dash and the reason where it is undefined."""
    value, ends = row.get(key), (row.get("intervals") or {}).get(key)
    if value is None:
        return Cell("–", (row.get("reasons") or {}).get(key, ""))
    deviation = (row.get("sd") or {}).get(key)
    beside = "" if deviation is None else f"±{show(deviation)}"
    return Cell(show(value), f"{show(ends[0])} – {show(ends[1])}" if ends else "", beside, strong)


def said(text: str, small: str = "") -> Cell:
    """Print a text."""
    return Cell(text, small, words=True)


def listed(names: Sequence[str]) -> str:
    """Join names as a sentence does.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def shortened(text: str, limit: int) -> str:
    """Cut a text that is too long to print."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
