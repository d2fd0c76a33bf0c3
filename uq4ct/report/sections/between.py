"""Methods against each other: differences from a baseline, raw and temperature-scaled, and under shift."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from uq4ct.metrics.answers import Undefined
from uq4ct.metrics.selective import auroc
from uq4ct.report.blocks import Block, Cell, Drawn, Group, Section, Table, listed, number, said
from uq4ct.report.figures import comparing
from uq4ct.report.material import Json, Material, Series
from uq4ct.report.scaling import scaled
from uq4ct.report.tables import decimals, percent


def differences(material: Material) -> Section | str:
    """Show each method minus its baseline, with what that amounts to."""
    rows = [row for row in material.rows("differences") if row.get("difference") is not None]
    if not rows:
        one = len(material.labels) < 2
        why = (
            "one method only"
            if one
            else "they come with the results.json of `uq4ct compare`, which pairs seeds and questions"
        )
        return f"Differences from a baseline: {why}."
    baseline = material.comparison.baseline if material.comparison else ""
    groups = []
    for task in material.tasks:
        here = [row for row in rows if row.get("task") == task and row.get("method") in material.labels]
        figure = comparing.forest(task, here, baseline)
        if figure is not None:
            said_of = _verdicts(task, material)
            groups.append(Group(task, (Drawn(figure), *([said_of] if said_of else []))))
    others = dict.fromkeys(str(row["baseline"]) for row in rows if row.get("baseline") not in (None, baseline))
    suffix = (
        f" A method with a suffix is compared with the baseline under it, {listed(list(others))}." if others else ""
    )
    groups_too = (
        " Where questions come in groups, NLL and Brier have to leave out 0 with errors clustered by group, too."
        if comparing.has_groups(rows)
        else ""
    )
    intro = (
        f"Paired: the same seeds and questions, minus {baseline}.{suffix} Filled marks are differences whose interval "
        "leaves out 0 and whose p is at most 0.05 after Holm's correction over tasks; hollow ones may be nothing."
        f"{groups_too}"
    )
    return Section("differences", "Differences", f"Differences from {baseline}", intro, tuple(groups))


def _verdicts(task: str, material: Material) -> Table | None:
    rows = [
        row for row in material.rows("verdicts") if row.get("task") == task and row.get("method") in material.labels
    ]
    if not rows:
        return None
    cells = tuple(
        (
            said(str(row["method"])),
            said(str(row.get("verdict") or "–")),
            said(str(row.get("baseline") or "–")),
            said(str(row.get("reason") or "")),
        )
        for row in rows
    )
    return Table(f"What that amounts to on {task}", ("method", "verdict", "against", "why"), cells)


def scaling(material: Material) -> Section | str:
    """Show what one temperature does to NLL and ECE."""
    entries = scaled(material)
    if not entries:
        return "Temperature scaling: no method with the suffix +temperature, and no run that keeps a calibration split."
    groups = tuple(Group(task, (Drawn(comparing.scaling(task, rows)),)) for task, rows in entries.items())
    here = sorted({entry.label for rows in entries.values() for entry in rows if entry.fitted_here})
    fresh = f" For {listed(here)} it was fitted for this page; NLL and ECE are then without intervals." if here else ""
    intro = (
        "One number, T, fitted by NLL on the calibration split and kept on shifted tasks: above 1 it makes answers "
        "less certain, below 1 more; it changes no answer. Much of what a method gains in ECE over another may be had "
        f"by it.{fresh}"
    )
    return Section("scaling", "Temperature", "Raw and temperature-scaled", intro, groups)


def shift(material: Material) -> Section | str:
    """Show what a shift costs, and whether it is noticed."""
    home = material.fitted_on
    shifted = [task for task in material.tasks if task != home]
    if not home or not shifted:
        return "Shift: needs runs of one training task, evaluated on it and on another."
    labels = [label for label in material.labels if material.find(label, home)]
    found = _detection(material, home, shifted, labels)
    blocks: list[Block] = [Drawn(comparing.shift(home, shifted, labels, material.series, found))]
    told = [row for row in material.rows("shift_detection") if row.get("method") in material.labels]
    known = [row for row in told if row.get("auroc") is not None]
    if known:
        blocks.append(_detected(known))
    own = "" if known else ", computed for this page without an interval"
    counts = (
        " In the table length and unseen (the share of tokens that the training has not) need no model: they are what "
        "the other scores have to beat."
        if {"length", "unseen"} <= {row.get("score") for row in known}
        else ""
    )
    intro = (
        f"Filled: the task that was fitted on; hollow: shifted tasks, one shape each. Detection AUROC{own}: the chance "
        f"that a question of {home} gets a higher confidence than a shifted one; 0.5 is blind. Accuracy falls under "
        f"shift; confidence should fall with it.{counts}"
    )
    return Section("shift", "Shift", "Under distribution shift", intro, (Group("", tuple(blocks)),))


def _detection(material: Material, home: str, shifted: Sequence[str], labels: Sequence[str]) -> list[Json]:
    """Return detection by confidence: from the comparison, else computed."""
    known = [
        row
        for row in material.rows("shift_detection")
        if row.get("shifted") in shifted and row.get("auroc") is not None
    ]
    if known:
        scores = [str(row.get("score")) for row in known]
        score = next((name for name in ("confidence", "max_probability") if name in scores), scores[0])
        return [row for row in known if str(row.get("score")) == score and row.get("method") in labels]
    rows: list[Json] = []
    for label in labels:
        for task in shifted:
            one, other = material.find(label, home), material.find(label, task)
            if one and other and (value := _told_apart(one, other)) is not None:
                rows.append(
                    {"method": label, "in_distribution": home, "shifted": task, "score": "confidence", "auroc": value}
                )
    return rows


def _told_apart(home: Series, shifted: Series) -> float | None:
    away = {member.seed: member.answers.confidence for member in shifted.members}
    pairs = [(m.answers.confidence, away[m.seed]) for m in home.members if m.seed in away]
    try:
        values = [auroc(np.concatenate(pair), np.repeat([1.0, 0.0], [len(part) for part in pair])) for pair in pairs]
    except Undefined:
        return None
    return float(np.mean(values)) if values else None


def _detected(rows: Sequence[Json]) -> Table:
    """Print the AUROC of every score that a method has; FPR stands for the first score."""
    known = [row for row in rows if row.get("auroc") is not None]
    scores = list(dict.fromkeys(str(row.get("score")) for row in known))
    by_pair: dict[tuple[str, str], dict[str, Json]] = {}
    for row in known:
        by_pair.setdefault((str(row["method"]), str(row["shifted"])), {})[str(row.get("score"))] = row
    cells = []
    for (method, task), found in by_pair.items():
        aurocs = [_auroc(found[score]) if score in found else Cell("–") for score in scores]
        cells.append((said(method), said(task), *aurocs, number(found.get(scores[0]) or {}, "fpr95", percent)))
    header = ["method", "shifted task", *(f"AUROC of {name.replace('_', ' ')}" for name in scores)]
    header.append(f"FPR at 95 % recall, %, of {scores[0].replace('_', ' ')}")
    caption = "How well each score tells a shifted question from one of the training task"
    return Table(caption, tuple(header), tuple(cells), hidden_caption=True, folded=True)


def _auroc(row: Json) -> Cell:
    return number({**row, "intervals": {"auroc": row.get("interval")}}, "auroc", decimals)
