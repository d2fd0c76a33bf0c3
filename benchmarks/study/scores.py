"""Is it FEU? Familiarity scaling with other scores in its place, which any model has, from files of finished cells.

The scores of ``features.py`` need the models once more: ``python -m benchmarks.study features NAME`` before the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp
from scipy.stats import spearmanr

from benchmarks.study import features
from benchmarks.study.shown import number, seeds, signed
from uq4ct import predictions
from uq4ct.concluding import RESAMPLES
from uq4ct.metrics.calibration_error import ece
from uq4ct.metrics.detection import ood_auroc
from uq4ct.metrics.intervals import bootstrap_weights
from uq4ct.metrics.paired import over_seeds
from uq4ct.posthoc.familiarity import Familiarity
from uq4ct.report.answered import Scored
from uq4ct.types import Prediction

Json = Mapping[str, Any]
SCORES: Mapping[str, Callable[[Prediction], np.ndarray | None]] = {
    "feu": lambda prediction: prediction.feu,
    "confidence": lambda prediction: prediction.confidence,
    "energy": lambda prediction: logsumexp(prediction.logits[:, 0], axis=1),  # Liu et al. 2020, negated
}
REST = "feu, length taken out"
ALIKE = {"length": 0.05, "seen": 0.02}  # questions are alike whose log numbers of tokens, shares differ by no more


def scores_of(finished: Sequence[Scored], asked: Json) -> list[dict[str, Any]]:
    """Return a row for each method, score and task asked for, means over seeds.

    NLL and ECE of familiarity scaling by that score; where the task is one of ``shifted``, which maps it to the one it
    is told from, the AUROC of telling it, that among questions of equal length, and among those with an equal share of
    tokens of the training, too; Spearman's correlation with the length; and how far the NLL is from that of ``ours``, a
    method and its score, on the same seeds and questions.
    Raw logits and one sample only: ``methods`` are single-pass ones without a suffix. Raises ValueError where the
    length is known of some runs and not of all.
    """
    runs = [run for run in finished if run.method in asked["methods"]]
    near = {run.folder: features.read(features.place_of(run.folder)) for run in runs}
    unknown = [run.folder.name for run in runs if not near[run.folder]]
    if 0 < len(unknown) < len(runs):
        raise ValueError(f"features of {', '.join(unknown)} were not read: python -m benchmarks.study features")
    found: dict[tuple[str, str, str], dict[int, _Measured]] = {}
    for run in runs:
        for (name, task), measured in _measure(run, near[run.folder], asked).items():
            found.setdefault((run.method, name, task), {})[run.seed] = measured
    rows = []
    for (method, name, task), by_seed in found.items():
        own = [by_seed[seed] for seed in sorted(by_seed)]
        row = {"method": method, "score": name, "task": task, "seeds": len(own)}
        for key in ("ece", "auroc", "alike", "worded", "length"):
            row[key] = _mean([getattr(each, key) for each in own])
        for key in ("alike", "worded"):
            row[f"{key}_by_seed"] = [getattr(each, key) for each in own] if row[key] is not None else None
        row["nll"] = float(np.mean([each.losses.mean() for each in own]))
        ours = found.get((*asked["ours"], task)) if "ours" in asked else None
        if ours and (method, name) != tuple(asked["ours"]):
            row |= _apart(by_seed, ours)
        rows.append(row)
    return rows


class _Measured(NamedTuple):
    """What one score does on one task: the loss of each answer, (item,), and numbers, NaN where they mean nothing."""

    losses: np.ndarray
    ece: float
    auroc: float
    alike: float
    worded: float
    length: float


def _measure(run: Scored, near: Json, asked: Json) -> dict[tuple[str, str], _Measured]:
    parts = {"calibration": run.folder / "calibration.jsonl"}
    parts |= {task: run.folder / "evaluations" / task / "predictions.jsonl" for task in asked["tasks"]}
    read = {part: _read(path) for part, path in parts.items()}
    scores = {part: _scores(prediction, part, near) for part, (prediction, _) in read.items()}
    if "length" in scores["calibration"] and "feu" in scores["calibration"]:
        rest = _without_length(scores["calibration"])
        scores = {part: {**own, REST: rest(own)} for part, own in scores.items()}
    calibration, right = read["calibration"]
    found = {}
    for name in scores["calibration"]:
        fitted = Familiarity.fit(replace(calibration, feu=scores["calibration"][name]), right)
        for task in asked["tasks"]:
            if name not in scores[task]:
                continue  # features may be read of some tasks alone
            prediction, answer = read[task]
            scaled = fitted.apply(replace(prediction, feu=scores[task][name]))
            home = scores.get(asked.get("shifted", {}).get(task))
            found[name, task] = _Measured(*_answered(scaled, answer), *_told(name, scores[task], home))
    return found


def _answered(scaled: Prediction, answer: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the loss of each answer, (item,), and the ECE."""
    losses = -scaled.log_probabilities[np.arange(len(answer)), answer]
    return losses, ece(scaled.confidence, scaled.predicted == answer)


