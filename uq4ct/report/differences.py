"""How far each method is from a baseline on the same questions and seeds, and whether that is a win."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from uq4ct.metrics import METRICS, Answers
from uq4ct.metrics.answers import Settings
from uq4ct.metrics.paired import holm, over_seeds, standard_error
from uq4ct.metrics.proper_scores import brier, nll
from uq4ct.report.answered import Answered, Json
from uq4ct.report.tables import decimals, percent

Row = dict[str, Any]
Verdict = Literal["better", "worse", "not distinguishable"]

COMPARED = ("accuracy", "nll", "brier", "ece", "auroc", "augrc")
# A proper score is a mean over questions, whose error has a formula too; a win needs one of them.
PROPER: Mapping[str, Callable[[Answers], np.ndarray]] = {"nll": nll, "brier": brier}
TITLES = {"accuracy": "accuracy", "nll": "NLL", "brier": "Brier", "ece": "ECE", "auroc": "AUROC", "augrc": "AUGRC"}
FALL = 0.01  # an AUROC that is lower by more has fallen, whether or not chance could do it


def counterpart(method: str, baseline: str, methods: Sequence[str]) -> str:
    """Return what a method is compared with: the baseline, scaled where the method is and the baseline is not.

    Temperature scaling is given to every method, so a scaled one has to beat the scaled baseline: that with the same
    suffix, else that with a temperature, where it is there.

    >>> counterpart("uq4ct+temperature", "lora", ["lora", "lora+temperature", "uq4ct", "uq4ct+temperature"])
    'lora+temperature'
    >>> counterpart("uq4ct+feu", "lora", ["lora", "lora+temperature", "uq4ct+feu"])
    'lora+temperature'
    >>> counterpart("lora+vector", "lora", ["lora", "lora+temperature", "lora+vector"])
    'lora'
    """
    plain, suffix = _parted(method)
    if not suffix or _parted(baseline)[1] or plain == baseline:
        return baseline
    scaled = (f"{baseline}+{name}" for name in (suffix, "temperature"))
    return next((name for name in scaled if name in methods), baseline)


def _parted(method: str) -> tuple[str, str]:
    """Part a method's name from its suffix, which stands behind any brackets."""
    head, bracket, tail = method.rpartition("]")
    name, _, suffix = tail.partition("+")
    return head + bracket + name, suffix


def of_task(
    methods: Mapping[str, Sequence[Answered]],
    draws: Mapping[str, Mapping[str, np.ndarray]],
    baseline: str,
    settings: Settings,
) -> list[Row]:
    """Return the differences, method minus baseline, of every method on one task, over the seeds that both have.

    ``draws`` are the values of drawn questions by method and metric, (resample, seed). A metric without a value for one
    of these seeds has no row. ``clt_se`` and ``clustered_se`` of NLL and Brier are standard errors over questions, of
    differences averaged over seeds; the second is null unless questions come in groups.
    """
    found: list[Row] = []
    for method, runs in methods.items():
        against = counterpart(method, baseline, list(methods))
        if method == baseline or against not in methods:
            continue
        theirs = {run.run.seed: place for place, run in enumerate(methods[against])}
        pairs = [(place, theirs[run.run.seed]) for place, run in enumerate(runs) if run.run.seed in theirs]
        if pairs:
            mine, others = map(list, zip(*pairs, strict=True))
            both = [runs[k] for k in mine], [methods[against][k] for k in others]
            apart = {name: draws[method][name][:, mine] - draws[against][name][:, others] for name in COMPARED}
            found += _rows(*both, apart, settings)
    return found


