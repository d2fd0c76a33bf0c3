"""What an engine is told besides the cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uq4ct.campaign.cells import Cell, Outcome
from uq4ct.runs import Say

RETRIES = 2  # of a cell whose process was killed


@dataclass(frozen=True)
class Job:
    """Where trainings and logs are kept, how much runs at a time, and whom to tell what happens.

    ``snapshots`` are, by the cell's name, the fractions of its training at which any cell that shares it needs it.
    """

    store: Path
    logs: Path
    snapshots: Mapping[str, tuple[float, ...]]
    workers: int | None
    gpus_per_cell: float | None
    started: Callable[[Cell], None]
    ended: Callable[[Outcome], None]
    put_back: Callable[[Cell], None]
    tick: Callable[[], None]
    say: Say


def snapshots_of(cells: Sequence[Cell]) -> dict[str, tuple[float, ...]]:
    """Return for each cell, by its name, the fractions of its training that these cells need."""
    wanted: dict[str, set[float]] = {}
    for cell in cells:
        wanted.setdefault(cell.training, set()).update(cell.config.method.snapshots)
    return {cell.name: tuple(sorted(wanted[cell.training])) for cell in cells}
