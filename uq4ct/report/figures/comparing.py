"""Methods beside each other: differences from a baseline, raw beside temperature-scaled, and what a shift costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from uq4ct.report.differences import is_established
from uq4ct.report.drawing import SHAPES, plain_number
from uq4ct.report.figures.base import Figure, Panel
from uq4ct.report.figures.rows import Spot, Track, chart
from uq4ct.report.figures.selective import percent_tick
from uq4ct.report.material import Series
from uq4ct.report.tables import decimals, percent

Json = Mapping[str, Any]
SHOWN = {
    "nll": "NLL",
    "brier": "Brier",
    "accuracy": "accuracy, points",
    "ece": "ECE, points",
    "auroc": "AUROC",
    "augrc": "AUGRC",
}
SHIFTED = (("accuracy", "accuracy, %", "higher"), ("ece", "ECE, %", "lower"), ("nll", "NLL", "lower"))
SHARES = ("accuracy", "ece", "smooth_ece", "confidence")  # printed in per cent


def forest(task: str, rows: Sequence[Json], baseline: str) -> Figure | None:
    """Draw paired differences from the baseline with their intervals, a column per metric; None where there is none."""
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    metrics = [name for name in SHOWN if any(row["metric"] == name for row in rows)]
    if not methods or not metrics:
        return None
    found = {(str(row["method"]), row["metric"]): row for row in rows}
    tracks = [_differences(name, [found.get((method, name)) for method in methods]) for name in metrics]
    drawing = chart(methods, tracks, _forest_key(rows))
    told = ", ".join(
        f"{m}: {SHOWN[k]} {signed(found[m, k]['difference'], k)}" for m in methods for k in metrics if (m, k) in found
    )
    return Figure(
        "differences", task, f"Differences from {baseline} on {task}", (Panel("", drawing, told),), tuple(rows)
    )


def _forest_key(rows: Sequence[Json]) -> tuple[tuple[Spot, str], ...]:
    doubts = "interval holds 0, or p > 0.05 after Holm's correction"
    doubts += ", or 0 within errors clustered by group" if has_groups(rows) else ""
    return (
        (Spot(0, colour="right"), "better than the baseline"),
        (Spot(0, colour="wrong", shape="square"), "worse"),
        (Spot(0, colour="muted", hollow=True), f"not established: {doubts}"),
    )


def has_groups(rows: Sequence[Json]) -> bool:
    """Tell whether a difference has a standard error clustered by group."""
    return any(row.get("clustered_se") is not None for row in rows)


def _differences(name: str, rows: Sequence[Json | None]) -> Track:
    better = next((str(row["better"]) for row in rows if row and row.get("better")), "")
    texts = [signed(row["difference"], name) if row else "–" for row in rows]
    spots = [[_difference(row)] if row else [] for row in rows]
    show = percent_tick if name in SHARES else plain_number
    side = better if better in ("lower", "higher") else ""
    return Track(SHOWN[name], spots, zero=0.0, better=side, texts=texts, show=show, width=104)


def _difference(row: Json) -> Spot:
    low, high = row.get("interval") or (None, None)
    if not is_established(row):
        return Spot(row["difference"], low, high, hollow=True, colour="muted")
    good = (row["difference"] < 0) == (row.get("better") == "lower")
    return Spot(row["difference"], low, high, shape="circle" if good else "square", colour="right" if good else "wrong")


def signed(value: float, name: str) -> str:
    """Print a difference with its sign, in points where the metric is a share."""
    text = (percent if name in SHARES else decimals)(abs(value))
    return text if not text.strip("0.") else f"{'+' if value > 0 else '−'}{text}"


class Scaled(NamedTuple):
    """A method before and after temperature scaling: NLL and ECE over seeds, and the temperatures of the seeds."""

    label: str
    raw: Mapping[str, float]
    scaled: Mapping[str, float]
    temperatures: tuple[float, ...]
    questions: int  # of the calibration split
    fitted_here: bool


def scaling(task: str, entries: Sequence[Scaled]) -> Figure:
    """Draw NLL and ECE before (hollow) and after (filled) temperature scaling, and print T."""
    tracks = [
        Track(
            title,
            [[Spot(e.raw[name], hollow=True, colour="muted"), Spot(e.scaled[name])] for e in entries],
            better="lower",
            joined=True,
            texts=[f"{show(e.raw[name])} → {show(e.scaled[name])}" for e in entries],
            show=percent_tick if name in SHARES else plain_number,
            width=190,
        )
        for name, title, show in (("nll", "NLL", decimals), ("ece", "ECE, %", percent))
    ]
    temperatures = [[Spot(t, hollow=len(e.temperatures) > 1) for t in e.temperatures] for e in entries]
    texts = [f"{sum(e.temperatures) / len(e.temperatures):.2f}" for e in entries]
    tracks.append(Track("temperature T", temperatures, zero=1.0, texts=texts, width=120))
    key = ((Spot(0, hollow=True, colour="muted"), "raw"), (Spot(0), "temperature-scaled"))
    told = ", ".join(f"{e.label}: NLL {decimals(e.raw['nll'])} to {decimals(e.scaled['nll'])}" for e in entries)
    numbers = tuple(
        {"method": e.label, "task": task, "calibration_questions": e.questions, "fitted_here": e.fitted_here}
        | {f"{when}_{name}": part[name] for when, part in (("raw", e.raw), ("scaled", e.scaled)) for name in part}
        | {"temperature": sum(e.temperatures) / len(e.temperatures)}
        for e in entries
    )
    panel = Panel("", chart([e.label for e in entries], tracks, key), told)
    return Figure("scaling", task, f"Raw and temperature-scaled on {task}", (panel,), numbers)


def shift(
    home: str, shifted: Sequence[str], labels: Sequence[str], series: Sequence[Series], found: Sequence[Json]
) -> Figure:
    """Draw each method on the task it was fitted on (filled) and on shifted ones, and how well it tells them apart.

    ``found`` holds rows {method, shifted, auroc, interval}: the chance that a question of the home task gets the higher
    confidence.
    """
    looks = dict(zip(shifted, [*SHAPES[1:], *SHAPES[1:]], strict=False))
    at = {(one.label, one.task): one for one in series}
    tracks = [
        Track(
            title,
            [_over_tasks(at, label, home, looks, name) for label in labels],
            better=better,
            joined=True,
            show=percent_tick if name in SHARES else plain_number,
        )
        for name, title, better in SHIFTED
    ]
    if found:
        rows = [[_detected(row, looks) for row in found if str(row["method"]) == label] for label in labels]
        tracks.append(Track("detection AUROC", rows, zero=0.5, better="higher"))
    key = [(Spot(0), f"{home} (fitted on)")]
    key += [(Spot(0, hollow=True, shape=look, colour="ink"), task) for task, look in looks.items()]
    numbers: list[dict[str, Any]] = [
        {"method": label, "task": task, **{k: at[label, task].value(k) for k in ("accuracy", "ece", "nll")}}
        for label in labels
        for task in (home, *shifted)
        if (label, task) in at
    ]
    numbers += [{**row, "task": row["shifted"]} for row in found]
    told = ", ".join(
        f"{n['method']} on {n['task']}: ECE {percent(n['ece'])} %" for n in numbers if n.get("ece") is not None
    )
    panel = Panel("", chart(labels, tracks, key), told)
    return Figure("shift", home, f"{home} and shifted tasks", (panel,), tuple(numbers))


def _over_tasks(at: Mapping[Any, Series], label: str, home: str, looks: Mapping[str, Any], name: str) -> list[Spot]:
    spots = [
        Spot(value, hollow=True, shape=look, colour="ink")
        for task, look in looks.items()
        if (label, task) in at and (value := at[label, task].value(name)) is not None
    ]
    own = at[label, home].value(name) if (label, home) in at else None
    return spots + ([] if own is None else [Spot(own)])


def _detected(row: Json, looks: Mapping[str, Any]) -> Spot:
    low, high = row.get("interval") or (None, None)
    if len(looks) > 1:  # intervals of several tasks on one line hide each other; a table has them
        low = high = None
    return Spot(row["auroc"], low, high, hollow=True, shape=looks[row["shifted"]], colour="ink")
