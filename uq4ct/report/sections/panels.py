"""Panels of one method each: reliability, risk and coverage, confidence by right and wrong, letters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from uq4ct.report.blocks import Drawn, Group, Section
from uq4ct.report.figures import letters as letter_figures
from uq4ct.report.figures import reliability as reliability_figures
from uq4ct.report.figures import selective
from uq4ct.report.figures.base import Figure
from uq4ct.report.figures.comparing import signed
from uq4ct.report.material import Material, Series
from uq4ct.report.sections.verdict import standing
from uq4ct.report.tables import decimals, percent


def reliability(material: Material) -> Section:
    """Show accuracy over confidence by bin."""

    def of(task: str, series: Sequence[Series]) -> Figure:
        figure = reliability_figures.reliability(task, series)
        captions = [f"ECE {percent(one.result['ece'])} %, {standing(one).words}" for one in series]
        panels = tuple(replace(p, caption=c) for p, c in zip(figure.panels, captions, strict=True))
        return replace(figure, panels=panels)

    seeds = " Rings are single seeds; counts are means over seeds." if material.has_seeds else ""
    intro = (
        "Of the answers given with about 80 % confidence, are 80 % right? Bars and dots: accuracy by bin with Wilson "
        "95 % intervals; grey: where a perfectly calibrated model's accuracy would lie; dashed: confidence equals "
        "accuracy. Dots below the dashed line are overconfident. Below: answers by bin, the fullest with its count; "
        f"empty bins are not drawn.{seeds}"
    )
    return Section("reliability", "Reliability", "Reliability", intro, _by_task(material, of))


def risk(material: Material) -> Section:
    """Show the error rate of the surest answers."""

    def of(task: str, series: Sequence[Series]) -> Figure:
        figure = selective.risk_coverage(task, series)
        captions = [_ranked(one) for one in series]
        panels = tuple(replace(p, caption=c) for p, c in zip(figure.panels, captions, strict=True))
        return replace(figure, panels=panels)

    shade = ", in the shade of the seeds' range" if material.has_seeds else ""
    others = "; grey: the other methods, or their range" if len(material.labels) > 1 else ""
    intro = (
        f"Answer only the surest questions: how often is that wrong? Blue: the method{shade}{others}; dashed: the "
        "oracle, which answers what it gets right first; dotted: a confidence that ranks nothing. AUROC is the chance "
        "that a right answer is surer than a wrong one."
    )
    return Section("risk", "Risk and coverage", "Risk and coverage", intro, _by_task(material, of))


def _ranked(series: Series) -> str:
    value, ends = series.value("auroc"), series.interval("auroc")
    if value is None:
        return (series.result.get("reasons") or {}).get("auroc", "AUROC is undefined")
    interval = f" ({decimals(ends[0])} – {decimals(ends[1])})" if ends else ""
    tables = [member.metrics.get("accuracy_at_coverage") or {} for member in series.members]
    at = [float(found["0.8"]) for found in tables if found.get("0.8") is not None]
    kept = f"; surest 80 %: {percent(float(np.mean(at)))} % right" if len(at) == len(tables) else ""
    return f"AUROC {decimals(value)}{interval}{kept}"


def confidence(material: Material) -> Section:
    """Show confidence by right and wrong answers."""

    def of(task: str, series: Sequence[Series]) -> Figure:
        figure = selective.right_and_wrong(task, series)
        panels = tuple(replace(p, caption=_means(one)) for p, one in zip(figure.panels, series, strict=True))
        return replace(figure, panels=panels)

    intro = (
        "Right answers upwards, wrong ones downwards. A useful confidence puts the wrong ones to the left; wrong "
        "answers at the right end are those that no threshold catches."
    )
    return Section(
        "confidence", "Right and wrong", "Confidence when right and when wrong", intro, _by_task(material, of)
    )


def _means(series: Series) -> str:
    parts = []
    for what, which in (("right", 1), ("wrong", 0)):
        chosen = [m.answers.confidence[m.answers.correct == which] for m in series.members]
        values = np.concatenate(chosen)
        parts.append(f"{percent(float(values.mean()))} % when {what}" if len(values) else f"none {what}")
    return f"mean {', '.join(parts)}"


def letters(material: Material) -> Section | str:
    """Show which letters are chosen and which are right."""

    def of(task: str, series: Sequence[Series]) -> Figure | None:
        known = [one for one in series if letter_figures.letter_shares(one)]
        if not known:
            return None
        figure = letter_figures.letters(task, known)
        panels = tuple(replace(p, caption=_letter_words(one)) for p, one in zip(figure.panels, known, strict=True))
        return replace(figure, panels=panels)

    groups = _by_task(material, of)
    if not groups:
        return "Letter priors: the answers are confidences without the choices."
    intro = (
        "Bars: letters that the method chose; lines: letters of the right answers. A letter that is chosen much more "
        "often than it is right is a prior of the model, not knowledge."
    )
    return Section("letters", "Letters", "Letter priors", intro, groups)


def _letter_words(series: Series) -> str:
    name, predicted, gold = max(letter_figures.letter_shares(series), key=lambda row: abs(row[1] - row[2]))
    mass = series.value("letter_mass")
    told = "" if mass is None else f"; probability on letters {decimals(mass)}"
    return f"largest gap {signed(predicted - gold, 'accuracy')} points at {name}{told}"


def _by_task(material: Material, of: Callable[[str, Sequence[Series]], Figure | None]) -> tuple[Group, ...]:
    figures = [(task, of(task, material.of_task(task))) for task in material.tasks]
    return tuple(Group(task, (Drawn(figure),)) for task, figure in figures if figure is not None)