def _rows(
    runs: Sequence[Answered], others: Sequence[Answered], apart: Mapping[str, np.ndarray], settings: Settings
) -> Sequence[Row]:
    facts = runs[0].metrics
    rows: list[Row] = []
    for metric in (metric for metric in METRICS if metric.name in COMPARED):
        pairs = [(a.metrics.get(metric.name), b.metrics.get(metric.name)) for a, b in zip(runs, others, strict=True)]
        if any(None in pair for pair in pairs) or not np.isfinite(apart[metric.name].mean(axis=1)).any():
            continue
        values = np.diff(np.array(pairs, dtype=np.float64)[:, ::-1])[:, 0]
        pivotal = metric.interval == "pivotal"
        found = over_seeds(
            values, apart[metric.name], level=settings.level, pivotal=pivotal, seed=settings.seed
        )
        kind = f"{'two-level bootstrap' if len(runs) > 1 else 'bootstrap over questions'}, "
        rows.append(
            {
                "task": facts["task"],
                "split": facts["split"],
                "method": runs[0].run.method,
                "baseline": others[0].run.method,
                "metric": metric.name,
                "better": metric.better,
                "difference": found.mean,
                "interval": list(found.interval),
                "p": found.p,
                "p_holm": found.p,
                "seed_sd": found.seed_sd,
                "item_sd": found.item_sd,
                "seeds": [run.run.seed for run in runs],
                "n": runs[0].answers.n,
                "interval_kind": kind + ("pivotal" if pivotal else "percentile"),
                **(_errors(metric.name, runs, others) if metric.name in PROPER else {}),
            }
        )
    return rows


def _errors(name: str, runs: Sequence[Answered], others: Sequence[Answered]) -> Row:
    """Return standard errors over questions of a proper score's difference, averaged over seeds."""
    by_seed = [PROPER[name](a.answers) - PROPER[name](b.answers) for a, b in zip(runs, others, strict=True)]
    items, groups = np.mean(by_seed, axis=0), runs[0].groups
    several = groups is not None and 1 < len(set(groups)) < len(groups)
    error = standard_error(items)
    clustered = standard_error(items, groups) if several else None
    return {"clt_se": error if np.isfinite(error) else None, "clustered_se": clustered}


