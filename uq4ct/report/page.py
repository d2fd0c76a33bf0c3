"""The html report: what each section shows, as plain values that the template prints and escapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from uq4ct.metrics.selective import risk_coverage
from uq4ct.report import figures
from uq4ct.report.sources import Evaluation, Material, RunFacts
from uq4ct.report.tables import COLUMNS, Column, decimals, percent

Json = Mapping[str, Any]

CURVES = {
    "ce": "answer loss (cross entropy)",
    "accuracy": "accuracy on the training questions",
    "feu": "FEU (a confidence: large means certain)",
    "calibration": "calibration loss (Eq. 10)",
    "balance": "load balance (1 is even)",
    "expert_load_entropy": "evenness of the expert load",
}
MISTAKES = 3
# calibration right after accuracy: on a phone the first columns are what is seen
VERDICT = tuple(sorted(COLUMNS, key=lambda column: {"accuracy": 0, "ece": 1}.get(column.key, 2)))


def render(material: Material, title: str | None = None) -> str:
    """Return the whole page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    series = {label: number % len(figures.SERIES) for number, label in enumerate(material.labels)}
    tasks = [_task(task, material.of_task(task), series) for task in material.tasks]
    runs = [_run(run, series.get(run.label, 0)) for run in material.runs]
    return environment.get_template("page.html").render(
        title=title or f"Calibration report: {_listed(material.labels)}",
        style=Markup((Path(__file__).parent / "page.css").read_text(encoding="utf-8")),
        version=metadata.version("uq4ct"),
        settings=_settings(material.evaluations[0].metrics),
        tasks=tasks,
        runs=runs,
        has={
            key: any(task[key] for task in tasks) for key in ("feu", "truth", "strata", "answered", "mistakes", "data")
        }
        | {key: any(run[key] for run in runs) for key in ("curves", "load")},
    )


def _task(task: str, evaluations: Sequence[Evaluation], series: Mapping[str, int]) -> dict[str, Any]:
    first = evaluations[0].metrics
    return {
        "name": task,
        "n": _listed(sorted({_count(evaluation.metrics["n"]) for evaluation in evaluations})),
        "unlabelled": first.get("unlabelled") or 0,
        "split": first.get("split"),
        "chance": percent(first["chance"]) if first.get("chance") else None,
        "verdict": _verdict(evaluations, series),
        "reliability": [
            {
                "label": evaluation.label,
                "figure": figures.reliability(
                    evaluation.metrics["bins"], series[evaluation.label], f"Reliability of {evaluation.label} on {task}"
                ),
                "caption": f"ECE {percent(evaluation.metrics['ece'])}, {_verdict_words(evaluation.metrics)}",
                "bins": [_bin(row) for row in evaluation.metrics["bins"] if row["n"]],
            }
            for evaluation in evaluations
        ],
        "risk": _risk(task, evaluations, series),
        "spread": [_spread(task, evaluation) for evaluation in evaluations],
        "feu": [_feu(task, evaluation) for evaluation in evaluations if evaluation.answers.feu is not None],
        "truth": [
            _truth(evaluation, series) for evaluation in evaluations if evaluation.metrics.get("truth_gap") is not None
        ],
        "strata": _strata(evaluations, series),
        "data": [_data(evaluation) for evaluation in evaluations if evaluation.metrics.get("data")],
        "answered": [_answered(evaluation, series) for evaluation in evaluations if _abstains(evaluation)],
        "mistakes": [entry for evaluation in evaluations if (entry := _mistakes(evaluation))["rows"]],
    }


# ---------------------------------------------------------------------------------------------------------- the verdict


def _verdict(evaluations: Sequence[Evaluation], series: Mapping[str, int]) -> dict[str, Any]:
    scale = max(_reach(evaluation.metrics) for evaluation in evaluations)
    best = {column.key: _best(column, evaluations) for column in VERDICT}
    rows = [
        {
            "label": evaluation.label,
            "series": series[evaluation.label],
            "cells": [_cell(column, evaluation.metrics, best[column.key]) for column in VERDICT],
            "strip": _strip(evaluation.metrics, scale),
            "words": _verdict_words(evaluation.metrics),
        }
        for evaluation in evaluations
    ]
    return {"columns": [column.title for column in VERDICT], "rows": rows, "scale": percent(scale)}


def _reach(metrics: Json) -> float:
    high = (metrics["intervals"].get("ece") or [0, 0])[1]
    return max(metrics["ece"], high, metrics["ece_null"]["high"], 0.01)


def _best(column: Column, evaluations: Sequence[Evaluation]) -> str | None:
    """Return the printed value that leads, where there is something to compare."""
    values = [value for evaluation in evaluations if (value := evaluation.metrics.get(column.key)) is not None]
    if len(values) < 2 or column.better == "none":
        return None
    return column.show(max(values) if column.better == "higher" else min(values))


def _cell(column: Column, metrics: Json, best: str | None) -> dict[str, Any]:
    cell = _number(metrics, column.key, column.show)
    return {**cell, "best": cell["value"] == best}


