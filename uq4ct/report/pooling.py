"""Several seeds of one method as one result, for loose runs; a comparison brings its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from uq4ct.metrics import Answers
from uq4ct.metrics.answers import Metric, Settings, Undefined
from uq4ct.metrics.intervals import bootstrap_weights
from uq4ct.metrics.paired import over_seeds
from uq4ct.metrics.summary import METRICS
from uq4ct.report.comparison import AT_ONCE, interval_of
from uq4ct.report.material import Json, Member


def result_of(members: Sequence[Member]) -> dict[str, Any]:
    """Return means over seeds that answered the same questions: all metrics, ``sd``, ``intervals`` and ``ece_null``.

    Intervals are a comparison's: two levels, seeds and then questions. One seed's own result is returned as it is, with
    the intervals over questions that it has.
    """
    found = [member.metrics for member in members]
    known = {key: found[0][key] for key in ("task", "split") if key in found[0]}
    if len(members) == 1:
        return {**found[0], "sd": {}, "item_sd": {}}
    settings = _settings(found[0])
    values: dict[str, list[Any]] = {metric.name: [each.get(metric.name) for each in found] for metric in METRICS}
    defined = [metric for metric in METRICS if None not in values[metric.name]]
    draws = _draws(defined, [member.answers for member in members], settings)
    means = {
        metric.name: over_seeds(
            np.array(values[metric.name]),
            draws[metric.name],
            level=settings.level,
            pivotal=metric.interval == "pivotal",
            seed=settings.seed,
        )
        for metric in defined
        if np.isfinite(draws[metric.name].mean(axis=1)).any()
    }
    ends = ("mean", "low", "high", "p95")
    return {
        **known,
        **{metric.name: float(np.mean(values[metric.name])) if metric in defined else None for metric in METRICS},
        "sd": {name: mean.seed_sd for name, mean in means.items()},
        "item_sd": {name: mean.item_sd for name, mean in means.items()},
        "intervals": {metric.name: interval_of(metric, means.get(metric.name)) for metric in defined},
        "ece_null": {end: float(np.mean([each["ece_null"][end] for each in found])) for end in ends},
        "reasons": {key: reason for each in found for key, reason in (each.get("reasons") or {}).items()},
    }


def _settings(metrics: Json) -> Settings:
    names = ("bins", "resamples", "seed", "level")
    return Settings(**{key: value for key, value in (metrics.get("settings") or {}).items() if key in names})


def _draws(metrics: Sequence[Metric], answers: Sequence[Answers], settings: Settings) -> dict[str, np.ndarray]:
    """Return each metric on the same drawn questions for every seed, (resample, seed)."""
    drawn: dict[str, list[np.ndarray]] = {metric.name: [] for metric in metrics}
    for block in bootstrap_weights(answers[0].n, settings.resamples, settings.seed):
        for begin in range(0, len(block), AT_ONCE):
            weights = block[begin : begin + AT_ONCE]
            for metric in metrics:
                by_seed = [_drawn(metric, each, settings, weights) for each in answers]
                drawn[metric.name].append(np.stack(by_seed, axis=1))
    return {name: np.concatenate(parts) for name, parts in drawn.items()}


def _drawn(metric: Metric, answers: Answers, settings: Settings, weights: np.ndarray) -> np.ndarray:
    if metric.draws is None:  # accuracy, whose interval for one run has a formula
        return weights @ answers.correct / answers.n
    try:
        return metric.draws(answers, settings, weights)
    except Undefined:
        return np.full(len(weights), np.nan)
