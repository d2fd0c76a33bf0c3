"""The bundled benchmark end to end: the methods on the small model whose world, and true probabilities, are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from uq4ct import evaluating, fitting
from uq4ct.config import RECOMMENDED, Layer, preset_layers, resolve
from uq4ct.report import build_report, table
from uq4ct.runs import Run, Say, to_stderr

METHODS = ("zero_shot", "lora", "lora+temperature", "mixlora", "uq4ct", RECOMMENDED)
TASKS = ("tiny", "tiny-near", "tiny-far", "tiny-unanswerable")
TRAIN = {"save_steps": 50}  # all else is that of preset product


def run(
    output: Path,
    *,
    seed: int = 1,
    progress: Callable[[str, int], Callable[[int, int], None]] | None = None,
    say: Say = to_stderr,
) -> None:
    """Fit and evaluate every method, print the table and write ``report.html``; what is complete is kept."""
    started = time.monotonic()
    say(f"uq4ct demo: {len(METHODS)} methods on the bundled benchmark, seed {seed}; one to five minutes on 2 cores")
    results, runs = [], []
    store = output / "store"  # a suffix shares what its method trained and answered
    for number, method in enumerate(METHODS, 1):
        say(f"\n[{number}/{len(METHODS)}] {method}")
        config = resolve(
            [
                *preset_layers("product"),
                Layer.of(
                    {
                        "model": {"name": "tiny"},
                        "data": {"source": "tiny"},
                        "method": {"name": method},
                        "train": TRAIN,
                        "output": {"folder": str(output / method), "seed": seed},
                    },
                    "demo",
                ),
            ]
        )
        fitted = fitting.train(config, resume=(output / method).exists(), store=store, say=say)
        results += evaluating.evaluate(fitted, TASKS, resume=True, store=store, progress=progress, say=say)
        runs.append(fitted)
    report = output / "report.html"
    build_report([fitted.folder for fitted in runs], report)
    print(table(sorted(results, key=lambda result: TASKS.index(result["task"]))))
    print(f"\n{cost_table(runs)}")
    folders = ", ".join(str(fitted.folder) for fitted in runs)
    say(f"\n{time.monotonic() - started:.0f} s. Wrote {report} and the runs {folders}.")
    say(f"Open {report} in a browser; ask the model with: uq4ct ask {output / RECOMMENDED}")


def cost_table(runs: Sequence[Run]) -> str:
    """Return what each fit cost: forward passes per answer, trainable parameters and seconds of training."""
    lines = [f"{'method':<20}{'passes':>8}{'trainable parameters':>22}{'training seconds':>18}"]
    for fitted in runs:
        facts = fitted.facts
        lines.append(
            f"{facts['method']:<20}{facts['passes']:>8}{facts['trainable_parameters']:>22,}{facts['seconds']:>18.0f}"
        )
    return "\n".join(lines)
