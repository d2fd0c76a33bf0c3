"""What there is to choose from: tasks, methods, metrics, and the runs below a folder. Loads no model library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def list_tasks(folder: Path) -> Rows:
    """List the tasks known by name."""
    from uq4ct import tasks

    return tasks.list_tasks()


def list_methods(folder: Path) -> Rows:
    """List the methods with their forward passes per answer.

    >>> next(row["passes"] for row in list_methods(Path()) if row["name"] == "mc_dropout")
    10
    """
    from uq4ct import methods

    found = [methods.find(name)() for name in methods.names()]
    return [{"name": method.name, "passes": method.passes, "summary": method.summary} for method in found]


def list_metrics(folder: Path) -> Rows:
    """List the metrics of an evaluation."""
    from uq4ct import metrics

    return metrics.list_metrics()


def list_runs(folder: Path) -> Rows:
    """List the run folders below a folder, finished or not."""
    rows = []
    for path in sorted(folder.rglob("config.yaml")):
        run = path.parent
        if (run / "manifest.json").is_file() and (run / "uq4ct.json").is_file():
            try:
                facts = json.loads((run / "uq4ct.json").read_text(encoding="utf-8"))
                summary = f"{facts['method']} on {facts['task']}, seed {facts['seed']}, base {facts['base']['name']}"
            except (ValueError, KeyError, TypeError):
                summary = "damaged: its uq4ct.json is not that of a run"
        else:
            summary = "unfinished; continue with uq4ct train ... --resume"
        rows.append({"name": str(run), "summary": summary})
    return rows


KINDS: dict[str, Callable[[Path], Rows]] = {
    "tasks": list_tasks,
    "methods": list_methods,
    "metrics": list_metrics,
    "runs": list_runs,
}
