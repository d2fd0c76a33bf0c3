"""Run the cells of a campaign that have no result yet, on one of the engines."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from uq4ct.campaign.cells import Cell, Outcome, state
from uq4ct.campaign.job import Job, snapshots_of
from uq4ct.campaign.progress import Progress
from uq4ct.errors import UserError, did_you_mean
from uq4ct.runs import Say, to_stderr

ENGINES = {"local": "uq4ct.campaign.local", "ray": "uq4ct.campaign.cluster"}


def run_cells(
    cells: Sequence[Cell],
    output: Path,
    *,
    engine: str = "local",
    workers: int | None = None,
    gpus_per_cell: float | None = None,
    say: Say = to_stderr,
) -> list[Outcome]:
    """Fit and evaluate every cell that has no result yet; return what became of each, in order.

    Finished cells are kept, interrupted ones continued, failed ones tried again; one that diverged does so every time
    and is only reported. Whatever happens to one cell, the others go on. Trainings that methods share are done once,
    in ``output/store``. SIGTERM and SIGINT let running trainings save a checkpoint and leave with 143 and 130
    (SystemExit); the same call continues. Raises UserError for an engine that is not there.
    """
    check_engine(engine)
    outcomes = {cell.name: state(cell) for cell in cells}
    todo = [cell for cell in cells if outcomes[cell.name].status not in ("complete", "diverged")]
    if not todo:
        return [outcomes[cell.name] for cell in cells]
    run = importlib.import_module(ENGINES[engine]).run
    progress = Progress(list(outcomes.values()), say)

    def ended(outcome: Outcome) -> None:
        outcomes[outcome.cell.name] = outcome
        progress.ended(outcome)

    job = Job(
        store=output / "store",
        logs=output / "logs",
        snapshots=snapshots_of(todo),
        workers=workers,
        gpus_per_cell=gpus_per_cell,
        started=progress.started,
        ended=ended,
        put_back=progress.put_back,
        tick=progress.tick,
        say=progress.say,
    )
    with progress:
        run(todo, job)
    if all(outcome.status == "complete" for outcome in outcomes.values()):
        _remove_snapshots(job.store)
    return [outcomes[cell.name] for cell in cells]


def check_engine(engine: str) -> None:
    """Raise UserError for an engine that is not there."""
    if engine not in ENGINES:
        raise UserError(f"--engine: '{engine}' is not one of {', '.join(ENGINES)}.{did_you_mean(engine, [*ENGINES])}")


def _remove_snapshots(store: Path) -> None:
    """Drop what only a method still to be fitted would need; adapters and predictions stay for later comparisons."""
    for folder in store.glob("*/snapshots"):
        if (folder.parent / "training.json").is_file():  # another comparison may be training in this very store
            shutil.rmtree(folder, ignore_errors=True)
