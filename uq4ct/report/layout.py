"""The results in the paper's layout, metrics and methods down and tasks across: Markdown and LaTeX; all numbers as csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator

from uq4ct.report.material import Material, Series
from uq4ct.report.tables import COLUMNS, Column, markdown_text, spreadsheet_text, tex_text

Cell = tuple[str, str, bool]  # value, deviation over seeds, whether it leads


def markdown(material: Material) -> str:
    """Return a Markdown table: ``mean ±sd``, the leading value of a column in bold."""
    header = ["metric", "method", *(markdown_text(task) for task in material.tasks)]
    lines = ["| " + " | ".join(header) + " |", "|:---|:---|" + "---:|" * len(material.tasks)]
    for metric, method, cells in _rows(material):
        shown = [_styled(cell, "**{}**", " ±{}") for cell in cells]
        lines.append("| " + " | ".join([metric, markdown_text(method), *shown]) + " |")
    return "\n".join([*lines, "", *map(markdown_text, notes(material))]) + "\n"


def latex(material: Material) -> str:
    """Return a LaTeX table, deviations as subscripts; needs booktabs."""
    tasks = " & ".join(map(tex_text, material.tasks))
    lines = [f"% {tex_text(note)}" for note in notes(material)]
    lines += [rf"\begin{{tabular}}{{ll{'r' * len(material.tasks)}}}", r"\toprule", rf"Metric & Method & {tasks} \\"]
    for metric, method, cells in _rows(material):
        if metric:
            lines.append(r"\midrule")
        shown = [_tex(cell) for cell in cells]
        lines.append(" & ".join([_arrowed(metric), tex_text(method), *shown]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def spreadsheet(material: Material) -> str:
    """Return every number, unrounded: a line per task, method and metric."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["task", "method", "metric", "mean", "sd", "low", "high", "n", "seeds"])
    for series in material.series:
        for column in COLUMNS:
            if (value := series.value(column.key)) is not None:
                low, high = series.interval(column.key) or ("", "")
                deviation = series.deviation(column.key)
                names = [spreadsheet_text(series.task), spreadsheet_text(series.label), column.key]
                facts = [value, "" if deviation is None else deviation, low, high, series.n, len(series.members)]
                writer.writerow([*names, *facts])
    return buffer.getvalue()


def notes(material: Material) -> list[str]:
    """Say below a table how its numbers were made."""
    settings = material.settings
    counts = ", ".join(f"{task} {material.of_task(task)[0].n:,}" for task in material.tasks)
    seeds = max(len(series.members) for series in material.series)
    spread = f"; mean and standard deviation over {seeds} seeds" if seeds > 1 else ""
    return [
        f"ECE: {settings['bins']} bins, {settings['binning']}; questions: {counts}{spread}; leading values in bold."
    ]


def _rows(material: Material) -> Iterator[tuple[str, str, list[Cell]]]:
    """Yield the metric (in the first line of its block), the method, and a cell for each task."""
    for column in COLUMNS:
        best = {task: _best(column, material.of_task(task)) for task in material.tasks}
        for place, label in enumerate(material.labels):
            found = [(task, material.find(label, task)) for task in material.tasks]
            yield _title(column) if place == 0 else "", label, [_cell(column, one, best[task]) for task, one in found]


def _title(column: Column) -> str:
    arrow = {"higher": " ↑", "lower": " ↓"}.get(column.better, "")
    return f"{column.title}{arrow}"


def _best(column: Column, series: tuple[Series, ...]) -> str | None:
    values = [value for one in series if (value := one.value(column.key)) is not None]
    if len(values) < 2 or column.better == "none":
        return None
    choose: Callable[[list[float]], float] = max if column.better == "higher" else min
    return column.show(choose(values))


def _cell(column: Column, series: Series | None, best: str | None) -> Cell:
    value = series.value(column.key) if series else None
    if series is None or value is None:
        return "–", "", False
    deviation = series.deviation(column.key)
    return column.show(value), "" if deviation is None else column.show(deviation), column.show(value) == best


def _styled(cell: Cell, bold: str, deviation: str) -> str:
    value, spread, leads = cell
    return (bold.format(value) if leads else value) + (deviation.format(spread) if spread else "")


def _tex(cell: Cell) -> str:
    value, spread, leads = cell
    if value == "–":
        return "--"
    shown = rf"\mathbf{{{value}}}" if leads else value
    return f"${shown}_{{{spread}}}$" if spread else f"${shown}$"


def _arrowed(metric: str) -> str:
    return tex_text(metric).replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$")
