"""Values of metrics with their intervals and standard errors, all from one set of resamples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from uq4ct.metrics.answers import Answers, Metric, Settings, Undefined
from uq4ct.metrics.intervals import bootstrap_weights, corrected, percentile, pivotal, resampled_groups, wilson
from uq4ct.metrics.paired import standard_error


class Measured(NamedTuple):
    """What was measured, by name of the metric; a metric without a value is null, with its reason and no interval."""

    values: dict[str, float | None]
    reasons: dict[str, str]
    intervals: dict[str, list[float] | None]
    standard_errors: dict[str, float | None]  # null where fewer than two resamples have a value


def measure(answers: Answers, settings: Settings, metrics: Sequence[Metric]) -> Measured:
    """Measure these metrics; resamples draw groups where there are enough of them, else single answers.

    >>> from uq4ct.metrics import METRICS
    >>> measured = measure(Answers.of([[0.75, 0.25]] * 4, answer=[0, 0, 1, 1]), Settings(resamples=200), METRICS[:1])
    >>> measured.values, [round(end, 2) for end in measured.intervals["accuracy"]]
    ({'accuracy': 0.5}, [0.15, 0.85])
    """
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for metric in metrics:
        try:
            values[metric.name] = metric.value(answers, settings)
        except Undefined as reason:
            values[metric.name], reasons[metric.name] = None, str(reason)
    defined = [metric for metric in metrics if metric.name not in reasons]
    draws = _draws(answers, settings, defined)
    intervals = {m.name: _interval(m, values[m.name] or 0.0, draws[m.name], answers, settings) for m in defined}
    return Measured(values, reasons, intervals, {metric.name: _spread(draws[metric.name]) for metric in defined})


def _draws(answers: Answers, settings: Settings, metrics: Sequence[Metric]) -> dict[str, np.ndarray]:
    blocks: dict[str, list[np.ndarray]] = {metric.name: [np.empty(0)] for metric in metrics}
    order = np.argsort(-answers.confidence, kind="stable")  # ranked once: most metrics then need no sorting
    ranked = answers.take(order)
    groups = resampled_groups(answers.groups)
    for block in bootstrap_weights(answers.n, settings.resamples, settings.seed, groups):
        weights = np.take(block, order, axis=1)
        for metric in metrics:
            if metric.draws is not None:
                blocks[metric.name].append(metric.draws(ranked, settings, weights))
    return {name: np.concatenate(parts) for name, parts in blocks.items()}


def _interval(
    metric: Metric, value: float, draws: np.ndarray, answers: Answers, settings: Settings
) -> list[float] | None:
    level = settings.level
    groups = resampled_groups(answers.groups)
    if metric.interval == "none":
        return None
    if metric.interval == "wilson" and (groups is None or value in (0.0, 1.0)):
        kept = kept_of(answers) if metric is ANSWERED else np.ones(answers.n, bool)
        # all right or all wrong says nothing about the spread between groups: one item a group is the cautious count
        number = int(kept.sum()) if groups is None else len(np.unique(groups[kept]))
        return list(wilson(value * number, number, level))
    if metric.interval == "pivotal":
        ends = pivotal(value, draws, level)
        if metric.steady is not None and answers.n > 1:  # one answer has no standard error
            error = standard_error(metric.steady(answers, settings), None if groups is None else groups.tolist())
            ends = corrected(value, draws, error, level)
        return [ends[0], min(ends[1], 1.0)] if ends else None
    ends = percentile(draws, level)
    return list(ends) if ends else None


def _spread(draws: np.ndarray) -> float | None:
    defined = draws[np.isfinite(draws)]
    return float(defined.std(ddof=1)) if len(defined) > 1 else None


def kept_of(answers: Answers) -> np.ndarray:
    """Return which answers an abstain rule lets through; all of them without a rule."""
    return np.ones(answers.n, bool) if answers.kept is None else answers.kept


def _answered_accuracy(answers: Answers, weights: np.ndarray) -> np.ndarray:
    kept = kept_of(answers)
    if not kept.any():
        raise Undefined("the rule lets no answer through")
    with np.errstate(invalid="ignore"):  # a resample without any kept answer: NaN, left out of the interval
        return weights @ (kept * answers.correct) / (weights @ kept)


ANSWERED = Metric(
    "answered",
    "accuracy of the answers that an abstain rule lets through",
    "higher",
    lambda a, _: float(_answered_accuracy(a, np.ones((1, a.n)))[0]),
    lambda a, _, weights: _answered_accuracy(a, weights),
    interval="wilson",
)
