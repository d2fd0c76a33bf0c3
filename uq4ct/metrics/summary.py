"""All metrics of one set of answers, with intervals: the object that ``uq4ct evaluate --json`` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from uq4ct.metrics import calibration_error, proper_scores, selective, smooth_error, uncertainty
from uq4ct.metrics.answers import Answers, Metric, Settings, Undefined, feu_of
from uq4ct.metrics.brier_parts import corp, murphy
from uq4ct.metrics.intervals import resampled_groups
from uq4ct.metrics.measuring import ANSWERED, Measured, kept_of, measure
from uq4ct.metrics.null_band import bin_table, consistency_resample, ece_null, verdict
from uq4ct.metrics.usefulness import score_tests
from uq4ct.types import position_names

T = TypeVar("T")

METRICS: tuple[Metric, ...] = (
    *proper_scores.METRICS,
    *calibration_error.METRICS,
    *smooth_error.METRICS,
    *selective.METRICS,
    *uncertainty.METRICS,
)


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

    Where rows have groups, enough of them, intervals resample these; ``settings`` says which. Raises UserError when no
    row has a label; rows without one are left out and counted as ``unlabelled``.

    >>> result = summarize(Answers.of([[0.75, 0.25], [0.75, 0.25]], answer=[0, 0]), task="demo", split="test")
    >>> result["accuracy"], result["ece"], result["auroc"], result["verdict"]
    (1.0, 0.25, None, 'not distinguishable from calibrated')
    >>> result["reasons"]["auroc"]
    'needs right and wrong answers, all 2 are right'
    """
    if not isinstance(answers, Answers):
        answers = Answers.of_rows(answers)
    settings = Settings(bins=bins, resamples=resamples, seed=seed, level=level)
    measured = measure(answers, settings, (*METRICS, ANSWERED))
    values = {metric.name: measured.values[metric.name] for metric in METRICS}
    intervals = {name: ends for name, ends in measured.intervals.items() if name in values}
    reasons = {name: reason for name, reason in measured.reasons.items() if name in values}
    pair = answers.confidence, answers.correct
    band = consistency_resample(answers.confidence, bins, resamples, seed)
    null = ece_null(*pair, bins, null=band)
    feu_tests, epistemic_tests = _usefulness(answers, settings, intervals, reasons)
    return {
        **({} if task is None else {"task": task}),
        **({} if split is None else {"split": split}),
        "n": answers.n,
        "unlabelled": answers.unlabelled,
        **values,
        "verdict": verdict(
            values["ece"] or 0.0,
            null["high"],
            values["signed_gap"] or 0.0,
            *(intervals[name] for name in ("signed_gap", "overconfidence", "underconfidence")),
        ),
        "chance": _where_known(lambda: float((1.0 / answers.mask.sum(axis=1)).mean())),
        "base_rate": {"aupr_right": values["accuracy"], "aupr_wrong": 1.0 - (values["accuracy"] or 0.0)},
        "accuracy_at_coverage": selective.coverage_table(answers),
        "answered": _answered(answers, measured),
        "intervals": intervals,
        "standard_errors": {name: measured.standard_errors[name] for name in intervals},
        "ece_null": null,
        "bins": bin_table(*pair, bins, null=band),
        "brier_parts": {
            "score": values["brier_top"],
            "murphy": murphy(*pair, bins)._asdict(),
            "corp": corp(*pair)._asdict(),
        },
        "uncertainty": uncertainty.mean_uncertainty(answers),
        "feu_tests": feu_tests,
        "epistemic_tests": epistemic_tests,
        "predicted_letters": _where_known(lambda: _letters(answers.predicted, answers.mask)),
        "gold_letters": _where_known(lambda: _letters(answers.answer, answers.mask)),
        "strata": _strata(answers),
        "settings": asdict(settings) | {"binning": "equal width, right-closed", **_resampling(answers)},
        "reasons": reasons,
    }


def _resampling(answers: Answers) -> dict[str, Any]:
    """Say what intervals resample: items, or groups where enough of them have several items."""
    number = None if answers.groups is None else len(np.unique(answers.groups))
    clustered = resampled_groups(answers.groups) is not None
    return {"resampling": "groups" if clustered else "items", "groups": number}


def _usefulness(
    answers: Answers, settings: Settings, intervals: Mapping[str, list[float] | None], reasons: dict[str, str]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the tests of FEU and of the passes' disagreement; null with a reason where a method has none."""
    scores = {
        "feu": lambda: feu_of(answers),
        "epistemic": lambda: -uncertainty.entropies_of(answers).epistemic,
    }
    found: list[dict[str, Any] | None] = []
    for name, score in scores.items():
        try:
            found.append(score_tests(answers, score(), settings, intervals.get(f"{name}_auroc")))
        except Undefined as reason:
            found.append(None)
            reasons[f"{name}_tests"] = str(reason)
    return found[0], found[1]


def _answered(answers: Answers, measured: Measured) -> dict[str, Any]:
    """Return coverage and accuracy of the answers that the abstain rule lets through; without a rule, of all."""
    kept = kept_of(answers)
    name = ANSWERED.name
    return {
        "n": int(kept.sum()),
        "coverage": float(kept.mean()),
        "accuracy": measured.values[name],
        "interval": measured.intervals.get(name),
    }


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
    """Count choices by the letter that the prompt shows for their position; by 0, 1, ... where there are above 26."""
    counts = np.bincount(index, minlength=mask.shape[1])
    return dict(zip(position_names(len(counts)), counts.tolist(), strict=True))


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
