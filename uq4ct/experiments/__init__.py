"""The experiments of the paper, Tables 1 to 6, as data: what is run, and the numbers that the paper prints.

One file a table; adding an experiment is adding a file. Reading them loads no model library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from uq4ct.errors import UserError, did_you_mean

_FOLDER = Path(__file__).parent
METRICS = {"ACC": "accuracy", "ECE": "ece"}  # the paper's name of a metric -> ours; fractions in results
HIGHER_IS_BETTER = {"ACC": True, "ECE": False}


@dataclass(frozen=True)
class Number:
    """A mean and its standard deviation in per cent, with the digits that the paper prints."""

    mean: float
    sd: float
    text: str

    @classmethod
    def parse(cls, text: str) -> Number:
        """Read ``mean_sd``.

        >>> Number.parse("69.5_1.93")
        Number(mean=69.5, sd=1.93, text='69.5_1.93')
        """
        mean, sd = text.split("_")
        return cls(float(mean), float(sd), text)


@dataclass(frozen=True)
class Column:
    """A task of a table: what is trained on, what is tested on, and the rows of the official test split if known."""

    title: str
    train: str
    test: str
    rows: int | None = None
    group: str = ""


@dataclass(frozen=True)
class Experiment:
    """One table of the paper.

    ``methods`` maps a row's title to the method that is run; ``paper`` maps a metric and a row's title to the paper's
    numbers, one per column, and has no entry for rows that are ours. ``side_by_side`` puts ours and the paper's in one
    row; otherwise they are two blocks.
    """

    name: str
    title: str
    base: str
    base_title: str
    presets: tuple[str, ...]
    side_by_side: bool
    row_title: str
    columns: tuple[Column, ...]
    methods: Mapping[str, str]
    paper: Mapping[str, Mapping[str, tuple[Number, ...]]]
    cost: str
    notes: tuple[str, ...]

    @property
    def number(self) -> str:
        """The table as the paper calls it: Table 1."""
        return f"Table {self.name.removeprefix('table')}"

    def named(self, row: str) -> str:
        """Return a row's title as it reads outside the table: "beta 0.2" where the row is called "0.2"."""
        return f"{self.row_title} {row}" if row[:1].isdigit() else row

    def is_ours(self, row: str) -> bool:
        """Tell whether a row is not one of the paper's."""
        return all(row not in numbers for numbers in self.paper.values())


def names() -> list[str]:
    """List the experiments.

    >>> names()
    ['table1', 'table2', 'table3', 'table4', 'table5', 'table6']
    """
    return sorted(path.stem for path in _FOLDER.glob("table*.yaml"))


@cache
def get(name: str) -> Experiment:
    """Return an experiment by name; raise UserError with the nearest name when there is none.

    >>> get("table4").paper["ECE"]["1"][0].text
    '5.0_1.15'
    """
    if name not in names():
        raise UserError(f"no experiment is called '{name}'.{did_you_mean(name, names())} Tables: {', '.join(names())}")
    values = _read(f"{name}.yaml")
    columns = tuple(Column(**column) for column in values["columns"])
    paper = {
        metric: {row: tuple(map(Number.parse, text.split())) for row, text in rows.items()}
        for metric, rows in values["paper"].items()
    }
    return Experiment(
        name=name,
        title=values["title"],
        base=values["base"],
        base_title=values["base_title"],
        presets=tuple(values["presets"]),
        side_by_side=values["side_by_side"],
        row_title=values["row_title"],
        columns=columns,
        methods=values["methods"],
        paper=paper,
        cost=values["cost"],
        notes=(*values.get("notes", ()), *_common_notes(columns, values["methods"])),
    )


def smoke() -> Mapping[str, Any]:
    """Return what the budget "smoke" changes: training options, and what is run instead of a method."""
    return _read("smoke.yaml")


def _common_notes(columns: tuple[Column, ...], methods: Mapping[str, str]) -> list[str]:
    """Return the notes on the tasks and methods of a table."""
    notes = _read("notes.yaml")
    used = {method.partition("[")[0] for method in methods.values()}
    of_tasks = [note for task, note in notes["tasks"].items() if any(column.test == task for column in columns)]
    return of_tasks + [note for method, note in notes["methods"].items() if method in used]


@cache
def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((_FOLDER / name).read_text(encoding="utf-8"))