def _number(metrics: Json, key: str, show: Callable[[float], str]) -> dict[str, str]:
    """Print a metric and its interval; a dash and the reason where it is undefined."""
    value, ends = metrics.get(key), (metrics.get("intervals") or {}).get(key)
    if value is None:
        return {"value": "–", "interval": (metrics.get("reasons") or {}).get(key, "")}
    return {"value": show(value), "interval": f"{show(ends[0])} – {show(ends[1])}" if ends else ""}


def _strip(metrics: Json, scale: float) -> dict[str, float]:
    """Place ECE, its interval and the null band on a strip of 100 units."""
    low, high = metrics["intervals"].get("ece") or (metrics["ece"], metrics["ece"])
    null = metrics["ece_null"]
    places = {"ece": metrics["ece"], "low": low, "high": high, "null_low": null["low"], "null_high": null["high"]}
    return {name: round(4 + 92 * value / scale, 1) for name, value in places.items()}


def _verdict_words(metrics: Json) -> str:
    """Say what ECE shows beside its null band, and in which direction confidence errs."""
    if metrics["ece_null"].get("p_value", 0.0) > 0.05:
        return "no miscalibration seen"
    gap = metrics.get("signed_gap") or 0.0
    low, high = (metrics.get("intervals") or {}).get("signed_gap") or (gap, gap)
    if low > 0 or high < 0:
        return f"{'over' if gap > 0 else 'under'}confident by {percent(abs(gap))} points"
    return "miscalibrated in both directions"


# -------------------------------------------------------------------------------------------------------- the diagrams


def _bin(row: Json) -> list[str]:
    accuracy = f"{percent(row['accuracy'])} ({percent(row['accuracy_low'])} – {percent(row['accuracy_high'])})"
    calibrated = f"{percent(row['null_low'])} – {percent(row['null_high'])}"
    return [f"{row['lower']:.3f} – {row['upper']:.3f}", str(row["n"]), percent(row["confidence"]), accuracy, calibrated]


def _risk(task: str, evaluations: Sequence[Evaluation], series: Mapping[str, int]) -> dict[str, Any]:
    curves = [
        (series[evaluation.label], *risk_coverage(evaluation.answers.confidence, evaluation.answers.correct))
        for evaluation in evaluations
    ]
    rows = [
        {
            "label": evaluation.label,
            "series": series[evaluation.label],
            "cells": [_number(evaluation.metrics, key, decimals) for key in ("auroc", "aurc")]
            + [
                _number(evaluation.metrics.get("accuracy_at_coverage") or {}, at, percent)
                for at in ("0.5", "0.8", "0.9")
            ],
        }
        for evaluation in evaluations
    ]
    return {"figure": figures.risk_coverage(curves, f"Risk-coverage curves on {task}"), "rows": rows}


def _spread(task: str, evaluation: Evaluation) -> dict[str, Any]:
    answers = evaluation.answers
    right, wrong = answers.confidence[answers.correct == 1], answers.confidence[answers.correct == 0]
    title = f"Confidence of {evaluation.label} on {task} by right and wrong answers"
    return {
        "label": evaluation.label,
        "figure": figures.right_and_wrong(answers.confidence, answers.correct, "confidence", (0.0, 1.0), title),
        "caption": f"mean {_mean(right)} when right, {_mean(wrong)} when wrong",
    }


def _feu(task: str, evaluation: Evaluation) -> dict[str, Any]:
    answers = evaluation.answers
    assert answers.feu is not None
    low, high = float(answers.feu.min()), float(answers.feu.max())
    margin = max((high - low) * 0.05, 0.005)
    limits = (max(0.0, low - margin), min(1.0, high + margin) if high <= 1 else high + margin)
    title = f"FEU of {evaluation.label} on {task} by right and wrong answers"
    metrics = evaluation.metrics
    return {
        "label": evaluation.label,
        "figure": figures.right_and_wrong(answers.feu, answers.correct, "FEU", limits, title),
        "cells": [_number(metrics, key, decimals) for key in ("feu", "feu_auroc", "auroc")],
    }


def _mean(values: np.ndarray) -> str:
    return percent(float(values.mean())) + " %" if len(values) else "–"


# ---------------------------------------------------------------------------------------- truth, abstaining, mistakes


def _truth(evaluation: Evaluation, series: Mapping[str, int]) -> dict[str, Any]:
    metrics = evaluation.metrics
    cells = [_number(metrics, "truth_gap", percent), _number(metrics, "excess_log_loss", decimals)]
    return {"label": evaluation.label, "series": series[evaluation.label], "cells": cells}


