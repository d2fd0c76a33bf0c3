"""The paper's layout of a table, ours beside the paper's numbers: Markdown, LaTeX and csv."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import NamedTuple

from uq4ct.experiments import HIGHER_IS_BETTER, METRICS, Column, Experiment, Number

_DIGITS = {"ACC": 1, "ECE": 2}
_ARROWS = {"ACC": "↑", "ECE": "↓"}


@dataclass(frozen=True)
class Entry:
    """What was measured for one row and column.

    ``values`` maps our name of a metric to fractions, one per seed that came through, out of ``seeds``; ``state`` is
    shown where there are none.
    """

    values: Mapping[str, tuple[float, ...]]
    seeds: int
    state: str = "-"

    def number(self, metric: str) -> Number | None:
        """Return mean and sample standard deviation (n - 1) in per cent, as ``mean_sd``; None without any value.

        >>> Entry({"ece": (0.1, 0.12)}, seeds=3).number("ECE").text
        '11.00_1.41 (2/3)'
        """
        values = [100 * value for value in self.values.get(METRICS[metric], ())]
        if not values:
            return None
        mean, sd = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else float("nan")
        text = f"{mean:.{_DIGITS[metric]}f}" + (f"_{sd:.2f}" if len(values) > 1 else "")
        return Number(mean, sd, text + (f" ({len(values)}/{self.seeds})" if len(values) < self.seeds else ""))

    @property
    def complete(self) -> bool:
        """Tell whether every seed came through."""
        return all(len(self.values.get(name, ())) == self.seeds for name in METRICS.values())


Entries = Mapping[tuple[str, str], Entry]  # (row, title of the column) -> what was measured


class Cell(NamedTuple):
    """One cell as it is printed; ``best`` marks the best of its metric and column."""

    text: str
    best: bool = False


class Block(NamedTuple):
    """A table: its title, its header, lines of the same length, and how many leading columns name a line."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    labels: int


def blocks(experiment: Experiment, entries: Entries) -> list[Block]:
    """Lay out a table: ours and the paper's, one below the other or, for a single task, in one row."""
    paper = f"paper, {experiment.base_title}"
    if experiment.side_by_side:
        header = (experiment.row_title, *map(_titled, METRICS), *(f"{_titled(metric)} ({paper})" for metric in METRICS))
        ours = [_column(experiment, metric, 0, _measured(experiment, entries)) for metric in METRICS]
        theirs = [_column(experiment, metric, 0, _printed(experiment)) for metric in METRICS]
        rows = zip(experiment.methods, *ours, *theirs, strict=True)
        return [Block("", header, tuple((Cell(title), *cells) for title, *cells in rows), labels=1)]
    return [
        _block("ours", experiment, _measured(experiment, entries), list(experiment.methods)),
        _block(paper, experiment, _printed(experiment), [r for r in experiment.methods if not experiment.is_ours(r)]),
    ]


Shown = Callable[[str, str, int], tuple[Number | None, str, bool]]  # (metric, row, column) -> number, text, complete


def _measured(experiment: Experiment, entries: Entries) -> Shown:
    def show(metric: str, row: str, column: int) -> tuple[Number | None, str, bool]:
        entry = entries.get((row, experiment.columns[column].title), Entry({}, 0))
        number = entry.number(metric)
        return number, number.text if number else entry.state, entry.complete

    return show


def _printed(experiment: Experiment) -> Shown:
    def show(metric: str, row: str, column: int) -> tuple[Number | None, str, bool]:
        numbers = experiment.paper[metric].get(row)
        return (numbers[column], numbers[column].text, True) if numbers else (None, "-", False)

    return show


def _column(experiment: Experiment, metric: str, column: int, show: Shown) -> list[Cell]:
    """Return the cells of all rows, the best of those with every seed marked; ties share the mark."""
    shown = [show(metric, row, column) for row in experiment.methods]
    means = [number.mean for number, _, complete in shown if number and complete]
    best = (max(means) if HIGHER_IS_BETTER[metric] else min(means)) if len(means) > 1 else None
    return [Cell(text, bool(number and complete and number.mean == best)) for number, text, complete in shown]


def _block(title: str, experiment: Experiment, show: Shown, rows: Sequence[str]) -> Block:
    header = ("Metrics", experiment.row_title, *(column.title for column in experiment.columns))
    lines = []
    for metric in METRICS:
        columns = [_column(experiment, metric, k, show) for k in range(len(experiment.columns))]
        for row, *cells in zip(experiment.methods, *columns, strict=True):
            if row in rows:
                lines.append((Cell(_titled(metric) if row == rows[0] else ""), Cell(row), *cells))
    return Block(title, header, tuple(lines), labels=2)