def corrected(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with Holm's correction over tasks, for each method and metric on its own.

    >>> row = {"method": "m", "metric": "nll"}
    >>> [each["p_holm"] for each in corrected([{**row, "p": 0.01}, {**row, "p": 0.5}])]
    [0.02, 0.5]
    """
    families: dict[tuple[str, str], list[int]] = {}
    for place, row in enumerate(rows):
        families.setdefault((row["method"], row["metric"]), []).append(place)
    p_holm = [0.0] * len(rows)
    for places in families.values():
        for place, p in zip(places, holm([rows[place]["p"] for place in places]), strict=True):
            p_holm[place] = p
    return [{**row, "p_holm": p} for row, p in zip(rows, p_holm, strict=True)]


def verdicts(rows: Sequence[Json], level: float = 0.95) -> list[Row]:
    """Return for each task and method whether it is better or worse than its baseline, and why, in words."""
    groups: dict[tuple[str, str, str], dict[str, Json]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["split"], row["method"]), {})[row["metric"]] = row
    found = []
    for (task, split, method), by_metric in groups.items():
        tasks = sum(row["method"] == method and row["metric"] == "nll" for row in rows)
        verdict, reason = verdict_of(by_metric, tasks, level)
        baseline = next(iter(by_metric.values()))["baseline"]
        plain = {"task": task, "split": split, "method": method, "baseline": baseline}
        found.append({**plain, "verdict": verdict, "reason": reason})
    return found


def verdict_of(rows: Mapping[str, Json], tasks: int = 1, level: float = 0.95) -> tuple[Verdict, str]:
    """Return the verdict on the differences of one method on one task, by metric, and the reason.

    *better*: NLL or Brier is lower, the other has a value and is not higher, and AUROC does not fall. *worse*: NLL or
    Brier is higher, and the other not lower. A score is lower or higher where that ``is_established``. AUROC falls
    where its interval lies below zero, or where it is lower by more than 0.01, whatever its interval; one without a
    value is taken for fallen.
    """
    proper = [rows[name] for name in PROPER if name in rows]
    if not proper:
        return "not distinguishable", "neither NLL nor Brier has a value for every seed"
    told = ", ".join(map(change, proper))
    if len(proper[0]["seeds"]) < 2:
        return "not distinguishable", f"one paired seed cannot tell what another would give; {told}"
    signs = {row["metric"]: _sign(row, level) for row in proper}
    if len(set(signs.values()) - {0}) == 2:
        return "not distinguishable", f"the scores disagree: {told}"
    if 1 in signs.values():
        return "worse", told
    if -1 not in signs.values():
        return "not distinguishable", _doubts(proper, tasks, level)
    if len(proper) < len(PROPER):
        missing = next(TITLES[name] for name in PROPER if name not in rows)
        return "not distinguishable", f"{told}, but {missing} has no value for every seed, so no win is claimed"
    auroc = rows.get("auroc")
    if auroc is None:
        return "not distinguishable", f"{told}, but AUROC has no value for every seed, so no win is claimed"
    if auroc["interval"][1] < 0 or auroc["difference"] < -FALL:
        return "not distinguishable", f"{told}, but {change(auroc)} falls, so no win is claimed"
    return "better", f"{told}; {change(auroc)} does not fall"


def _sign(row: Json, level: float) -> int:
    """Return -1 where a score is lower, 1 where it is higher, 0 where that cannot be told."""
    return int(np.sign(row["difference"])) if is_established(row, level) else 0


def is_established(row: Json, level: float = 0.95) -> bool:
    """Tell whether a difference is more than chance may make: what verdicts, figures and headlines go by alike.

    Two paired seeds or more, since one cannot tell what another would give; an interval without 0; p at most
    1 - ``level`` after Holm's correction; and where questions come in groups, 0 outside the interval from the clustered
    standard error and the seeds' deviation, too.

    >>> row = {"difference": -0.1, "interval": [-0.2, -0.05], "p_holm": 0.01, "seeds": [1, 2], "seed_sd": 0.0}
    >>> is_established(row), is_established({**row, "clustered_se": 0.06})
    (True, False)
    """
    low, high = row.get("interval") or (0.0, 0.0)
    p = row.get("p_holm")
    apart = (low > 0 or high < 0) and (p is None or p <= 1 - level + 1e-12)
    return bool(apart and len(row.get("seeds") or ()) > 1 and not _within_clusters(row, level))


def _within_clusters(row: Json, level: float) -> bool:
    """Tell whether zero lies within the interval by the clustered standard error, where there is one."""
    if row.get("clustered_se") is None:
        return False
    error = np.hypot(row["clustered_se"], row["seed_sd"] / np.sqrt(len(row["seeds"])))
    return bool(abs(row["difference"]) <= NormalDist().inv_cdf(0.5 + level / 2) * error)


def _doubts(proper: Sequence[Json], tasks: int, level: float) -> str:
    """Say for each score why it cannot be told from the baseline's."""
    parts = []
    for row in proper:
        text = change(row)
        if row["interval"][0] > 0 or row["interval"][1] < 0:
            after = f"no longer after Holm's correction over {tasks} tasks" if tasks > 1 else "on the edge"
            late = row["p_holm"] > 1 - level + 1e-12
            text += f" ({after}, p = {row['p_holm']:.3f})" if late else " (no longer with errors clustered by group)"
        parts.append(text)
    hold = all(row["interval"][0] <= 0 <= row["interval"][1] for row in proper)
    return f"0 lies within the interval of {' and of '.join(parts)}" if hold else ", ".join(parts)


def change(row: Json) -> str:
    """Print a difference as people read it: signed, with its interval; accuracy and ECE in points.

    >>> change({"metric": "nll", "difference": -0.0421, "interval": [-0.061, -0.02]})
    'NLL -0.042 [-0.061, -0.020]'
    """
    show = percent if row["metric"] in ("accuracy", "ece") else decimals
    low, high = (show(end) for end in row["interval"])
    text = show(row["difference"])
    return f"{TITLES[row['metric']]} {text if text.startswith('-') else f'+{text}'} [{low}, {high}]"
