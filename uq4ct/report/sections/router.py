"""What the router knows: FEU by right and wrong and by kind of question, tests of its use, expert load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from uq4ct.report.blocks import Cell, Drawn, Group, Section, Table, number, said
from uq4ct.report.figures import router
from uq4ct.report.material import Json, Material, Series
from uq4ct.report.tables import decimals


def feu(material: Material) -> Section | str:
    """Show FEU by right and wrong and by kind of question, its tests, and the load of the experts."""
    if not any(series.has_feu for series in material.series):
        return "FEU and expert load: no method here has a router."
    groups = []
    for task in material.tasks:
        having = [one for one in material.of_task(task) if one.has_feu and not material.is_variant(one.label)]
        if not having:
            continue
        figure = router.feu_of(task, having)
        panels = tuple(replace(p, caption=_feu_words(one)) for p, one in zip(figure.panels, having, strict=True))
        strata = router.feu_by_stratum(task, having)
        groups.append(Group(task, (Drawn(replace(figure, panels=panels)), *([Drawn(strata)] if strata else []))))
    if useful := [row for row in material.rows("feu_usefulness") if row.get("method") in material.labels]:
        groups.append(Group("Is FEU of use beside the confidence?", (_tests(useful),)))
    if loads := router.load([run for run in material.runs if not material.is_variant(run.label)]):
        groups.append(Group("Expert load by layer", (Drawn(loads),)))
    suffix = " A suffix, as +temperature, leaves FEU as it is." if material.has_variants else ""
    intro = (
        "FEU (Eq. 9) is the routing mass of the chosen experts. Despite its name it is a confidence: large means "
        "certain. Right answers upwards, wrong ones downwards. It is of use where its AUROC is well above 0.5, and "
        f"new where it adds to the confidence.{suffix}"
    )
    return Section("feu", "FEU", "FEU: what the router knows", intro, tuple(groups))


def _feu_words(series: Series) -> str:
    pieces = []
    for key, what in (("feu", "mean"), ("feu_auroc", "AUROC"), ("auroc", "confidence's AUROC")):
        value, ends = series.value(key), series.interval(key)
        interval = f" ({decimals(ends[0])} – {decimals(ends[1])})" if ends and key == "feu_auroc" else ""
        pieces.append(f"{what} {decimals(value)}{interval}" if value is not None else f"{what} undefined")
    return ", ".join(pieces)


def _tests(rows: Sequence[Json]) -> Table:
    """Print whether FEU says more of correctness than the confidence does; cells say what is undefined."""
    cells = []
    for row in rows:
        added = row.get("added_value") if isinstance(row.get("added_value"), Mapping) else {}
        p, low = (added or {}).get("p"), row.get("shuffled_interval")
        cells.append(
            (
                said(str(row.get("method"))),
                said(str(row.get("task"))),
                number({**row, "intervals": {"feu_auroc": row.get("interval")}}, "feu_auroc", decimals),
                number(row, "max_probability_auroc", decimals),
                number(added or {}, "coefficient", decimals),
                Cell("–", str((added or {}).get("reason") or ""))
                if p is None
                else Cell("<0.001" if p < 0.001 else decimals(p)),
                number({**row, "intervals": {"shuffled_auroc": low}}, "shuffled_auroc", decimals),
                number(row, "beta_zero_feu_auroc", decimals),
            )
        )
    header = (
        "method",
        "task",
        "AUROC of FEU",
        "AUROC of the confidence",
        "what FEU adds, log-odds per sd",
        "p",
        "FEU shuffled, AUROC",
        "without the calibration loss, AUROC of FEU",
    )
    return Table("Tests of FEU, a confidence, beside the probability of the answer", header, tuple(cells))
