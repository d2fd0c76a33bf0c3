"""Checkpoints that can be trusted: sealed by a manifest that is written last, verified before anything in them is read.

The layout is the Trainer's (``checkpoint-STEP`` folders). A folder without a manifest was never finished and is
ignored; one whose manifest does not hold is named and passed over. Nothing pickled is loaded from a folder that was not
verified.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from uq4ct.errors import UserError
from uq4ct.manifest import MANIFEST, CorruptFolder, verify_manifest, write_manifest

Say = Callable[[str], None]


def to_stderr(line: str) -> None:
    """Print one line for the person who watches."""
    print(line, file=sys.stderr, flush=True)


def checkpoints(folder: Path) -> list[Path]:
    """Return a folder's ``checkpoint-STEP`` folders, oldest first, finished or not."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.is_dir() and step_of(path) >= 0), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the number of completed optimizer steps in a checkpoint's name, -1 for any other name.

    >>> step_of(Path("run/checkpoint-30")), step_of(Path("run/checkpoint-best"))
    (30, -1)
    """
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else -1


def last_good_checkpoint(folder: Path, say: Say = to_stderr) -> Path | None:
    """Return the newest checkpoint whose manifest holds, or None; every newer one is named with the reason."""
    for checkpoint in reversed(checkpoints(Path(folder))):
        if not (checkpoint / MANIFEST).is_file():
            say(f"{checkpoint}: ignored, it was never finished")
            continue
        try:
            manifest = verify_manifest(checkpoint)
        except CorruptFolder as corrupt:
            say(f"{checkpoint}: not used, it is damaged: {'; '.join(corrupt.problems[:-1] or corrupt.problems)}")
            continue
        if manifest.get("step") != step_of(checkpoint):
            say(f"{checkpoint}: not used, its manifest is that of step {manifest.get('step')}")
            continue
        return checkpoint
    return None


def seal(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Declare a checkpoint finished: flush its files and write its manifest, with these facts, last."""
    write_manifest(checkpoint, step=step_of(checkpoint), **facts)
    _flush(checkpoint.parent)


def refuse_other_run(manifest: Mapping[str, Any], facts: Mapping[str, Any], checkpoint: Path) -> None:
    """Raise UserError naming every fact in which a checkpoint's run differs from this one.

    >>> refuse_other_run({"config_hash": "a1", "seed": 0}, {"config_hash": "b2", "seed": 0}, Path("checkpoint-5"))
    Traceback (most recent call last):
    uq4ct.errors.UserError: checkpoint-5: config_hash is 'a1' there and 'b2' now
    checkpoint-5: another run's checkpoint is never continued; restore its options, or start in another folder
    """
    problems = [
        f"{checkpoint}: {name} is {manifest.get(name)!r} there and {value!r} now"
        for name, value in facts.items()
        if manifest.get(name) != value
    ]
    if problems:
        advice = "another run's checkpoint is never continued; restore its options, or start in another folder"
        raise UserError([*problems, f"{checkpoint}: {advice}"])


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, manifest first, so that a crash in between leaves it unfinished, not damaged."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    if checkpoint.exists():
        shutil.rmtree(checkpoint)


def keep_newest(newest: Path, number: int | None, protected: str | None = None) -> None:
    """Delete what is older than the ``number`` newest checkpoints up to ``newest``, which is sealed; None keeps all.

    Unfinished folders do not count and are deleted too; the ``protected`` one is kept, and counts. A checkpoint of a
    later step, left by a run that was resumed further back, is not touched.
    """
    if number is None:
        return
    older = [path for path in checkpoints(newest.parent) if step_of(path) < step_of(newest)]
    kept = {path for path in older if str(path) == protected}
    finished = [path for path in older if (path / MANIFEST).is_file() and path not in kept]
    room = max(number - 1 - len(kept), 0)
    kept.update(finished[len(finished) - room :])
    for path in older:
        if path not in kept:
            discard(path)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
