"""What a figure is: panels that the page prints one by one and a file shows together, and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uq4ct.report.drawing import Drawing, fitted

Json = Mapping[str, Any]
TITLE, GAP = 22.0, 18.0


@dataclass(frozen=True)
class Panel:
    """One drawing of a figure, what it is about, what it shows in words, and a line below it."""

    label: str
    drawing: Drawing
    description: str
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure as a reader knows it: ``kind`` is its section, ``numbers`` one row per mark that carries data."""

    kind: str
    task: str
    title: str
    panels: tuple[Panel, ...]
    numbers: tuple[Json, ...]

    @property
    def sheet(self) -> Drawing:
        """All panels in one drawing, each below its label, for a file; a single one as it is."""
        if len(self.panels) == 1 and not self.panels[0].label:
            return self.panels[0].drawing
        wide = max(panel.drawing.width for panel in self.panels)
        tall = max(panel.drawing.height for panel in self.panels) + TITLE
        columns = min(len(self.panels), max(1, int(1100 // (wide + GAP))))
        columns = math.ceil(len(self.panels) / math.ceil(len(self.panels) / columns))  # rows of even length
        rows = math.ceil(len(self.panels) / columns)
        sheet = Drawing(columns * (wide + GAP) - GAP, rows * (tall + GAP) - GAP)
        for number, panel in enumerate(self.panels):
            x, y = (number % columns) * (wide + GAP), (number // columns) * (tall + GAP)
            sheet.words(x + 4, y + 14, fitted(panel.label, wide, 12.5), colour="ink", size=12.5, bold=True)
            sheet.place(panel.drawing, x, y + TITLE)
        return sheet


def count(number: float) -> str:
    """Print a count, or a mean of counts.

    >>> count(2000), count(12.6), count(0.4)
    ('2,000', '13', '<1')
    """
    return "<1" if 0 < number < 0.5 else f"{number:,.0f}"
