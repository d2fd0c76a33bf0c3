"""What an engine is told besides the cells, and which cells share a training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from uq4ct.campaign.cells import Cell, Outcome
from uq4ct.methods.base import LoraMethod
from uq4ct.runs import Say

RETRIES = 2  # of a cell whose process was killed


@dataclass(frozen=True)
class Job:
    """Where trainings and logs are kept, how much runs at a time, and whom to tell what happens."""

    store: Path
    logs: Path
    snapshots: tuple[float, ...]
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
    kind = LoraMethod if isinstance(method, LoraMethod) else type(method)
    options = method.model_dump(mode="json", include=set(kind.model_fields) - {"posthoc"})
    train, data = cell.config.train.model_dump(mode="json"), cell.config.data.model_dump(mode="json")
    return json.dumps([kind.__name__, options, train, data, cell.config.model.name, cell.seed], sort_keys=True)
