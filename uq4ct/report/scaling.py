"""Raw beside temperature-scaled: from the cells of a comparison, or fitted on the calibration split of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from uq4ct import predictions
from uq4ct.errors import UserError
from uq4ct.metrics import Answers, Settings
from uq4ct.metrics.calibration_error import ece
from uq4ct.metrics.proper_scores import METRICS as SCORES
from uq4ct.posthoc.temperature import Temperature
from uq4ct.report.figures.comparing import Scaled
from uq4ct.report.material import Material, RunFacts, Series

SUFFIX = "+temperature"


def scaled(material: Material) -> dict[str, list[Scaled]]:
    """Return each task's methods before and after temperature scaling, where a temperature is known or can be fitted.

    The temperature is fitted on the run's calibration split and kept on shifted tasks.
    """
    fitted: dict[str, dict[object, Temperature]] = {}
    entries: dict[str, list[Scaled]] = {}
    for task in material.tasks:
        for series in material.of_task(task):
            if "+" in series.label.rpartition("]")[2]:  # a suffix; within the options it is part of a number, 1e+3
                continue
            twin = material.find(series.label + SUFFIX, task)
            entry = _from_twin(material, series, twin) if twin else None
            if entry is None:
                runs = [run for run in material.runs if run.label == series.label]
                entry = _fitted_here(series, fitted.setdefault(series.label, _fit(runs)))
            if entry is not None:
                entries.setdefault(task, []).append(entry)
    return entries


def _from_twin(material: Material, series: Series, twin: Series) -> Scaled | None:
    runs = [run for run in material.runs if run.label == twin.label and run.posthoc.get("temperature")]
    if not runs or not all(one.value(key) is not None for one in (series, twin) for key in ("nll", "ece")):
        return None
    values = tuple(float(run.posthoc["temperature"]) for run in runs)
    raw, after = ({key: one.result[key] for key in ("nll", "ece")} for one in (series, twin))
    return Scaled(series.label, raw, after, values, int(runs[0].posthoc.get("items") or 0), fitted_here=False)


def _fit(runs: Sequence[RunFacts]) -> dict[object, Temperature]:
    """Fit a temperature for each seed that keeps its answers on the calibration split."""
    found: dict[object, Temperature] = {}
    for run in runs:
        if run.calibration and not run.posthoc:
            rows = predictions.read(Path(run.calibration))
            labels = [list(row["probabilities"]) for row in rows]
            gold = [-1 if r["label"] is None else k.index(r["label"]) for r, k in zip(rows, labels, strict=True)]
            try:
                found[run.seed] = Temperature.fit(predictions.to_prediction(rows), np.array(gold))
            except UserError:  # no labelled question, or an answer of probability 0: the method has no temperature
                continue
    return found


def _fitted_here(series: Series, fitted: dict[object, Temperature]) -> Scaled | None:
    if series.value("nll") is None or not all(seed in fitted for seed in series.seeds):
        return None
    pairs = [(m, at_temperature(m.answers, fitted[m.seed].temperature)) for m in series.members]
    bins = int((series.members[0].metrics.get("settings") or {}).get("bins", 15))
    (nll,) = (metric for metric in SCORES if metric.name == "nll")
    after = {
        "nll": float(np.mean([nll.value(answers, Settings()) for _, answers in pairs])),
        "ece": float(np.mean([ece(answers.confidence, answers.correct, bins) for _, answers in pairs])),
    }
    raw = {key: float(series.result[key]) for key in after}
    values = tuple(fitted[seed].temperature for seed in series.seeds)
    return Scaled(series.label, raw, after, values, fitted[series.seeds[0]].items, fitted_here=True)


def at_temperature(answers: Answers, temperature: float) -> Answers:
    """Return answers whose probabilities are p^(1/T), renormalised.

    >>> a = Answers.of([[0.8, 0.2]], answer=[0])
    >>> at_temperature(a, 2.0).probabilities.round(6).tolist()
    [[0.666667, 0.333333]]
    """
    scaled = answers.log_probs / temperature
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return replace(answers, probabilities=np.exp(log_probs), log_probs=log_probs)
