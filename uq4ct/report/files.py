"""Every figure of a report as svg, pdf, png, csv and json, and its table as md, csv and tex: for papers and slides."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uq4ct.errors import UserError
from uq4ct.manifest import write_atomically
from uq4ct.report import comparison_tables
from uq4ct.report.blocks import Drawn, Section
from uq4ct.report.drawing import svg_file
from uq4ct.report.figures.base import Figure
from uq4ct.report.material import Material, Series
from uq4ct.report.rendering import render
from uq4ct.report.sections.verdict import MIXED
from uq4ct.report.tables import spreadsheet_text

Json = Mapping[str, Any]


def write_files(
    material: Material, sections: Sequence[Section], folder: Path, say: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Write ``<kind>-<task>.svg .pdf .png .csv .json`` for each figure, and the tables; return the names.

    The json holds title, task and numbers; the csv the same numbers. Files of the same names are replaced, others kept.
    """
    refuse_bad_folder(folder)
    folder.mkdir(exist_ok=True)
    for name, content in tables_of(material).items():
        write_atomically(folder / name, content)
    names = ["table"]
    for stem, figure in named(sections):
        say(f"figure {stem}")
        sheet = figure.sheet
        write_atomically(folder / f"{stem}.svg", svg_file(sheet, figure.title))
        write_atomically(folder / f"{stem}.pdf", render(sheet, figure.title, "pdf"))
        write_atomically(folder / f"{stem}.png", render(sheet, figure.title, "png"))
        write_atomically(folder / f"{stem}.csv", rows_as_csv(figure.numbers))
        told = {"title": figure.title, "task": figure.task, "numbers": figure.numbers}
        write_atomically(
            folder / f"{stem}.json", json.dumps(told, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
        )
        names.append(stem)
    return names


def tables_of(material: Material) -> dict[str, str]:
    """Return the tables of a comparison, by file name, for whatever the report shows.

    ``table.tex`` has the paper's layout: methods down, tasks across, a block per metric.
    """
    lists = ("differences", "verdicts", "shift_detection", "feu_usefulness")
    found: dict[str, Any] = {key: material.rows(key) for key in lists}
    found |= {"results": [_row(series) for series in material.series], "notes": _notes(material)}
    known = {} if material.comparison is None else material.comparison.found
    found |= {"absent": known.get("absent") or {}, "in_distribution": material.fitted_on}
    files = comparison_tables.files(found)
    return {name: text for name, text in files.items() if found["differences"] or not name.startswith("differences")}


def _row(series: Series) -> dict[str, Any]:
    seeds = {"seeds": list(series.seeds), "seeds_wanted": len(series.seeds)}
    result = {"split": "all", **seeds, "sd": {}, "item_sd": {}, **series.result}
    null = {"calibrated": series.result["ece"] <= series.result["ece_null"]["high"]}
    return result | null | {"task": series.task, "method": series.label, "n": series.n}


def _notes(material: Material) -> list[str]:
    settings = material.settings
    means = " Means over seeds, ± their standard deviation." if material.has_seeds else ""
    how = f"ECE with {settings['bins']} bins, {settings['binning']}; intervals {100 * settings['level']:g} %.{means}"
    return [how, *(f"On {task} {MIXED}: no ranking." for task in material.mixed)]


def refuse_bad_folder(folder: Path) -> None:
    """Raise UserError where no folder can be made."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--figures: {folder} is a file, expected a folder")
    if not folder.parent.is_dir():
        raise UserError(f"--figures: the folder {folder.parent} does not exist")


def named(sections: Sequence[Section]) -> Iterator[tuple[str, Figure]]:
    """Yield each figure with a file name of its own.

    Only letters, digits, dots and dashes of a task's name are kept, so that no name leaves the folder.
    """
    taken: set[str] = set()
    for section in sections:
        for group in section.groups:
            for block in group.blocks:
                if isinstance(block, Drawn):
                    words = re.sub(r"[^\w.-]+", "-", block.figure.task, flags=re.ASCII).strip("-.")[:60]
                    stem = f"{block.figure.kind}-{words}" if words else block.figure.kind
                    number = 2
                    while stem in taken:
                        stem, number = f"{block.figure.kind}-{words}-{number}", number + 1
                    taken.add(stem)
                    yield stem, block.figure


def rows_as_csv(rows: Sequence[Json]) -> str:
    """Return rows as csv: a column per key, an interval as two, whatever else is nested as JSON.

    >>> print(rows_as_csv([{"method": "lora", "interval": [0.1, 0.2]}]), end="")
    method,interval_low,interval_high
    lora,0.1,0.2
    """
    flat = [dict(_columns(row)) for row in rows]
    keys = list(dict.fromkeys(key for row in flat for key in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(keys)
    for row in flat:
        writer.writerow([row.get(key, "") for key in keys])
    return buffer.getvalue()


def _columns(row: Json) -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if key == "interval":
            low, high = value or ("", "")
            yield from (("interval_low", low), ("interval_high", high))
        elif isinstance(value, list | dict):
            yield key, json.dumps(value, ensure_ascii=False)
        else:
            yield key, "" if value is None else spreadsheet_text(value)
