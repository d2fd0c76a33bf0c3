"""The Ray engine: each cell is a Ray task on a cluster whose nodes share the folder; a lost task is tried again.

Connects to the cluster that RAY_ADDRESS names, or starts one on this machine, without its dashboard.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from uq4ct.campaign import worker as attendant
from uq4ct.campaign.cells import Cell, fail, state
from uq4ct.campaign.job import RETRIES, Job
from uq4ct.errors import UserError
from uq4ct.interruption import StopSignal


def run(cells: Sequence[Cell], job: Job) -> None:
    """Run the cells as Ray tasks; SIGTERM and SIGINT stop them after their trainings saved a checkpoint."""
    ray = _ray()
    gpus = _gpus(job)
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False, num_cpus=_cpus(job, gpus))
    try:
        with StopSignal() as stop:
            _attend_all(ray, cells, job, gpus, stop)
    finally:
        if started_here:
            ray.shutdown()


def _attend_all(ray: Any, cells: Sequence[Cell], job: Job, gpus: float, stop: StopSignal) -> None:
    task = ray.remote(attendant.attend).options(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)

    def submit(cell: Cell) -> Any:
        return task.remote(attendant.order(cell, job))

    tasks = {submit(cell): cell for cell in cells}
    job.say(f"{len(cells)} cells handed to Ray, {gpus:g} GPUs each")
    while tasks:
        ready, _ = ray.wait(list(tasks), num_returns=1, timeout=0.5)
        for reference in ready:
            cell = tasks.pop(reference)
            try:
                status = ray.get(reference)
            except ray.exceptions.RayError as error:
                message = str(error).strip().splitlines()[-1]
                job.ended(fail(cell, "failed", f"Ray lost it {RETRIES + 1} times: {message}"))
                continue
            if status == "busy":
                tasks[submit(cell)] = cell
            else:
                job.ended(state(cell))
        job.tick()
        if stop.received:
            _stop(ray, list(tasks))
            job.say("interrupted; the same command continues")
            raise SystemExit(128 + stop.received)


def _stop(ray: Any, references: list[Any]) -> None:
    """Ask every task to stop, as Ctrl-C does, and give trainings a minute to save their checkpoints."""
    for reference in references:
        ray.cancel(reference, force=False)
    ray.wait(references, num_returns=len(references), timeout=60)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        message = "--engine ray: Ray is not installed; pip install 'ray>=2.54', or use --engine local"
        raise UserError(message) from error
    return ray


def _gpus(job: Job) -> float:
    """Return the GPUs of a cell: as asked, else one where this machine has any."""
    import torch

    return float(torch.cuda.is_available()) if job.gpus_per_cell is None else job.gpus_per_cell


def _cpus(job: Job, gpus: float) -> int | None:
    """Return the tasks at a time of a cluster started here, None for a cluster that is there already."""
    import torch

    from uq4ct.campaign.local import default_workers

    if os.environ.get("RAY_ADDRESS"):
        return None
    sharing = int(torch.cuda.device_count() / gpus) if gpus else 0  # cells of less than a GPU share one
    return job.workers or max(sharing, default_workers()[0])
