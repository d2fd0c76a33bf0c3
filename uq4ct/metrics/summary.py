"""All metrics of one set of answers, with intervals: the object that ``uq4ct evaluate --json`` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from uq4ct.metrics import calibration_error, proper_scores, selective
from uq4ct.metrics.answers import Answers, Metric, Settings, Undefined
from uq4ct.metrics.intervals import bootstrap_weights, percentile, pivotal, wilson

T = TypeVar("T")

METRICS: tuple[Metric, ...] = (*proper_scores.METRICS, *calibration_error.METRICS, *selective.METRICS)


def summarize(
    answers: Answers | Sequence[Mapping[str, Any]],
    *,
    task: str | None = None,
    split: str | None = None,
    bins: int = 15,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Return every metric of these answers, or prediction rows, as a JSON value: fractions; null with a reason.

    Raises UserError when no row has a label; rows without one are left out and counted as ``unlabelled``.

    >>> result = summarize(Answers.of([[0.75, 0.25], [0.75, 0.25]], answer=[0, 0]), task="demo", split="test")
    >>> result["accuracy"], result["ece"], result["auroc"]
    (1.0, 0.25, None)
    >>> result["reasons"]["auroc"]
    'needs right and wrong answers, all 2 are right'
    """
    if not isinstance(answers, Answers):
        answers = Answers.of_rows(answers)
    settings = Settings(bins=bins, resamples=resamples, seed=seed, level=level)
    values, reasons = _values(answers, settings)
    defined = [metric for metric in METRICS if values[metric.name] is not None]
    return {
        **({} if task is None else {"task": task}),
        **({} if split is None else {"split": split}),
        "n": answers.n,
        "unlabelled": answers.unlabelled,
        **values,
        "chance": _where_known(lambda: float((1.0 / answers.mask.sum(axis=1)).mean())),
        "accuracy_at_coverage": selective.coverage_table(answers),
        "answered": _answered(answers, level),
        "intervals": _intervals(answers, settings, defined, values),
        "ece_null": calibration_error.ece_null(answers.confidence, answers.correct, bins, resamples, seed),
        "bins": calibration_error.bin_table(answers.confidence, answers.correct, bins, resamples, seed),
        "predicted_letters": _where_known(lambda: _letters(answers.predicted, answers.mask)),
        "gold_letters": _where_known(lambda: _letters(answers.answer, answers.mask)),
        "strata": _strata(answers),
        "settings": asdict(settings) | {"binning": "equal width, right-closed"},
        "reasons": reasons,
    }


def _values(answers: Answers, settings: Settings) -> tuple[dict[str, float | None], dict[str, str]]:
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for metric in METRICS:
        try:
            values[metric.name] = metric.value(answers, settings)
        except Undefined as reason:
            values[metric.name], reasons[metric.name] = None, str(reason)
    return values, reasons


def _intervals(
    answers: Answers, settings: Settings, metrics: list[Metric], values: dict[str, float | None]
) -> dict[str, list[float] | None]:
    """Return [low, high] of each defined metric from one shared set of bootstrap resamples."""
    resampled = [metric for metric in metrics if metric.draws is not None]
    blocks = [
        [metric.draws(answers, settings, weights) for metric in resampled if metric.draws is not None]
        for weights in bootstrap_weights(answers.n, settings.resamples, settings.seed)
    ]
    names = [metric.name for metric in resampled]
    draws = {name: np.concatenate(parts) for name, parts in zip(names, zip(*blocks, strict=True), strict=True)}
    ends: dict[str, list[float] | None] = {}
    for metric in metrics:
        if metric.interval == "wilson":
            pair: tuple[float, float] | None = wilson(answers.correct.sum(), answers.n, settings.level)
        elif metric.interval == "pivotal":
            pair = pivotal(values[metric.name] or 0.0, draws[metric.name], settings.level)
        else:
            pair = percentile(draws[metric.name], settings.level)
        ends[metric.name] = list(pair) if pair else None
    return ends


def _answered(answers: Answers, level: float) -> dict[str, Any]:
    """Return coverage and accuracy of the answers that the abstain rule lets through; without a rule, of all."""
    kept = np.ones(answers.n, bool) if answers.kept is None else answers.kept
    right = float(answers.correct[kept].sum())
    accuracy = right / kept.sum() if kept.any() else None
    interval = list(wilson(right, int(kept.sum()), level)) if kept.any() else None
    return {"n": int(kept.sum()), "coverage": float(kept.mean()), "accuracy": accuracy, "interval": interval}


def list_metrics() -> list[dict[str, str]]:
    """Return name, direction and one line for every metric.

    >>> list_metrics()[0]["name"]
    'accuracy'
    """
    return [{"name": metric.name, "better": metric.better, "summary": metric.summary} for metric in METRICS]


def _where_known(value: Callable[[], T]) -> T | None:
    """Return a value, None where these answers do not have it."""
    try:
        return value()
    except Undefined:
        return None


def _letters(index: np.ndarray, mask: np.ndarray) -> dict[str, int]:
    """Count choices by the letter that the prompt shows for their position."""
    counts = np.bincount(index, minlength=mask.shape[1])
    return {chr(ord("A") + k): int(count) for k, count in enumerate(counts)}


def _strata(answers: Answers) -> dict[str, dict[str, float | int | None]] | None:
    """Return n, accuracy, confidence and FEU (where known, also the true probability of the choice) by stratum."""
    if answers.strata is None:
        return None
    names = np.array([name or "" for name in answers.strata])
    columns: dict[str, np.ndarray | None] = {
        "accuracy": answers.correct,
        "confidence": answers.confidence,
        "feu": answers.feu,
        "truth": None,
        "truth_gap": None,
    }
    if answers.true_probabilities is not None:
        columns["truth"] = answers.true_probabilities[np.arange(answers.n), answers.predicted]
        columns["truth_gap"] = proper_scores.truth_gap(answers)
    return {
        name or "(none)": {"n": count}
        | {key: None if column is None else float(column[names == name].mean()) for key, column in columns.items()}
        for name, count in sorted(Counter(names.tolist()).items())
    }
