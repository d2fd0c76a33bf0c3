"""A worker process of a campaign: cells come on standard input, one JSON object a line, answers go to standard output.

    in   {"cell": ..., "store": ..., "log": ..., "snapshots": [...]}
    out  {"status": "complete"} or failed, diverged; "busy" where another process works on the cell

What the libraries print goes to the cell's log. When the campaign's process disappears, the worker stops as on
SIGTERM: a training saves a checkpoint first.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from uq4ct.campaign.cells import Cell, alone, work
from uq4ct.campaign.job import Job
from uq4ct.runs import to_stderr


def order(cell: Cell, job: Job) -> str:
    """Return what a worker is told about one cell."""
    places = {"store": str(job.store), "log": str(job.logs / f"{cell.name}.log")}
    return json.dumps({"cell": cell.to_json(), **places, "snapshots": job.snapshots[cell.name]})


def attend(line: str) -> str:
    """Do what an order says; return the status of the cell, or "busy"."""
    asked: dict[str, Any] = json.loads(line)
    cell = Cell.from_json(asked["cell"])
    log = Path(asked["log"])
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 2)
    with alone(cell) as mine:
        if not mine:
            return "busy"
        return work(cell, store=Path(asked["store"]), snapshots=asked["snapshots"], say=to_stderr).status


def main() -> None:
    """Attend to every cell that comes, until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    orders: queue.Queue[str | None] = queue.Queue()
    busy = threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            orders.put(line)
        orders.put(None)
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()
    while (line := orders.get()) is not None:
        busy.set()
        status = attend(line)
        busy.clear()
        print(json.dumps({"status": status}), file=answers, flush=True)


if __name__ == "__main__":
    main()
