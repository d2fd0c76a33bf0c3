"""The bundled benchmark end to end: four methods on the small model whose world, and true probabilities, are known."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from uq4ct import evaluating, fitting
from uq4ct.config import Layer, resolve
from uq4ct.report import build_report, table
from uq4ct.runs import Say, to_stderr

METHODS = ("zero_shot", "lora", "mixlora", "uq4ct")
TASKS = ("tiny", "tiny-near", "tiny-far", "tiny-unanswerable")
TRAIN = {"num_train_epochs": 4, "learning_rate": 5e-4, "save_steps": 50}


def run(
    output: Path,
    *,
    seed: int = 1,
    progress: Callable[[str, int], Callable[[int, int], None]] | None = None,
    say: Say = to_stderr,
) -> None:
    """Fit and evaluate every method, print the table and write ``report.html``; what is complete is kept."""
    started = time.monotonic()
    say(f"uq4ct demo: {len(METHODS)} methods on the bundled benchmark, seed {seed}; about five minutes on 2 cores")
    results, runs = [], []
    for number, method in enumerate(METHODS, 1):
        say(f"\n[{number}/{len(METHODS)}] {method}")
        config = resolve(
            [
                Layer.of(
                    {
                        "model": {"name": "tiny"},
                        "data": {"source": "tiny"},
                        "method": {"name": method},
                        "train": TRAIN,
                        "output": {"folder": str(output / method), "seed": seed},
                    },
                    "demo",
                )
            ]
        )
        fitted = fitting.train(config, resume=True, say=say)
        results += evaluating.evaluate(fitted, TASKS, resume=True, progress=progress, say=say)
        runs.append(fitted.folder)
    report = output / "report.html"
    build_report(runs, report)
    print(table(results))
    say(f"\n{time.monotonic() - started:.0f} s. Wrote {report} and the runs {', '.join(str(path) for path in runs)}.")
    say(f"Open {report} in a browser; ask the model with: uq4ct ask {output / 'uq4ct'}")
