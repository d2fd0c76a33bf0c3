"""One axis at a time: what several campaigns that differ in their training alone say of the same methods."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.study.target import signed
from uq4ct.report.drawing import svg_file
from uq4ct.report.figures.rows import Spot, Track, chart

Json = Mapping[str, Any]
KEY = ((Spot(0), "one temperature"), (Spot(0, shape="diamond", colour="right"), "familiarity"))
_OPTIONS = re.compile(r"\[.*?\]")


def table(founds: Sequence[Json], args: Sequence[str]) -> Iterator[str]:
    """Return the methods named of every campaign, raw and scaled, at home and under a shift: two tasks, then methods.

    Behind a colon: the paired difference from the baseline with a temperature.
    """
    home, shifted, *methods = args
    yield (
        "| training | method | accuracy % | NLL | ECE % | NLL with a temperature | "
        f"`{shifted}`: NLL with a temperature | with `+familiarity` | AUROC of FEU |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for found in founds:
        rows = {(row["task"], row["method"]): row for row in found["results"]}
        apart = {(row["task"], row["method"]): row for row in found["differences"] if row["metric"] == "nll"}
        by_feu = [row for row in found["shift_detection"] if row["score"] == "feu" and row["interval"]]
        knows = {(row["shifted"], row["method"]): row for row in by_feu}
        for method in methods:
            if (home, method) not in rows:
                continue
            own = rows[home, method]
            cells = [f"{100 * own['accuracy']:.1f}", f"{own['nll']:.3f}", f"{100 * own['ece']:.1f}"]
            for task, suffix in ((home, "temperature"), (shifted, "temperature"), (shifted, "familiarity")):
                cells.append(_beside(rows, apart, (task, f"{method}+{suffix}"), f"{found['baseline']}+temperature"))
            told = knows.get((shifted, method))
            cells.append("-" if told is None else "{:.3f} ({:.3f}-{:.3f})".format(told["auroc"], *told["interval"]))
            yield f"| {found['title']} | `{method}` | {' | '.join(cells)} |"


def _beside(rows: Json, apart: Json, key: tuple[str, str], baseline: str) -> str:
    """Return an NLL and how far it is from the baseline's; nothing is said of a method that was not run."""
    if key not in rows:
        return "-"
    shown = f"{rows[key]['nll']:.3f}"
    row = apart.get(key)
    return f"{shown}: {signed(row, 1, 3)}" if row and row["baseline"] == baseline else shown


def figure(founds: Sequence[Json], args: Sequence[str]) -> str:
    """Return an SVG file of how far the scaled answers of every campaign's methods are from the baseline's in NLL."""
    home, shifted, *methods = args
    labels: list[str] = []
    beside = f"{founds[0]['baseline']}+temperature"
    spots: dict[str, list[list[Spot]]] = {home: [], shifted: []}
    for found in founds:
        rows = [row for row in found["differences"] if row["metric"] == "nll" and row["baseline"] == beside]
        apart = {(row["task"], row["method"]): row for row in rows}
        for scaled in (f"{method}+{suffix}" for method in methods for suffix in ("temperature", "familiarity")):
            if not {(home, scaled), (shifted, scaled)} <= apart.keys():
                continue
            labels.append(f"{found['title']}: {_OPTIONS.sub('', scaled.partition('+')[0])}")
            for task, own in spots.items():
                own.append([_spot(apart[task, scaled], scaled)])
    tracks = [
        Track(f"{task}: NLL beside {beside}", own, zero=0.0, better="lower", width=230.0) for task, own in spots.items()
    ]
    return svg_file(chart(labels, tracks, KEY), "NLL of scaled answers beside the baseline's, by training")


def _spot(row: Json, scaled: str) -> Spot:
    look: dict[str, Any] = {"shape": "diamond", "colour": "right"} if scaled.endswith("+familiarity") else {}
    return Spot(row["difference"], *row["interval"], **look)
