"""One axis at a time: what several campaigns that differ in their training alone say of the same methods."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from benchmarks.study.shown import interval, number, signed
from uq4ct.report.drawing import svg_file
from uq4ct.report.figures.rows import Spot, Track, chart

Json = Mapping[str, Any]
Key = tuple[str, str]  # task and method
KEY = ((Spot(0), "one temperature"), (Spot(0, shape="diamond", colour="right"), "familiarity"))
_OPTIONS = re.compile(r"\[.*?\]")


def table(founds: Sequence[Json], args: Sequence[str]) -> Iterator[str]:
    """Return the methods named of every campaign, raw and scaled, at home and under a shift: two tasks, then methods.

    Behind a colon: the paired difference from the baseline with a temperature.
    """
    home, shifted, *methods = args
    yield (
        "| training | method | accuracy % | NLL | ECE % | NLL with a temperature | "
        f"`{shifted}`: NLL with a temperature | with `+familiarity` | AUROC of FEU | mean FEU % |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for found in founds:
        rows, apart, knows = _by_task(found)
        for method in methods:
            if (home, method) not in rows:
                continue
            own = rows[home, method]
            cells = [f"{100 * own['accuracy']:.1f}", f"{own['nll']:.3f}", f"{100 * own['ece']:.1f}"]
            for task, suffix in ((home, "temperature"), (shifted, "temperature"), (shifted, "familiarity")):
                cells.append(_nll(rows, apart, (task, f"{method}+{suffix}")))
            level = own.get("feu")
            cells += [_auroc(knows, (shifted, method)), number(None if level is None else 100 * level, ".1f")]
            yield f"| {found['title']} | `{method}` | {' | '.join(cells)} |"


def grid(founds: Sequence[Json], args: Sequence[str]) -> Iterator[str]:
    """Return one row per campaign: a task at home, tasks under shift (with commas between), and methods, ours last.

    Numbers with a stroke between are those of the methods in the order of the first head. Behind a colon: the paired
    difference from the baseline with a temperature.
    """
    home, shifts, *methods = args
    ours, names = methods[-1], " / ".join(f"`{method}`" for method in methods)
    shifted = [f"`{task}`: NLL of `{ours}+familiarity` | AUROC of FEU" for task in shifts.split(",")]
    heads = ["training", f"accuracy %: {names}", "ECE %", "ECE % with a temperature", f"NLL of `{ours}+temperature`"]
    yield f"| {' | '.join([*heads, *shifted])} |"
    yield "|" + "---|" * (len(heads) + 2 * len(shifted))
    for found in founds:
        rows, apart, knows = _by_task(found)
        cells = [found["title"], *_at_home(rows, home, methods)]
        cells.append(_nll(rows, apart, (home, f"{ours}+temperature")))
        for task in shifts.split(","):
            cells += [_nll(rows, apart, (task, f"{ours}+familiarity")), _auroc(knows, (task, ours))]
        yield f"| {' | '.join(cells)} |"


def rivals(founds: Sequence[Json], args: Sequence[str]) -> Iterator[str]:
    """Return one row per campaign: a task at home, one under shift, the baseline, and methods that are held against it.

    Numbers with a stroke between are those of all methods. Behind a colon: the paired difference from the baseline with
    a temperature.
    """
    home, shifted, *methods = args
    names = " / ".join(f"`{method}`" for method in methods)
    scaled = [f"NLL of `{method}+temperature`" for method in methods[1:]]
    heads = ["training", f"accuracy %: {names}", "ECE %", "ECE % with a temperature", *scaled, f"`{shifted}`: ECE %"]
    yield f"| {' | '.join([*heads, *scaled])} |"
    yield "|" + "---|" * (len(heads) + len(scaled))
    for found in founds:
        rows, apart, _ = _by_task(found)
        cells = [found["title"], *_at_home(rows, home, methods)]
        cells += [_nll(rows, apart, (home, f"{method}+temperature")) for method in methods[1:]]
        cells.append(_of_all(rows, shifted, methods, "ece", ""))
        cells += [_nll(rows, apart, (shifted, f"{method}+temperature")) for method in methods[1:]]
        yield f"| {' | '.join(cells)} |"


def figure(founds: Sequence[Json], args: Sequence[str]) -> str:
    """Return an SVG file of how far the scaled answers of every campaign's methods are from the baseline's in NLL."""
    home, shifted, *methods = args
    labels: list[str] = []
    spots: dict[str, list[list[Spot]]] = {home: [], shifted: []}
    for found in founds:
        apart = _beside_the_scaled_baseline(found)
        for method, suffix in product(methods, ("temperature", "familiarity")):
            keys = [(task, f"{method}+{suffix}") for task in spots]
            if not apart.keys() >= set(keys):
                continue
            labels.append(f"{found['title'].replace(' questions', '')}: {_OPTIONS.sub('', method)}")
            for task, name in keys:
                spots[task].append([_spot(apart[task, name], suffix)])
    beside = f"{founds[0]['baseline']}+temperature"
    tracks = [
        Track(f"{task}: NLL beside {beside}", own, zero=0.0, better="lower", width=230.0) for task, own in spots.items()
    ]
    return svg_file(chart(labels, tracks, KEY), "NLL of scaled answers beside the baseline's, by training")


def _by_task(found: Json) -> tuple[dict[Key, Json], dict[Key, Json], dict[Key, Json]]:
    """Return by task and method: results, NLL beside the scaled baseline's, and how well FEU tells the shift."""
    rows = {(row["task"], row["method"]): row for row in found["results"]}
    knows = {(row["shifted"], row["method"]): row for row in found["shift_detection"] if row["score"] == "feu"}
    return rows, _beside_the_scaled_baseline(found), knows


def _at_home(rows: Mapping[Key, Json], home: str, methods: Sequence[str]) -> list[str]:
    """Return accuracy, ECE and ECE with a temperature, each of all methods."""
    kinds = (("accuracy", ""), ("ece", ""), ("ece", "+temperature"))
    return [_of_all(rows, home, methods, metric, suffix) for metric, suffix in kinds]


def _of_all(rows: Mapping[Key, Json], task: str, methods: Sequence[str], metric: str, suffix: str) -> str:
    values = [rows.get((task, method + suffix), {}).get(metric) for method in methods]
    return " / ".join(number(None if value is None else 100 * value, ".1f") for value in values)


def _nll(rows: Mapping[Key, Json], apart: Mapping[Key, Json], key: Key) -> str:
    beside = f": {signed(apart[key], 1, 3)}" if key in apart else ""
    return number(rows.get(key, {}).get("nll")) + beside


def _auroc(knows: Mapping[Key, Json], key: Key) -> str:
    told = knows.get(key, {})
    return interval(told.get("auroc"), told.get("interval"))


def _beside_the_scaled_baseline(found: Json) -> dict[Key, Json]:
    """Return the differences in NLL from the baseline with a temperature, by task and method."""
    scaled = f"{found['baseline']}+temperature"
    rows = [row for row in found["differences"] if row["metric"] == "nll" and row["baseline"] == scaled]
    return {(row["task"], row["method"]): row for row in rows}


def _spot(row: Json, suffix: str) -> Spot:
    look: dict[str, Any] = {"shape": "diamond", "colour": "right"} if suffix == "familiarity" else {}
    return Spot(row["difference"], *row["interval"], **look)
