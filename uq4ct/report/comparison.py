"""Methods side by side over several seeds: means, deviations, intervals, and every difference from a baseline.

The interval of a mean, or of a difference, is a two-level bootstrap: seeds are drawn, then questions; one draw of
questions serves every method and seed, because all of them answer the same ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from uq4ct.metrics import Answers
from uq4ct.metrics.answers import Metric, Settings, Undefined
from uq4ct.metrics.intervals import bootstrap_weights
from uq4ct.metrics.paired import OverSeeds, over_seeds
from uq4ct.metrics.summary import METRICS
from uq4ct.report import differences, usefulness
from uq4ct.report.answered import Answered, Json, Scored, beta_zero, options_of, read, trained_on

Result = dict[str, Any]
Draws = Mapping[str, Mapping[str, np.ndarray]]  # by method and metric: (resample, seed)

AT_ONCE = 64  # resamples: a block of them and of 2,000 questions stays in the processor's cache
# What a mean can be at all, where it is bounded: few seeds make intervals that would reach beyond.
SHARES = (
    *("accuracy", "accuracy_at_80", "brier_top", "confidence", "letter_mass", "truth_gap", "feu"),
    *("auroc", "feu_auroc", "epistemic_auroc", "aupr_right", "aupr_wrong", "aurc", "eaurc", "augrc"),
)
NATS = ("nll", "excess_log_loss", "total_uncertainty", "aleatoric", "epistemic")
BOUNDS = {"brier": (0.0, 2.0), "signed_gap": (-1.0, 1.0), "prr": (-np.inf, 1.0)}
BOUNDS |= dict.fromkeys(SHARES, (0.0, 1.0)) | dict.fromkeys(NATS, (0.0, np.inf))


def compare(scored: Sequence[Scored], seeds: int, settings: Settings, baseline: str | None) -> dict[str, Any]:
    """Return what results.json says of finished runs: results, differences, verdicts, shift detection, FEU's use.

    ``results`` has one entry per task and method, over its seeds, in the order in which tasks and methods are met. Each
    metric is the mean over seeds; ``sd`` holds its standard deviation over seeds (n - 1), null unless all ``seeds`` are
    there and more than one; ``item_sd`` that over drawn questions; ``intervals`` [low, high] at ``settings.level``;
    ``values`` those of the seeds. ``ece_null`` is averaged over seeds. A metric that is undefined for a seed is null,
    with the reason. Differences need ``baseline`` to be there. Raises UserError where runs did not answer the same
    questions.
    """
    asked = read(scored)
    results: list[Result] = []
    rows: list[Result] = []
    for methods in asked.values():
        draws = resampled(methods, settings)
        results += [_over_seeds(runs, draws[method], seeds, settings) for method, runs in methods.items()]
        if baseline is not None:
            rows += differences.of_task(methods, draws, baseline, settings)
    rows = differences.corrected(rows)
    inside = trained_on(scored)
    own = None if inside is None else next(iter(asked[inside].values()))[0].metrics["task"]
    return {
        "baseline": baseline,
        "results": results,
        "differences": rows,
        "verdicts": differences.verdicts(rows, settings.level),
        "in_distribution": own,
        "shift_detection": usefulness.shift_detection(asked, inside, settings),
        "feu_usefulness": usefulness.of_feu(asked, results, beta_zero(scored), settings),
    }


def costs(scored: Sequence[Scored]) -> list[Result]:
    """Return what each method costs: passes, trainable parameters and bytes beside the base, mean seconds over seeds.

    ``evaluation_seconds`` is null where another method's predictions served, as for a post-hoc calibration.
    """
    found: dict[str, list[Json]] = {}
    for run in scored:
        facts = json.loads((run.folder / "uq4ct.json").read_text(encoding="utf-8"))
        cell = json.loads((run.folder / "cell.json").read_text(encoding="utf-8"))
        found.setdefault(run.method, []).append(facts | {"evaluation_seconds": cell["evaluation_seconds"]})
    return [
        {
            "method": method,
            "passes": facts[0]["passes"],
            "trainable_parameters": facts[0]["trainable_parameters"],
            "extra_bytes": facts[0].get("extra_bytes"),
            "fit_seconds": float(np.mean([each["seconds"] for each in facts])),
            "evaluation_seconds": _mean_of_known([each["evaluation_seconds"] for each in facts]),
        }
        for method, facts in found.items()
    ]


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _over_seeds(runs: Sequence[Answered], draws: Mapping[str, np.ndarray], seeds: int, settings: Settings) -> Result:
    found = [run.metrics for run in runs]
    values: dict[str, list[Any]] = {metric.name: [result.get(metric.name) for result in found] for metric in METRICS}
    defined = [metric for metric in METRICS if None not in values[metric.name]]
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
    reasons = {key: reason for result in found for key, reason in (result.get("reasons") or {}).items()}
    whole = len(runs) == seeds > 1
    null = {end: float(np.mean([each["ece_null"][end] for each in found])) for end in ("mean", "low", "high", "p95")}
    ece = float(np.mean(values["ece"]))
    return {
        "task": found[0]["task"],
        "split": found[0]["split"],
        "method": runs[0].run.method,
        "n": runs[0].answers.n,
        "seeds": [run.run.seed for run in runs],
        "seeds_wanted": seeds,
        **{metric.name: float(np.mean(values[metric.name])) if metric in defined else None for metric in METRICS},
        "sd": {metric.name: float(np.std(values[metric.name], ddof=1)) if whole else None for metric in defined},
        "item_sd": {name: mean.item_sd for name, mean in means.items()},
        "intervals": {metric.name: interval_of(metric, means.get(metric.name)) for metric in defined},
        "values": values,
        "ece_null": null,
        "calibrated": ece <= null["high"],  # not distinguishable from: ECE within what calibrated models show
        **_made_with(runs[0], settings),
        "reasons": reasons,
    }


def interval_of(metric: Metric, mean: OverSeeds | None) -> list[float] | None:
    """Return the interval of a mean within what the metric can be; None where no resample has a value."""
    calibration_error = metric.interval == "pivotal"
    bounds = (0.0, 1.0) if calibration_error else BOUNDS.get(metric.name, (-np.inf, np.inf))
    return np.clip(mean.interval, *bounds).tolist() if mean else None


def _made_with(run: Answered, settings: Settings) -> Result:
    """Return what has to be the same for numbers to be compared with other people's."""
    metrics = run.metrics
    return {
        "bins": settings.bins,
        "binning": metrics["settings"]["binning"],
        "option_filter": "none",  # every question keeps all its choices, and no question is left out for their number
        "prompt_hash": metrics["prompt"]["hash"],
        "scoring": metrics["prompt"]["scoring"],
        "dtype": metrics["dtype"],
        "passes": metrics["passes"],
        "samples": run.samples,
        "answer_loss": options_of(run.run)["method"].get("answer_loss"),
    }