def _strata(evaluations: Sequence[Evaluation], series: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return one row per stratum and method; the first of a stratum spans the others."""
    keys = {"accuracy": percent, "truth": percent, "confidence": percent, "feu": decimals}
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(name for evaluation in evaluations for name in evaluation.metrics.get("strata") or {}):
        having = [evaluation for evaluation in evaluations if name in (evaluation.metrics.get("strata") or {})]
        for place, evaluation in enumerate(having):
            stratum = evaluation.metrics["strata"][name]
            rows.append(
                {
                    "stratum": name,
                    "span": 0 if place else len(having),
                    "label": evaluation.label,
                    "series": series[evaluation.label],
                    "n": stratum["n"],
                    "cells": [_number(stratum, key, show)["value"] for key, show in keys.items()],
                }
            )
    return rows


def _abstains(evaluation: Evaluation) -> bool:
    return (evaluation.metrics.get("answered") or {"coverage": 1})["coverage"] < 1


def _answered(evaluation: Evaluation, series: Mapping[str, int]) -> dict[str, Any]:
    answered = evaluation.metrics["answered"]
    kept = {"accuracy": answered["accuracy"], "intervals": {"accuracy": answered["interval"]}}
    cells = [
        _number(answered, "coverage", percent),
        _number(kept, "accuracy", percent),
        _number(evaluation.metrics, "accuracy", percent),
    ]
    return {"label": evaluation.label, "series": series[evaluation.label], "cells": cells}


def _mistakes(evaluation: Evaluation) -> dict[str, Any]:
    """Return the wrong answers given with the highest confidence: where a rule on confidence cannot help."""
    wrong = [row for row in evaluation.rows if row.get("correct") is False]
    surest = sorted(wrong, key=lambda row: -row["confidence"])[:MISTAKES]
    rows = [
        {
            "question": _short(row.get("question") or f"id {row['id']}", 280),
            "given": _choice(row, row["prediction"]),
            "gold": _choice(row, row["label"]),
            "confidence": percent(row["confidence"]),
        }
        for row in surest
    ]
    return {"label": evaluation.label, "rows": rows}


def _choice(row: Json, label: str) -> str:
    labels = list(row["probabilities"])
    text = row["choices"][labels.index(label)] if len(row.get("choices") or ()) == len(labels) else label
    return label if text == label else f"{label}. {_short(text, 100)}"


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


# ----------------------------------------------------------------------------------------------------------------- runs


def _run(run: RunFacts, series: int) -> dict[str, Any]:
    facts = run.facts
    return {
        "label": run.label,
        "series": series,
        "folder": run.folder,
        "finished": run.finished,
        "rule": run.rule,
        "cost": [
            _count(facts.get("trainable_parameters")),
            _count(facts.get("n")),
            _duration(facts.get("seconds")),
            _count(facts.get("passes")),
            str(run.environment.get("device") or "–"),
        ],
        "curves": list(_curves(run, series)),
        "load": _load(run.log),
        "provenance": list(_flat({**facts, "environment": dict(run.environment)})),
        "notes": [str(note) for note in facts.get("notes") or ()],
    }


def _data(evaluation: Evaluation) -> dict[str, str]:
    """Say which rows were scored and how: the hash tells whether two results saw the same questions."""
    data, metrics = evaluation.metrics["data"], evaluation.metrics
    facts = {"sha256": str(data.get("sha256") or "–")[:16], "path": str(data.get("path") or "–")}
    facts |= {key: str(metrics[key]) for key in ("dtype", "passes") if metrics.get(key) is not None}
    return {"label": evaluation.label, "facts": ", ".join(f"{key} {value}" for key, value in facts.items())}


def _count(value: Any) -> str:
    return (
        f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else "–" if value is None else str(value)
    )


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _curves(run: RunFacts, series: int) -> Iterator[dict[str, Any]]:
    for key, title in CURVES.items():
        points = [
            (float(entry["step"]), float(entry[key]))
            for entry in run.log
            if _is_number(entry.get(key)) and _is_number(entry.get("step"))
        ]
        if len(points) > 1:
            steps, values = zip(*points, strict=True)
            figure = figures.training_curve(steps, values, series, f"{title}, training of {run.label}")
            yield {"title": title, "figure": figure, "last": f"{values[-1]:.3g}"}


def _load(log: Sequence[Json]) -> list[list[dict[str, Any]]]:
    """Return each expert's share of the tokens by layer, from the last entry of the log that has it."""
    for entry in reversed(log):
        layers = entry.get("expert_load")
        if isinstance(layers, list) and layers and all(isinstance(layer, list) and layer for layer in layers):
            return [
                [{"share": percent(share), "depth": round(min(1.0, share * len(layer) / 2), 2)} for share in layer]
                for layer in layers
            ]
    return []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _flat(value: Json, prefix: str = "") -> Iterator[tuple[str, str]]:
    """List nested facts as dotted names; long lists of numbers, such as fingerprints, are left to the file."""
    for key, part in value.items():
        name = f"{prefix}{key}"
        if isinstance(part, Mapping):
            yield from _flat(part, f"{name}.")
        elif not isinstance(part, list) and part not in (None, ""):
            yield name, _short(str(part), 200)


def _settings(metrics: Json) -> dict[str, Any]:
    return {"bins": 15, "binning": "equal width, right-closed", "resamples": 1000, "seed": 0, "level": 0.95} | dict(
        metrics.get("settings") or {}
    )


def _listed(names: Sequence[str]) -> str:
    """Join names as a sentence does.

    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