def _titled(metric: str) -> str:
    return f"{metric} {_ARROWS[metric]}"


def markdown(block: Block) -> str:
    """Return a Markdown table whose columns are aligned in a terminal, too; the best are set in bold.

    >>> print(markdown(Block("", ("K", "ECE"), ((Cell("Top-1"), Cell("7.69")), (Cell("Top-2"), Cell("5.0", True))), 1)))
    | K     |     ECE |
    |:------|--------:|
    | Top-1 |    7.69 |
    | Top-2 | **5.0** |
    """
    rows = [list(block.header), *([f"**{text}**" if best else text for text, best in line] for line in block.lines)]
    rows = [[text.replace("|", "\\|") for text in row] for row in rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(block.header))]
    sides = ["<" if k < block.labels else ">" for k in range(len(block.header))]
    printed = [
        "| " + " | ".join(f"{t:{side}{w}}" for t, side, w in zip(row, sides, widths, strict=True)) + " |"
        for row in rows
    ]
    ruler = (f":{'-' * (w + 1)}" if side == "<" else f"{'-' * (w + 1)}:" for side, w in zip(sides, widths, strict=True))
    return "\n".join([printed[0], f"|{'|'.join(ruler)}|", *printed[1:]])


def latex(title: str, blocks: Sequence[Block], columns: Sequence[Column], remark: str) -> str:
    """Return a LaTeX table (package booktabs) with standard deviations as subscripts, as the paper prints them."""
    first = blocks[0]
    groups = _latex_groups(first.labels, columns) if len(columns) > 1 else []
    lines = [
        rf"% {remark}",
        r"\begin{table}",
        rf"\caption{{{_escaped(title)}}}",
        rf"\begin{{tabular}}{{{'l' * first.labels}{'c' * (len(first.header) - first.labels)}}}",
        r"\toprule",
        *groups,
        " & ".join(map(_escaped, first.header)) + r" \\",
    ]
    for block in blocks:
        lines.append(r"\midrule")
        if block.title:
            lines.append(rf"\multicolumn{{{len(block.header)}}}{{l}}{{\emph{{{_escaped(block.title)}}}}} \\")
        lines += [" & ".join(map(_latex_cell, line)) + r" \\" for line in block.lines]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _latex_groups(labels: int, columns: Sequence[Column]) -> list[str]:
    """Return the line over the header that names groups of columns, where there are any."""
    spans = [(group, len(list(members))) for group, members in groupby(columns, key=lambda column: column.group)]
    if not any(group for group, _ in spans):
        return []
    cells = [rf"\multicolumn{{{count}}}{{c}}{{{_escaped(group)}}}" for group, count in spans]
    return [" & ".join([*[""] * labels, *cells]) + r" \\"]


def _latex_cell(cell: Cell) -> str:
    mean, underscore, rest = cell.text.partition("_")
    sd, _, seeds = rest.partition(" ")
    text = f"{mean}$_{{{sd}}}$" + (f" {seeds}" if seeds else "") if underscore else _escaped(mean)
    return rf"\textbf{{{text}}}" if cell.best else text


def _escaped(text: str) -> str:
    for character in "&%#_":
        text = text.replace(character, f"\\{character}")
    return text.replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$")


def tidy_csv(experiment: Experiment, entries: Entries) -> str:
    """Return one line per number, in per cent: table, source, metric, row, column, mean, sd, seeds, state."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "source", "metric", "row", "column", "mean", "sd", "seeds", "state"])
    for metric, row in product(METRICS, experiment.methods):
        for k, column in enumerate(experiment.columns):
            entry = entries.get((row, column.title), Entry({}, 0))
            place = (metric, row, column.title)
            count = len(entry.values.get(METRICS[metric], ()))
            ours = entry.number(metric)
            state = "complete" if entry.complete else "partial" if ours else entry.state
            writer.writerow([experiment.name, "ours", *place, *_mean_sd(ours), count, state])
            if printed := experiment.paper[metric].get(row):
                numbers = _mean_sd(printed[k])
                writer.writerow([experiment.name, f"paper, {experiment.base_title}", *place, *numbers, 3, "published"])
    return buffer.getvalue()


def _mean_sd(number: Number | None) -> tuple[float | str, float | str]:
    if number is None:
        return "", ""
    return round(number.mean, 6), "" if math.isnan(number.sd) else round(number.sd, 6)
