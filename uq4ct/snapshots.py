"""Save adapters: at the end of a training, and as they were at chosen points of it for ensembles, early stopping."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers

from uq4ct.checkpoints import checkpoints, discard, step_of
from uq4ct.manifest import write_json


def save_adapter(model: Any, folder: Path) -> None:
    """Save an adapter in PEFT's format, without PEFT's card template: it says nothing about this run.

    Each file is replaced as a whole, never written through: finished runs share the one that was there before. What
    PEFT holds as a set is sorted, so that the same training gives the same bytes in every process. Where the head is
    adapted, PEFT would add a copy of the base's head, which never changes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".adapter-", suffix=".tmp") as part:
        model.save_pretrained(part, save_embedding_layers=False)
        saved = Path(part) / "adapter_config.json"
        held = vars(model.peft_config[model.active_adapter])
        settings = json.loads(saved.read_text(encoding="utf-8"))
        unordered = {name: sorted(value) for name, value in held.items() if isinstance(value, (set, frozenset))}
        write_json(saved, settings | unordered)
        (Path(part) / "README.md").unlink(missing_ok=True)
        for path in Path(part).iterdir():
            os.replace(path, folder / path.name)


def snapshot_folder(folder: Path, fraction: float) -> Path:
    """Return where the adapter after this fraction of the training lies, whether it is there or not.

    >>> snapshot_folder(Path("run"), 0.9).as_posix()
    'run/snapshots/0.9000'
    """
    return folder / "snapshots" / f"{fraction:.4f}"


def snapshot_step(fraction: float, steps: int) -> int:
    """Return the number of completed optimizer steps at which a snapshot is taken, of all ``steps``.

    >>> snapshot_step(0.9, 76), snapshot_step(0.001, 76)
    (68, 1)
    """
    return max(1, round(fraction * steps))


def discard_beyond_missing(folder: Path, fractions: Iterable[float]) -> None:
    """Delete the checkpoints past a wanted snapshot that is not there: a training that goes on from one would miss it.

    That happens where a training was interrupted and a method that wants more snapshots of it came later.
    """
    missing = [fraction for fraction in fractions if not snapshot_folder(folder, fraction).is_dir()]
    for checkpoint in checkpoints(folder):
        try:
            steps = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["max_steps"]
        except (OSError, ValueError, KeyError):
            continue  # never finished or damaged, so that nothing goes on from it
        if any(snapshot_step(fraction, steps) <= step_of(checkpoint) for fraction in missing):
            discard(checkpoint)


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
            if state.global_step == snapshot_step(fraction, state.max_steps):
                place = snapshot_folder(self.folder, fraction)
                part = place.with_suffix(f".{os.getpid()}.tmp")
                save_adapter(getattr(model, "module", model), part)
                shutil.rmtree(place, ignore_errors=True)
                os.replace(part, place)
