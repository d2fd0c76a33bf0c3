"""Is it FEU? Familiarity scaling with other scores in its place, which any model has, from files of finished cells."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp

from uq4ct import predictions
from uq4ct.metrics.calibration_error import ece
from uq4ct.posthoc.familiarity import Familiarity
from uq4ct.types import Prediction

Json = Mapping[str, Any]
SCORES: Mapping[str, Callable[[Prediction], np.ndarray | None]] = {
    "feu": lambda prediction: prediction.feu,
    "confidence": lambda prediction: prediction.probabilities.max(axis=1),
    "energy": lambda prediction: logsumexp(prediction.logits[:, 0], axis=1),  # Liu et al. 2020, negated
    "largest logit": lambda prediction: prediction.logits[:, 0].max(axis=1),
}


def scores_of(folder: Path, asked: Json) -> list[dict[str, Any]]:
    """Return NLL and ECE, means over seeds, of each method, score and task that ``asked`` names.

    Raw logits and one sample only: ``methods`` are single-pass ones without a suffix.
    """
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for path in sorted(folder.glob("cells/*/cell.json")):
        method = json.loads(path.read_text(encoding="utf-8"))["method"]
        if method not in asked["methods"]:
            continue
        kept, right = _read(path.parent / "calibration.jsonl")
        for name, score in SCORES.items():
            if (own := score(kept)) is None:
                continue
            fitted = Familiarity.fit(replace(kept, feu=own), right)
            for task in asked["tasks"]:
                asked_of, answer = _read(path.parent / "evaluations" / task / "predictions.jsonl")
                scaled = fitted.apply(replace(asked_of, feu=score(asked_of)))
                found.setdefault((method, name, task), []).append(_measured(scaled, answer))
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
