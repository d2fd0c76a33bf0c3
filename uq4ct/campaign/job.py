"""What an engine is told besides the cells, and which cells share a training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uq4ct.campaign.cells import Cell, Outcome
from uq4ct.methods.base import LoraMethod, MixtureMethod, VariationalMethod
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


def training_of(cell: Cell) -> str:
    """Return a text that is the same for cells that, as far as their options tell, share a training.

    The store knows exactly; this serves to keep such cells from waiting for each other, and to count each cost once.
    """
    method = cell.config.method
    plain = isinstance(method, LoraMethod) and not isinstance(method, VariationalMethod)
    kind = LoraMethod if plain else type(method)
    options = method.model_dump(mode="json", include=set(kind.model_fields) - {"posthoc"})
    loss = repr(method.objective()) if isinstance(method, LoraMethod | MixtureMethod) else ""
    train, data = cell.config.train.substance(), cell.config.data.model_dump(mode="json")
    return json.dumps([kind.__name__, options, loss, train, data, cell.config.model.name, cell.seed], sort_keys=True)


def snapshots_of(cells: Sequence[Cell]) -> dict[str, tuple[float, ...]]:
    """Return for each cell, by its name, the fractions of its training that these cells need."""
    wanted: dict[str, set[float]] = {}
    for cell in cells:
        wanted.setdefault(training_of(cell), set()).update(cell.config.method.snapshots)
    return {cell.name: tuple(sorted(wanted[training_of(cell)])) for cell in cells}
