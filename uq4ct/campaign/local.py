"""The local engine: worker processes on this machine, one cell each at a time; a killed one costs only its cell."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence

from uq4ct.campaign import worker as attendant
from uq4ct.campaign.cells import Cell, fail, state
from uq4ct.campaign.job import RETRIES, Job
from uq4ct.interruption import StopSignal

AGAIN = 1.0  # seconds before a cell is tried again that another campaign works on


def run(cells: Sequence[Cell], job: Job) -> None:
    """Run the cells on worker processes; SIGTERM and SIGINT stop them after their trainings saved a checkpoint."""
    count, reason = (job.workers, "as asked") if job.workers else default_workers()
    count = min(count, len(cells))
    job.say(f"cells to run: {len(cells)}, {count} at a time ({reason})")
    job.logs.mkdir(parents=True, exist_ok=True)
    _Office(cells, job, [_Worker(number, count, job) for number in range(count)]).run()


def default_workers() -> tuple[int, str]:
    """Return how many cells to run at a time here, and why."""
    import torch

    if gpus := torch.cuda.device_count():
        return gpus, f"one per GPU, of which there are {gpus}"
    return max(1, cores() // 2), f"one per two cores, of which there are {cores()}; --workers N sets another number"


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Office:
    """Hand cells to workers until none is left."""

    def __init__(self, cells: Sequence[Cell], job: Job, crew: list[_Worker]):
        self.waiting, self.job, self.crew = list(cells), job, crew
        self._kills: Counter[str] = Counter()
        self._not_before: dict[str, float] = {}

    def run(self) -> None:
        try:
            with StopSignal() as stop:
                while self.waiting or any(worker.cell for worker in self.crew):
                    self._hand_out()
                    self._listen()
                    self.job.tick()
                    if stop.received:
                        for worker in self.crew:
                            worker.stop()
                        self.job.say("interrupted; the same command continues")
                        raise SystemExit(128 + stop.received)
        finally:
            for worker in self.crew:
                worker.close()

    def _hand_out(self) -> None:
        for worker in self.crew:
            if worker.cell is None and (cell := self._next()):
                if not self._kills[cell.name] and cell.name not in self._not_before:
                    self.job.started(cell)
                worker.begin(cell)

    def _next(self) -> Cell | None:
        """Take the first cell that shares no training with a running one, else the first."""
        now = time.monotonic()
        ready = [cell for cell in self.waiting if self._not_before.get(cell.name, 0.0) <= now]
        taken = {worker.cell.training for worker in self.crew if worker.cell}
        free = [cell for cell in ready if cell.training not in taken]
        for cell in (free or ready)[:1]:
            self.waiting.remove(cell)
            return cell
        return None

    def _listen(self) -> None:
        select.select([worker.answers for worker in self.crew if worker.cell], [], [], 0.2)
        for worker in self.crew:
            if (cell := worker.cell) and (status := worker.answer()):
                worker.cell = None
                if status == "busy":
                    if cell.name not in self._not_before:
                        self.job.say(f"{cell.name}: another process works on it; its result is waited for")
                    self.waiting.append(cell)
                    self._not_before[cell.name] = time.monotonic() + AGAIN
                    self.job.put_back(cell)
                elif status == "gone":
                    self._lost(cell, worker)
                else:
                    self.job.ended(state(cell))

    def _lost(self, cell: Cell, worker: _Worker) -> None:
        self._kills[cell.name] += 1
        message = f"its process ended {worker.how_it_ended()}"
        if self._kills[cell.name] > RETRIES:
            message += f", {RETRIES + 1} times; the log {self.job.logs / cell.name}.log may tell, or memory is short"
            self.job.ended(fail(cell, "failed", message))
        else:
            self.job.say(f"{cell.name}: {message}; it goes on from its last checkpoint")
            self.job.put_back(cell)
            self.waiting.insert(0, cell)


class _Worker:
    """A process that is started when it is first needed, and again after it was killed."""

    def __init__(self, number: int, count: int, job: Job):
        self.cell: Cell | None = None
        self._number, self._count, self._job = number, count, job
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = b""

    @property
    def answers(self) -> int:
        """The file descriptor on which answers come."""
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def begin(self, cell: Cell) -> None:
        """Give the process a cell."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        self.cell = cell
        line = attendant.order(cell, self._job)
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it was killed a moment ago, which `answer` will see

    def answer(self) -> str | None:
        """Return the status that the process gives its cell, "gone" where it has ended, None while it works."""
        try:
            part = os.read(self.answers, 65536)
        except BlockingIOError:
            return None
        self._heard += part
        line, newline, rest = self._heard.partition(b"\n")
        if newline:
            self._heard = rest
            return json.loads(line)["status"]
        return None if part else "gone"

    def how_it_ended(self) -> str:
        """Say by which signal or with which code the process ended."""
        assert self._process is not None
        code = self._process.wait()
        return f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with code {code}"

    def stop(self) -> None:
        """Let a training save a checkpoint and end; an evaluation ends at once, and is whole or absent."""
        if self._process and self._process.poll() is None:
            self._process.terminate()

    def close(self) -> None:
        """Wait until the process has ended; it does when it is told that nothing more comes."""
        if self._process:
            self._process.communicate()

    def _start(self) -> None:
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // self._count)))
        if device := _device(self._number):
            environment["CUDA_VISIBLE_DEVICES"] = device
        self._heard = b""
        with (self._job.logs / "workers.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "uq4ct.campaign.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the workers in order
            )
        os.set_blocking(self.answers, False)


def _device(number: int) -> str | None:
    """Return the GPU of a worker, None where there is none: workers take turns over those that are visible."""
    import torch

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    visible = visible or [str(index) for index in range(torch.cuda.device_count())]
    return visible[number % len(visible)] if visible else None
