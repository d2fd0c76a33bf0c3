"""How often do the intervals hold the truth, and how often is a calibrated model said to be calibrated? By simulation.

    python benchmarks/coverage.py --replicates 500 --output coverage.json
    python benchmarks/coverage.py --metrics signed_gap ece ...    # of these alone, the same numbers in less time

Each world has four choices, probabilities softmax(1.5 z) with standard normal z, and a known chance that the most
probable choice is right; the other choices share the rest as their probabilities do. The truth of each metric is its
expectation over two million questions of the world, that of ECE over the same 15 bins.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from uq4ct.metrics import METRICS, Answers, Settings
from uq4ct.metrics.calibration_error import bin_index
from uq4ct.metrics.measuring import measure
from uq4ct.metrics.null_band import ece_null, verdict

WORLDS = {
    "calibrated": lambda c: c,
    "5 points too sure": lambda c: c - 0.05,
    "10 points too sure": lambda c: c - 0.10,
    "5 points either way": lambda c: np.where(c > 0.6, c - 0.05, c + 0.05),
    "10 points either way": lambda c: np.where(c > 0.6, c - 0.10, c + 0.10),
}
NAMES = ("accuracy", "nll", "brier", "signed_gap", "auroc", "ece")
LARGE = 2_000_000


def draw(world: str, n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return n rows of probabilities, the most probable choice first, and the true chances of each choice."""
    p = np.exp(1.5 * generator.normal(size=(n, 4)))
    p = -np.sort(-p / p.sum(axis=1, keepdims=True), axis=1)
    right = WORLDS[world](p[:, 0])
    truth = p * ((1 - right) / (1 - p[:, 0]))[:, None]
    truth[:, 0] = right
    return p, truth


@cache
def truth_of(world: str) -> dict[str, float]:
    """Return the expectation of each metric."""
    p, truth = draw(world, LARGE, np.random.default_rng(12345))
    confidence, right = p[:, 0], truth[:, 0]
    gaps = np.bincount(bin_index(confidence, 15), weights=confidence - right, minlength=15)
    order = np.argsort(-confidence)
    sure = right[order]
    above = np.cumsum(sure) - sure
    return {
        "accuracy": float(right.mean()),
        "nll": float(-(truth * np.log(p)).sum(axis=1).mean()),
        "brier": float(((p**2).sum(axis=1) - 2 * (truth * p).sum(axis=1) + 1).mean()),
        "signed_gap": float((confidence - right).mean()),
        "auroc": float((above * (1 - sure)).sum() / (right.sum() * (1 - right).sum())),
        "ece": float(np.abs(gaps).sum() / LARGE),
    }


def simulate(
    world: str, n: int, names: list[str], replicates: int, resamples: int, seed: int
) -> dict[str, Any]:
    """Return how often each interval holds the truth, the mean estimate, and how often the verdict is 'calibrated'."""
    truth, generator = truth_of(world), np.random.default_rng([seed, n, list(WORLDS).index(world)])
    chosen = [metric for metric in METRICS if metric.name in {*names, "signed_gap", "ece"}]
    held, estimates, calibrated = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0), 0
    for replicate in range(replicates):
        p, chances = draw(world, n, generator)
        answer = (chances.cumsum(axis=1) < generator.random((n, 1))).sum(axis=1).clip(0, 3)
        answers = Answers.of(p, answer)
        found = measure(answers, Settings(resamples=resamples, seed=replicate), chosen)
        null = ece_null(answers.confidence, answers.correct, draws=resamples, seed=replicate)
        error, gap = found.values["ece"] or 0.0, found.values["signed_gap"] or 0.0
        words = verdict(error, null["high"], gap, found.intervals["signed_gap"])
        calibrated += words == "not distinguishable from calibrated"
        for name in names:
            low, high = found.intervals[name] or (np.nan, np.nan)
            held[name] += low <= truth[name] <= high
            estimates[name] += (found.values[name] or 0.0) / replicates
    return {
        "world": world,
        "n": n,
        "replicates": replicates,
        "resamples": resamples,
        "truth": truth,
        "mean": estimates,
        "coverage": {name: count / replicates for name, count in held.items()},
        "called_calibrated": calibrated / replicates,
    }


def table(cells: list[dict[str, Any]]) -> str:
    """Return the coverages as Markdown, in per cent."""
    titles = ["world", "n", "true ECE", "mean ECE", *NAMES, "called calibrated"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "|".join(["---"] + ["---:"] * (len(titles) - 1)) + "|"]
    for cell in cells:
        shares = [f"{100 * cell['coverage'][name]:.1f}" if name in cell["coverage"] else "-" for name in NAMES]
        ends = [f"{100 * cell[key]['ece']:.1f}" if "ece" in cell[key] else "-" for key in ("truth", "mean")]
        row = [cell["world"], f"{cell['n']:,}", *ends, *shares, f"{100 * cell['called_calibrated']:.1f}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    """Simulate every world at every n, print progress, and write the numbers as JSON and the table beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--sizes", type=int, nargs="+", default=[300, 1000, 3000])
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--metrics", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("coverage.json"))
    options = parser.parse_args()
    cells: list[dict[str, Any]] = []
    started = time.monotonic()
    for n in options.sizes:
        for world in options.worlds:
            cells.append(simulate(world, n, options.metrics, options.replicates, options.resamples, options.seed))
            print(f"{time.monotonic() - started:6.0f} s  n = {n}, {world}", file=sys.stderr, flush=True)
            options.output.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
            options.output.with_suffix(".md").write_text(table(cells) + "\n", encoding="utf-8")
    print(table(cells))


if __name__ == "__main__":
    main()