def _told(
    name: str, own: Mapping[str, np.ndarray], home: Mapping[str, np.ndarray] | None
) -> tuple[float, float, float, float]:
    """Return the AUROC of telling the shift by a score, that at equal length and that with equal words, and Spearman's
    correlation with length."""
    shift = np.nan if home is None else ood_auroc(-home[name], -own[name])
    long = float(spearmanr(own[name], -own["length"])[0]) if "length" in own else np.nan
    alike, among = [np.nan, np.nan], True
    for place, (kind, apart) in enumerate(ALIKE.items()):
        if home is not None and kind in own:
            among = among & (np.abs(home[kind][:, None] - own[kind]) <= apart)
            alike[place] = auroc_among(home[name], own[name], among)
    return shift, *alike, long


def auroc_among(home: np.ndarray, shifted: np.ndarray, pairs: np.ndarray) -> float:
    """Return the chance that a shifted question's score is lower than a home one's, ties counting 1/2, NaN without any.

    Of the ``pairs`` alone, a mask (home, shifted).

    >>> auroc_among(np.array([5.0, 9.0]), np.array([4.0, 6.0]), np.array([[True, True], [False, False]]))
    0.5
    """
    wins = (home[:, None] > shifted) + 0.5 * (home[:, None] == shifted)
    return float(wins[pairs].mean()) if pairs.any() else float("nan")


def _apart(theirs: Mapping[int, _Measured], ours: Mapping[int, _Measured]) -> dict[str, Any]:
    """Return by how much their NLL is above ours, paired over seeds and questions, with its 95 % interval."""
    if theirs.keys() != ours.keys():
        raise ValueError(f"scores are compared over seeds {sorted(theirs)} and {sorted(ours)}")
    apart = np.stack([theirs[seed].losses - ours[seed].losses for seed in sorted(ours)])  # (seed, item)
    items = apart.shape[1]
    found = over_seeds(apart.mean(axis=1), _drawn(items) @ apart.T / items)
    return {"difference": found.mean, "interval": list(found.interval)}


@cache
def _drawn(items: int) -> np.ndarray:
    """Return how often each question is drawn, (resample, item), the same for all pairs of scores."""
    return np.concatenate(list(bootstrap_weights(items, RESAMPLES, 0)))


def _mean(values: Sequence[float]) -> float | None:
    return None if np.isnan(values).any() else float(np.mean(values))


def _scores(prediction: Prediction, part: str, near: Json) -> dict[str, np.ndarray]:
    """Return the scores of each question of a part, (item,), large where it looks like those of the training."""
    found = {name: found for name, score in SCORES.items() if (found := score(prediction)) is not None}
    kinds = (*features.TEXTUAL, *features.DISTANCES)
    known = {kind: near[kind][part] for kind in kinds if part in near.get(kind, {})}
    return found | {kind: np.array([values[name] for name in prediction.ids]) for kind, values in known.items()}


def _without_length(calibration: Mapping[str, np.ndarray]) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Return what takes out of FEU the part a + b / n that the number n of tokens explains on the calibration split.

    Were FEU the mean of some tokens that every text has, all alike, and of others, this would be exact.
    """
    line = np.polyfit(np.exp(calibration["length"]), calibration["feu"], 1)
    return lambda scores: scores["feu"] - np.polyval(line, np.exp(scores["length"]))


def _read(path: Path) -> tuple[Prediction, np.ndarray]:
    rows = predictions.read_own(path)
    return predictions.to_prediction(rows), np.array([list(row["probabilities"]).index(row["label"]) for row in rows])


def table(found: Json, args: Sequence[str]) -> Iterator[str]:
    """Return NLL and ECE of the tasks named, one line for each method and score, and of a shift how well it is told.

    *with length*: Spearman's correlation of the score with a question's length, on the first task. Behind a colon: how
    far the NLL is above that of ours. In brackets behind an AUROC: the least and the largest of a seed. *and words*: at
    equal length and an equal share of tokens of the training.
    """
    rows = {(row["method"], row["score"], row["task"]): row for row in found["scores"]}
    shifted = {row["task"] for row in found["scores"] if row.get("auroc") is not None}
    long = any(row.get("length") is not None for row in found["scores"])
    told = " | AUROC of the shift" + (" | at equal length | and words" if long else "")
    heads = [f"`{task}`: NLL | ECE %" + (told if task in shifted else "") for task in args]
    yield f"| method | score | {'with length | ' if long else ''}{' | '.join(heads)} |"
    yield "|---|---|" + "---|" * sum(head.count("|") + 1 for head in heads) + "---|" * long
    known = dict.fromkeys((row["method"], row["score"]) for row in found["scores"] if row["task"] in args)
    for method, score in known:
        first = next(rows[method, score, task] for task in args if (method, score, task) in rows)
        shown = [number(first["length"], "+.2f")] if long else []
        for task in args:
            cell = rows.get((method, score, task), {})
            shown.append(number(cell.get("nll")) + (f": {signed(cell, 1, 3)}" if "difference" in cell else ""))
            shown.append(number(100 * cell["ece"] if cell else None, ".1f"))
            if task in shifted:
                shown.append(number(cell.get("auroc")))
                shown += [seeds(cell.get(f"{key}_by_seed")) for key in ("alike", "worded")] if long else []
        yield f"| `{method}` | {score} | {' | '.join(shown)} |"
