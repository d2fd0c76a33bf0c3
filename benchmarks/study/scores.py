"""Is it FEU? Familiarity scaling with other scores in its place, which any model has, from files of finished cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp

from uq4ct import predictions
from uq4ct.metrics.calibration_error import ece
from uq4ct.posthoc.familiarity import Familiarity
from uq4ct.report.answered import Scored
from uq4ct.types import Prediction

Json = Mapping[str, Any]
SCORES: Mapping[str, Callable[[Prediction], np.ndarray | None]] = {
    "feu": lambda prediction: prediction.feu,
    "confidence": lambda prediction: prediction.probabilities.max(axis=1),
    "energy": lambda prediction: logsumexp(prediction.logits[:, 0], axis=1),  # Liu et al. 2020, negated
    "largest logit": lambda prediction: prediction.logits[:, 0].max(axis=1),
}


def scores_of(finished: Sequence[Scored], asked: Json) -> list[dict[str, Any]]:
    """Return NLL and ECE, means over seeds, of each method, score and task that ``asked`` names.

    Raw logits and one sample only: ``methods`` are single-pass ones without a suffix.
    """
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for run in finished:
        if run.method not in asked["methods"]:
            continue
        kept, right = _read(run.folder / "calibration.jsonl")
        known = {name: score for name, score in SCORES.items() if score(kept) is not None}
        fitted = {name: Familiarity.fit(replace(kept, feu=score(kept)), right) for name, score in known.items()}
        for task in asked["tasks"]:
            told, answer = _read(run.folder / "evaluations" / task / "predictions.jsonl")
            for name, score in known.items():
                scaled = fitted[name].apply(replace(told, feu=score(told)))
                found.setdefault((run.method, name, task), []).append(_measured(scaled, answer))
    return [
        {"method": method, "score": name, "task": task, "seeds": len(values), "nll": nll, "ece": gap}
        for (method, name, task), values in found.items()
        for nll, gap in [np.mean(values, axis=0).tolist()]
    ]


def _read(path: Path) -> tuple[Prediction, np.ndarray]:
    rows = predictions.read_own(path)
    return predictions.to_prediction(rows), np.array([list(row["probabilities"]).index(row["label"]) for row in rows])


def _measured(prediction: Prediction, answer: np.ndarray) -> tuple[float, float]:
    rows = np.arange(len(answer))
    confidence = prediction.probabilities.max(axis=1)
    right = prediction.probabilities.argmax(axis=1) == answer
    return float(-prediction.log_probabilities[rows, answer].mean()), ece(confidence, right)


def table(found: Json, args: Sequence[str]) -> Iterator[str]:
    """Return NLL and ECE of the tasks named, one line for each method and score."""
    rows = {(row["method"], row["score"], row["task"]): row for row in found["scores"]}
    yield f"| method | score | {' | '.join(f'`{task}`: NLL | ECE %' for task in args)} |"
    yield "|---|---|" + "---|---|" * len(args)
    for method, score in dict.fromkeys((row["method"], row["score"]) for row in found["scores"]):
        cells = [rows[method, score, task] for task in args]
        shown = " | ".join(f"{cell['nll']:.3f} | {100 * cell['ece']:.1f}" for cell in cells)
        yield f"| `{method}` | {score} | {shown} |"
