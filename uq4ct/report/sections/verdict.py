"""Which confidence can be trusted, and by how much: the first screen, and the table of each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from uq4ct.metrics.null_band import without_direction
from uq4ct.report.blocks import Cell, Group, Section, Table, listed, number, said
from uq4ct.report.differences import is_established
from uq4ct.report.drawing import Drawing, Plane, inline_svg
from uq4ct.report.figures.comparing import signed
from uq4ct.report.material import Json, Material, Series
from uq4ct.report.tables import COLUMNS, Column, decimals, percent

NAMED = 4  # more methods are counted
CALIBRATED = "not distinguishable from calibrated"
MIXED = "the methods answered different questions (ids or right answers differ)"


class Standing(NamedTuple):
    """What ECE shows beside its null band."""

    words: str
    calibrated: bool


def standing(series: Series) -> Standing:
    """Say whether ECE lies inside the null band, and in which direction confidence errs where that is established.

    Over several seeds the mean ECE is held against the mean band, and it is said where single seeds disagree.
    """
    inside = series.result["ece"] <= series.result["ece_null"]["high"]
    seeds = sum(m.metrics["ece"] <= m.metrics["ece_null"]["high"] for m in series.members)
    gap = series.value("signed_gap") or 0.0
    low, high = series.interval("signed_gap") or (0.0, 0.0)
    errs = f"{'over' if gap > 0 else 'under'}confident by {percent(abs(gap))} points" if low > 0 or high < 0 else ""
    if inside:
        outside = len(series.members) - seeds
        some = f" (outside the band in {outside} of {len(series.members)} seeds)" if outside else ""
        return Standing(f"{CALIBRATED}{some}{f', yet on average {errs}' if errs else ''}", True)
    some = f" (inside the band in {seeds} of {len(series.members)} seeds)" if seeds else ""
    errs = errs or without_direction(series.interval("overconfidence"), series.interval("underconfidence"))
    return Standing(f"{errs}{some}", False)


# ----------------------------------------------------------------------------------------------------- the first screen


def headline(material: Material) -> list[str]:
    """Return the answer in sentences: who leads, how far its confidence can be trusted, here and under shift.

    Nobody leads where the methods answered different questions; each is then described by itself.
    """
    home = material.fitted_on or material.tasks[0]
    if home in material.mixed:
        return [f"On {home} {MIXED}: no ranking.", *_each(material.of_task(home))]
    ranked = by_nll(material.of_task(home))
    best = ranked[0]
    return [*_lead(material, home, ranked), _trust(best), *_peers(ranked), *_elsewhere(material, home, best)]


def by_nll(series: Sequence[Series]) -> list[Series]:
    """Sort methods by NLL, a proper score: nothing but honest probabilities lowers it; undefined last."""
    return sorted(series, key=lambda one: (one.value("nll") is None, one.value("nll") or 0.0))


def _lead(material: Material, home: str, ranked: Sequence[Series]) -> list[str]:
    best = ranked[0]
    seeds = f", {len(best.members)} seeds" if len(best.members) > 1 else ""
    asked = f"{home} ({best.n:,} questions{seeds})"
    right = f"{percent(best.result['accuracy'])} % right"
    if len(ranked) == 1 or best.value("nll") is None:
        sure = percent(best.result["confidence"])
        return [f"On {asked} {best.label} is {sure} % sure on average, and {right}."]
    ends = best.interval("nll")
    interval = f" ({decimals(ends[0])} – {decimals(ends[1])})" if ends else ""
    lead = f"On {asked} {best.label} has the lowest NLL, {decimals(best.result['nll'])}{interval}, with {right}"
    row = _difference(material, best.label, home)
    if row is not None:
        low, high = row.get("interval") or (None, None)
        span = "" if low is None or high is None else f" ({signed(low, 'nll')} to {signed(high, 'nll')})"
        proof = "" if is_established(row) else ", which is not established"
        return [f"{lead}; against {row['baseline']} that is {signed(row['difference'], 'nll')}{span}{proof}."]
    return [f"{lead}.", *_overlap(ranked)]


def _overlap(ranked: Sequence[Series]) -> list[str]:
    ends = ranked[0].interval("nll")
    close = [s.label for s in ranked[1:] if ends and (other := s.interval("nll")) and other[0] <= ends[1]]
    if not close:
        return []
    if len(close) <= NAMED:
        return [f"The {'interval' if len(close) == 1 else 'intervals'} of {listed(close)} overlap with it: no ranking."]
    return [f"The intervals of {len(close)} of the {len(ranked) - 1} others overlap with it: no ranking."]


def _each(series: Sequence[Series]) -> list[str]:
    """Describe each method by itself; of many, how many are calibrated."""
    if len(series) > NAMED:
        return _peers(series)
    return [
        f"{one.label} is {percent(one.result['accuracy'])} % right on its {one.n:,} questions. {_trust(one)}"
        for one in series
    ]


def _trust(best: Series) -> str:
    null = best.result["ece_null"]
    return (
        f"Its ECE is {percent(best.result['ece'])} %; a perfectly calibrated model would show "
        f"{percent(null['low'])} – {percent(null['high'])} %: {standing(best).words}."
    )


def _peers(ranked: Sequence[Series]) -> list[str]:
    if len(ranked) < 3:
        return []
    fine = [series.label for series in ranked if standing(series).calibrated]
    if not fine:
        return [f"None of the {len(ranked)} methods is free of visible miscalibration here."]
    names = f": {listed(fine)}" if len(fine) <= NAMED else ""
    return [f"By ECE, {len(fine)} of {len(ranked)} methods are {CALIBRATED} here{names}."]


def _elsewhere(material: Material, home: str, best: Series) -> list[str]:
    others = [s for s in material.series if s.label == best.label and s.task != home]
    if not others:
        return []
    worst = max(others, key=lambda series: series.result["ece"])
    return [f"Elsewhere its ECE is highest on {worst.task}: {percent(worst.result['ece'])} %, {standing(worst).words}."]


def _difference(material: Material, label: str, task: str) -> Json | None:
    for row in material.rows("differences"):
        if (row.get("method"), row.get("task"), row.get("metric")) == (label, task, "nll"):
            return row if row.get("difference") is not None else None
    return None


def overview(material: Material) -> Table:
    """Return all methods on all tasks at one glance, the lowest NLL first where it can be: ECE over its null band."""
    home = material.fitted_on or material.tasks[0]
    mixed = home in material.mixed
    order = [] if mixed else [series.label for series in by_nll(material.of_task(home))]
    order += [label for label in material.labels if label not in order]
    scale = {task: _scale(material.of_task(task)) for task in material.tasks}
    verdicts = {str(row.get("method")): row for row in material.rows("verdicts") if row.get("task") == home}
    width = 132 if len(material.tasks) <= 4 else 92
    rows = []
    for label in order:
        cells = [said(label, _role(label, material, verdicts))]
        for task in material.tasks:
            series = material.find(label, task)
            cells.append(Cell("–") if series is None else _glance(series, scale[task], width))
        rows.append(tuple(cells))
    header = ("method", *(f"{task}, ECE %" for task in material.tasks))
    ranks = f"Not sorted: on {home} {MIXED}." if mixed else f"Sorted by NLL on {home}."
    caption = f"{ranks} Dot: ECE with its interval; grey: what a perfectly calibrated model would show."
    if verdicts and material.comparison:
        scaled = any(row.get("baseline") != material.comparison.baseline for row in verdicts.values())
        also = ", a scaled one against the scaled baseline" if scaled else ""
        caption += f" Below a name: how it fares against {material.comparison.baseline}{also}, on {home}."
    return Table(caption, header, tuple(rows))


def _role(label: str, material: Material, verdicts: dict[str, Json]) -> str:
    if material.comparison is not None and label == material.comparison.baseline:
        return "the baseline"
    return str(verdicts[label].get("verdict") or "") if label in verdicts else ""


def _glance(series: Series, scale: float, width: float) -> Cell:
    return Cell(percent(series.result["ece"]), "", svg=strip(series, scale, width))


def _scale(series: Sequence[Series]) -> float:
    """Return the end of a scale that shows every ECE and band; the interval of an ECE may go on beyond it."""
    highs = [max(one.result["ece"], one.result["ece_null"]["high"]) for one in series]
    return min(1.0, 1.3 * max(0.01, *highs))


def strip(series: Series, scale: float, width: float) -> Markup:
    """Draw ECE with its interval over its null band, from 0 to a scale; filled where it lies outside."""
    drawing = Drawing(width, 18)
    plane = Plane(drawing, 5, 2, width - 5, 16, (0, scale), (0, 1))
    null, ece = series.result["ece_null"], series.result["ece"]
    drawing.line(plane.at(0, 0.5), plane.at(scale, 0.5), colour="rule", width=1)
    drawing.boxes([plane.box(null["low"], 0, null["high"], 1)], colour="band")
    low, high = series.interval("ece") or (ece, ece)
    fine = standing(series)
    colour: Any = "ink" if fine.calibrated else "wrong"
    drawing.line(plane.at(low, 0.5), plane.at(high, 0.5), colour=colour, width=1.6)
    drawing.spots([plane.at(ece, 0.5)], radius=3.6, colour=colour, hollow=fine.calibrated)
    band = f"calibrated {percent(null['low'])} to {percent(null['high'])} %"
    title = f"{series.label} on {series.task}: ECE {percent(ece)} %, {band}, {fine.words}"
    return Markup(inline_svg(drawing, title))


# ------------------------------------------------------------------------------------------------------------ the table


def verdict(material: Material) -> Section:
    """Return the table of each task."""
    spread = " ± is the standard deviation over seeds." if material.has_seeds else ""
    level = f"{100 * material.settings['level']:g}"
    intro = (
        f"Each number with its {level} % interval below it.{spread} The strip shows ECE over the grey range in which "
        f"{level} % of perfectly calibrated models fall: a hollow dot inside it is no evidence of miscalibration. The "
        "leading value of a column is bold; where intervals overlap, that is no ranking."
    )
    groups = tuple(Group(task, (_table(task, material),), _asked(task, material)) for task in material.tasks)
    return Section("verdict", "Verdict", "Verdict by task", intro, groups)


def _asked(task: str, material: Material) -> str:
    series = material.of_task(task)
    first = series[0].members[0].metrics
    sizes = sorted({one.n for one in series})
    parts = [f"{listed([f'{n:,}' for n in sizes])} questions"]
    if task in material.mixed:
        return f"{parts[0]}; {MIXED}: no ranking, and nothing is bold"
    parts += [f"split {first['split']}"] if first.get("split") else []
    parts += [f"seeds {listed(seeds)}"] if len(seeds := _seeds(series)) > 1 else []
    parts += [f"guessing gets {percent(first['chance'])} %"] if first.get("chance") else []
    parts += [f"{first['unlabelled']:,} without a label are left out"] if first.get("unlabelled") else []
    return ", ".join(parts)


def _seeds(series: Sequence[Series]) -> list[str]:
    return list(dict.fromkeys(str(seed) for one in series for seed in one.seeds if seed is not None))


def _table(task: str, material: Material) -> Table:
    series = material.of_task(task)
    scale, rows = _scale(series), []
    best = {column.key: None if task in material.mixed else _best(column, series) for column in COLUMNS}
    wanted = max(len(one.members) for one in series)
    for one in series:
        partial = f"{len(one.members)} of {wanted} seeds" if len(one.members) < wanted else ""
        cells = [said(one.label, partial)]
        for column in COLUMNS:
            value = one.value(column.key)
            strong = value is not None and column.show(value) == best[column.key]
            cells.append(number(one.result, column.key, column.show, strong))
            if column.key == "ece":
                cells.append(Cell("", standing(one).words, svg=strip(one, scale, 150), words=True))
        rows.append(tuple(cells))
    header = ["method"]
    for column in COLUMNS:
        header += [column.title]
        header += [f"ECE over its null band, 0 to {percent(scale)} %"] if column.key == "ece" else []
    return Table(f"Metrics of each method on {task}", tuple(header), tuple(rows), hidden_caption=True)


def _best(column: Column, series: Sequence[Series]) -> str | None:
    """Return the printed value that leads, where there is something to compare."""
    values = [value for one in series if (value := one.value(column.key)) is not None]
    if len(values) < 2 or column.better == "none":
        return None
    return column.show(max(values) if column.better == "higher" else min(values))
