"""The html report: what each section shows, as plain values that the template prints and escapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
        has={key: any(task[key] for task in tasks) for key in ("feu", "truth", "strata", "answered", "mistakes")}
        | {key: any(run[key] for run in runs) for key in ("curves", "load")},
    )


def _task(task: str, evaluations: Sequence[Evaluation], series: Mapping[str, int]) -> dict[str, Any]:
    first = evaluations[0].metrics
    return {
        "name": task,
        "anchor": f"task-{abs(hash_of(task))}",
        "n": _listed(sorted({str(evaluation.metrics["n"]) for evaluation in evaluations})),
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
        "truth": [_truth(evaluation) for evaluation in evaluations if evaluation.metrics.get("truth_gap") is not None],
        "strata": _strata(evaluations),
        "answered": [_answered(evaluation) for evaluation in evaluations if _abstains(evaluation)],
        "mistakes": [entry for evaluation in evaluations if (entry := _mistakes(evaluation))["rows"]],
    }


def hash_of(text: str) -> int:
    """Return a number for an anchor that is the same in every process."""
    return int.from_bytes(text.encode(), "big") % 999_983


# ---------------------------------------------------------------------------------------------------------- the verdict


def _verdict(evaluations: Sequence[Evaluation], series: Mapping[str, int]) -> dict[str, Any]:
    scale = max(_reach(evaluation.metrics) for evaluation in evaluations)
    best = {column.key: _best(column, evaluations) for column in COLUMNS}
    rows = [
        {
            "label": evaluation.label,
            "series": series[evaluation.label],
            "cells": [_cell(column, evaluation.metrics, best[column.key]) for column in COLUMNS],
            "strip": _strip(evaluation.metrics, scale),
            "words": _verdict_words(evaluation.metrics),
        }
        for evaluation in evaluations
    ]
    return {"columns": [column.title for column in COLUMNS], "rows": rows, "scale": percent(scale)}


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
    value = metrics.get(column.key)
    if value is None:
        return {"value": "–", "interval": (metrics.get("reasons") or {}).get(column.key, ""), "best": False}
    ends = (metrics.get("intervals") or {}).get(column.key)
    shown = column.show(value)
    interval = f"{column.show(ends[0])} – {column.show(ends[1])}" if ends else ""
    return {"value": shown, "interval": interval, "best": shown == best}


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
            "cells": [_with_interval(evaluation.metrics, key, decimals) for key in ("auroc", "aurc")]
            + [
                percent(value)
                if (value := (evaluation.metrics.get("accuracy_at_coverage") or {}).get(at)) is not None
                else "–"
                for at in ("0.5", "0.8", "0.9")
            ],
        }
        for evaluation in evaluations
    ]
    return {"figure": figures.risk_coverage(curves, f"Risk-coverage curves on {task}"), "rows": rows}


def _with_interval(metrics: Json, key: str, show: Any) -> str:
    value, ends = metrics.get(key), (metrics.get("intervals") or {}).get(key)
    if value is None:
        return "–"
    return f"{show(value)} ({show(ends[0])} – {show(ends[1])})" if ends else show(value)


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
        "cells": [_with_interval(metrics, key, decimals) for key in ("feu", "feu_auroc", "auroc")],
    }


def _mean(values: np.ndarray) -> str:
    return percent(float(values.mean())) + " %" if len(values) else "–"


# ---------------------------------------------------------------------------------------- truth, abstaining, mistakes


def _truth(evaluation: Evaluation) -> dict[str, Any]:
    metrics = evaluation.metrics
    cells = [_with_interval(metrics, "truth_gap", percent), _with_interval(metrics, "excess_log_loss", decimals)]
    return {"label": evaluation.label, "cells": cells}


def _strata(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    rows = []
    names = dict.fromkeys(name for evaluation in evaluations for name in evaluation.metrics.get("strata") or {})
    for name in names:
        for evaluation in evaluations:
            stratum = (evaluation.metrics.get("strata") or {}).get(name)
            if stratum:
                keys = {"accuracy": percent, "truth": percent, "confidence": percent, "feu": decimals}
                cells = ["–" if (value := stratum.get(key)) is None else show(value) for key, show in keys.items()]
                rows.append({"stratum": name, "label": evaluation.label, "n": stratum["n"], "cells": cells})
    return rows if len(names) > 1 or any(names) else []


def _abstains(evaluation: Evaluation) -> bool:
    return (evaluation.metrics.get("answered") or {"coverage": 1})["coverage"] < 1


def _answered(evaluation: Evaluation) -> dict[str, Any]:
    answered = evaluation.metrics["answered"]
    accuracy, interval = answered["accuracy"], answered["interval"]
    kept = "–" if accuracy is None else f"{percent(accuracy)} ({percent(interval[0])} – {percent(interval[1])})"
    return {
        "label": evaluation.label,
        "cells": [percent(answered["coverage"]), kept, percent(evaluation.metrics["accuracy"])],
    }


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
