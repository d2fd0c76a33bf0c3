"""Is it FEU? Familiarity scaling with other scores in its place, which any model has, from files of finished cells.

The scores of ``features.py`` need the models once more: ``python -m benchmarks.study features NAME`` before the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp
from scipy.stats import spearmanr

from benchmarks.study import features
from uq4ct import predictions
from uq4ct.metrics.calibration_error import ece
from uq4ct.metrics.detection import ood_auroc
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
    """Return NLL, ECE, AUROC of telling the shift and Spearman's correlation with the length of a question, means over
    seeds, of each method, score and task asked for.

    Raw logits and one sample only: ``methods`` are single-pass ones without a suffix. ``shifted`` of the ``tasks`` are
    told from the first one.
    """
    found: dict[tuple[str, str, str], list[tuple[float, ...]]] = {}
    for run in finished:
        if run.method not in asked["methods"]:
            continue
        near = features.read(features.place_of(run.folder))
        parts = {"calibration": run.folder / "calibration.jsonl"}
        parts |= {task: run.folder / "evaluations" / task / "predictions.jsonl" for task in asked["tasks"]}
        read = {part: _read(path) for part, path in parts.items()}
        scores = {part: _scores(prediction, part, near) for part, (prediction, _) in read.items()}
        if "length" in near and "feu" in scores["calibration"]:
            rest = _without_length(scores["calibration"])
            scores = {part: {**own, "feu, length taken out": rest(own)} for part, own in scores.items()}
        home = asked["tasks"][0]
        for name in scores["calibration"]:
            own = {part: replace(prediction, feu=scores[part][name]) for part, (prediction, _) in read.items()}
            fitted = Familiarity.fit(own["calibration"], read["calibration"][1])
            for task in asked["tasks"]:
                told = ood_auroc(-own[home].feu, -own[task].feu) if task in asked.get("shifted", ()) else np.nan
                long = spearmanr(own[task].feu, -scores[task]["length"])[0] if "length" in near else np.nan
                measured = (*_measured(fitted.apply(own[task]), read[task][1]), told, float(long))
                found.setdefault((run.method, name, task), []).append(measured)
    return [
        {"method": method, "score": name, "task": task, "seeds": len(values), "nll": nll, "ece": gap,
         "auroc": None if np.isnan(told) else told, "length": None if np.isnan(long) else long}
        for (method, name, task), values in found.items()
        for nll, gap, told, long in [np.mean(values, axis=0).tolist()]
    ]  # fmt: skip


def _scores(prediction: Prediction, part: str, near: Json) -> dict[str, np.ndarray]:
    """Return the scores of each question of a part, (item,), large where it looks like those of the training."""
    found = {name: found for name, score in SCORES.items() if (found := score(prediction)) is not None}
    return found | {kind: np.array([parts[part][name] for name in prediction.ids]) for kind, parts in near.items()}


def _without_length(calibration: Mapping[str, np.ndarray]) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Return what takes out of FEU the part a + b / n that the number n of tokens explains on the calibration split.

    Were FEU the mean of some tokens that every text has, all alike, and of others, this would be exact.
    """
    line = np.polyfit(np.exp(calibration["length"]), calibration["feu"], 1)
    return lambda scores: scores["feu"] - np.polyval(line, np.exp(scores["length"]))


def _read(path: Path) -> tuple[Prediction, np.ndarray]:
    rows = predictions.read_own(path)
    return predictions.to_prediction(rows), np.array([list(row["probabilities"]).index(row["label"]) for row in rows])


def _measured(prediction: Prediction, answer: np.ndarray) -> tuple[float, float]:
    rows = np.arange(len(answer))
    confidence = prediction.probabilities.max(axis=1)
    right = prediction.probabilities.argmax(axis=1) == answer
    return float(-prediction.log_probabilities[rows, answer].mean()), ece(confidence, right)


def table(found: Json, args: Sequence[str]) -> Iterator[str]:
    """Return NLL and ECE of the tasks named, and AUROC where they are a shift, one line for each method and score.

    *with length*: Spearman's correlation of the score with a question's length, on the first task.
    """
    rows = {(row["method"], row["score"], row["task"]): row for row in found["scores"]}
    shifted = {row["task"] for row in found["scores"] if row.get("auroc") is not None}
    long = any(row.get("length") is not None for row in found["scores"])
    heads = [f"`{task}`: NLL | ECE %" + (" | AUROC of the shift" if task in shifted else "") for task in args]
    yield f"| method | score | {'with length | ' if long else ''}{' | '.join(heads)} |"
    yield "|---|---|" + "---|" * long + "".join("---|" * (3 if task in shifted else 2) for task in args)
    for method, score in dict.fromkeys((row["method"], row["score"]) for row in found["scores"]):
        own = rows[method, score, args[0]]
        shown = [f"{own['length']:+.2f}" if own["length"] is not None else "-"] if long else []
        for task in args:
            cell = rows[method, score, task]
            shown += [f"{cell['nll']:.3f}", f"{100 * cell['ece']:.1f}"]
            shown += [f"{cell['auroc']:.3f}"] if task in shifted else []
        yield f"| `{method}` | {score} | {' | '.join(shown)} |"
