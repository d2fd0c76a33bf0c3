"""Keep the adapter as it was at chosen points of a training, for ensembles over one run and for early stopping."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers


def snapshot_folder(folder: Path, fraction: float) -> Path:
    """Return where the adapter after this fraction of the training lies, whether it is there or not.

    >>> snapshot_folder(Path("run"), 0.9).as_posix()
    'run/snapshots/0.9000'
    """
    return folder / "snapshots" / f"{fraction:.4f}"


class Snapshots(transformers.TrainerCallback):
    """Save the adapter after each fraction of the optimizer steps: step = round(fraction * all), at least the first.

    A snapshot is written under another name and renamed, so that it is whole or absent; a resumed training writes the
    later ones again, to the same bytes. Only the main process writes.
    """

    def __init__(self, folder: Path, fractions: Iterable[float]):
        self.folder, self.fractions = folder, tuple(fractions)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Save what this step completes."""
        if not state.is_world_process_zero:
            return
        for fraction in self.fractions:
            if state.global_step == max(1, round(fraction * state.max_steps)):
                place = snapshot_folder(self.folder, fraction)
                part = place.with_suffix(f".{os.getpid()}.tmp")
                getattr(model, "module", model).save_pretrained(part, save_embedding_layers=False)
                shutil.rmtree(place, ignore_errors=True)
                os.replace(part, place)
