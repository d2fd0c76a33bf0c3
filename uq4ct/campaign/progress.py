"""Say how far a campaign is: a line per cell, and on a terminal a line that is kept up to date, with an ETA."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence

from uq4ct.campaign.cells import Cell, Outcome
from uq4ct.runs import Say


class Progress:
    """Count cells and guess the time that is left from the seconds of those that are done."""

    def __init__(self, outcomes: Sequence[Outcome], say: Say):
        self._say = say
        self._seconds = {o.cell.name: o.seconds for o in outcomes if o.status == "complete" and o.seconds}
        self._methods = {o.cell.name: o.cell.method for o in outcomes}
        self._done = {o.cell.name for o in outcomes if o.status in ("complete", "diverged")}
        self._running: dict[str, float] = {}
        self._widest = 1
        self._live = sys.stderr.isatty()
        self._shown = 0.0

    def __enter__(self) -> Progress:
        if self._done:
            self.say(f"{len(self._done)} of {len(self._methods)} cells have a result already")
        return self

    def __exit__(self, *error: object) -> None:
        self._clear()

    def started(self, cell: Cell) -> None:
        """Say that a cell begins."""
        self._running[cell.name] = time.monotonic()
        self._widest = max(self._widest, len(self._running))
        self.say(f"{self._count} {title(cell)}: started, log in {cell.folder.parents[1] / 'logs' / cell.name}.log")

    def ended(self, outcome: Outcome) -> None:
        """Say what became of a cell."""
        cell = outcome.cell
        began = self._running.pop(cell.name, None)
        self._done.add(cell.name)
        seconds = "" if began is None else f" in {time.monotonic() - began:.0f} s"
        if outcome.status == "complete":
            self._seconds[cell.name] = outcome.seconds or 0.0
        reason = f": {outcome.message}" if outcome.message else ""
        self.say(f"{self._count} {title(cell)}: {outcome.status}{seconds}{reason}{self._left}")

    def put_back(self, cell: Cell) -> None:
        """Forget that a cell was begun."""
        self._running.pop(cell.name, None)

    def say(self, line: str) -> None:
        """Print a line above the one that is kept up to date."""
        self._clear()
        self._say(line)

    def tick(self) -> None:
        """Bring the terminal's last line up to date, twice a second at most."""
        if not self._live or not self._running or time.monotonic() - self._shown < 0.5:
            return
        self._shown = time.monotonic()
        parts = [f"{name.rsplit('-', 1)[0]} {self._shown - began:.0f} s" for name, began in self._running.items()]
        line = f"{self._count} {', '.join(parts)}{self._left}"
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\033[K{line[:width]}", end="", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._live and self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    @property
    def _count(self) -> str:
        return f"[{len(self._done)}/{len(self._methods)}]"

    @property
    def _left(self) -> str:
        """Time that is left: each cell takes as long as the finished ones of its method, else as all finished ones."""
        todo = [method for name, method in self._methods.items() if name not in self._done]
        if not todo or not self._seconds:
            return ""
        by_method: dict[str, list[float]] = {}
        for name, spent in self._seconds.items():
            by_method.setdefault(self._methods[name], []).append(spent)
        every = [spent for some in by_method.values() for spent in some]
        total = sum(sum(some) / len(some) for method in todo for some in [by_method.get(method, every)])
        now = time.monotonic()
        total -= sum(min(now - began, total / len(todo)) for began in self._running.values())
        return f"; about {duration(max(0.0, total) / self._widest)} left"


def title(cell: Cell) -> str:
    """Name a cell for people."""
    return f"{cell.method} on {cell.task}, seed {cell.seed}"


def duration(seconds: float) -> str:
    """Print a time as people say it.

    >>> duration(42), duration(600), duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
