"""What the router knows: FEU by right and wrong and by kind of question, tests of its use, expert load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from uq4ct.report.blocks import Cell, Drawn, Group, Section, Table
from uq4ct.report.figures import router
from uq4ct.report.material import Json, Material, Series
from uq4ct.report.tables import decimals


def feu(material: Material) -> Section | str:
    if not any(series.has_feu for series in material.series):
        return "FEU and expert load: no method here has a router."
    groups = []
    for task in material.tasks:
        having = [series for series in material.of_task(task) if series.has_feu]
        if not having:
            continue
        figure = router.feu_of(task, having)
        panels = tuple(replace(p, caption=_feu_words(one)) for p, one in zip(figure.panels, having, strict=True))
        strata = router.feu_by_stratum(task, having)
        groups.append(Group(task, (Drawn(replace(figure, panels=panels)), *([Drawn(strata)] if strata else []))))
    if useful := [row for row in material.rows("feu_usefulness") if row.get("method") in material.labels]:
        groups.append(Group("Is FEU of use beside the confidence?", (_anything(useful),)))
    if loads := router.load(material.runs):
        groups.append(Group("Expert load by layer", (Drawn(loads),)))
    intro = (
        "FEU (Eq. 9) is the routing mass of the chosen experts. Despite its name it is a confidence: large means "
        "certain. Right answers upwards, wrong ones downwards. It is of use where its AUROC is well above 0.5, and "
        "new where it adds to the confidence."
    )
    return Section("feu", "FEU", "FEU: what the router knows", intro, tuple(groups))


def _feu_words(series: Series) -> str:
    pieces = []
    for key, what in (("feu", "mean"), ("feu_auroc", "AUROC"), ("auroc", "confidence's AUROC")):
        value, ends = series.value(key), series.interval(key)
        interval = f" ({decimals(ends[0])} – {decimals(ends[1])})" if ends and key == "feu_auroc" else ""
        pieces.append(f"{what} {decimals(value)}{interval}" if value is not None else f"{what} undefined")
    return ", ".join(pieces)


def _anything(rows: Sequence[Json]) -> Table:
    """Print rows of plain values as they are: numbers with three digits, intervals as ranges."""
    keys = [key for key in dict.fromkeys(k for row in rows for k in row) if any(_plain(row.get(key)) for row in rows)]
    cells = tuple(tuple(_value(row.get(key)) for key in keys) for row in rows)
    return Table(
        "Tests of FEU, a confidence, beside the probability of the answer",
        tuple(k.replace("_", " ") for k in keys),
        cells,
    )


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if 0 < abs(value) < 0.001 else decimals(value)
    if isinstance(value, list):
        return " – ".join(map(_plain, value))
    return "" if value is None or isinstance(value, dict) else str(value)


def _value(value: object) -> Cell:
    return Cell(_plain(value) or "–", words=isinstance(value, str | bool))