def resampled(methods: Mapping[str, Sequence[Answered]], settings: Settings) -> Draws:
    """Return every metric of every run of one task on the same drawn questions."""
    drawn: dict[bytes, dict[str, list[np.ndarray]]] = {}
    which = {method: [_content(run.answers) for run in runs] for method, runs in methods.items()}
    different = {
        key: run.answers
        for method, runs in methods.items()
        for key, run in zip(which[method], runs, strict=True)
    }  # what no seed changes, as an untrained model, is computed once
    size = next(iter(different.values())).n
    for block in bootstrap_weights(size, settings.resamples, settings.seed):
        for begin in range(0, len(block), AT_ONCE):
            weights = block[begin : begin + AT_ONCE]
            for key, answers in different.items():
                alone = replace(answers)  # what answers keep of the last block would add up over all runs
                for metric in METRICS:
                    parts = drawn.setdefault(key, {}).setdefault(metric.name, [])
                    parts.append(_drawn(metric, alone, settings, weights))
    whole = {key: {name: np.concatenate(parts) for name, parts in by.items()} for key, by in drawn.items()}
    return {
        method: {metric.name: np.stack([whole[key][metric.name] for key in keys], axis=1) for metric in METRICS}
        for method, keys in which.items()
    }


def _content(answers: Answers) -> bytes:
    """Return a digest of all that the answers to one task's questions can differ in."""
    arrays = (answers.probabilities, answers.log_probs, answers.predicted, answers.feu, answers.letter_mass)
    parts = (b"-" if array is None else np.ascontiguousarray(array).tobytes() for array in arrays)
    return hashlib.sha256(b"|".join(parts)).digest()


def _drawn(metric: Metric, answers: Answers, settings: Settings, weights: np.ndarray) -> np.ndarray:
    if metric.draws is None:  # accuracy, whose interval for one run has a formula
        return weights @ answers.correct / answers.n
    try:
        return metric.draws(answers, settings, weights)
    except Undefined:
        return np.full(len(weights), np.nan)
