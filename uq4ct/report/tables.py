"""The verdict as a table for the terminal, Markdown or csv: one row per task and method."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Json = Mapping[str, Any]


class Column(NamedTuple):
    """A metric as people read it: its title, its key in the results, and how to print the number."""

    title: str
    key: str
    show: Callable[[float], str]
    better: Literal["higher", "lower", "none"]


def percent(value: float) -> str:
    """Print a fraction in per cent with one digit.

    >>> percent(0.1234), percent(-0.0001)
    ('12.3', '0.0')
    """
    text = f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text


def decimals(value: float) -> str:
    """Print a number with three decimals."""
    return f"{value:.3f}"


COLUMNS = (
    Column("accuracy %", "accuracy", percent, "higher"),
    Column("NLL", "nll", decimals, "lower"),
    Column("Brier", "brier", decimals, "lower"),
    Column("ECE %", "ece", percent, "lower"),
    Column("smooth ECE %", "smooth_ece", percent, "lower"),
    Column("AUROC", "auroc", decimals, "higher"),
    Column("AUGRC", "augrc", decimals, "lower"),
)


def table(results: Sequence[Json], format: Literal["text", "md", "csv"] = "text") -> str:
    """Return results of ``summarize`` as a table: for the terminal, Markdown, or csv with every number and interval.

    >>> print(table([{"task": "demo", "method": "lora", "n": 200, "accuracy": 0.815, "ece": 0.0971}], format="md"))
    | task | method | n | accuracy % | NLL | Brier | ECE % | calibrated ECE % | smooth ECE % | AUROC | AUGRC |
    |:---|:---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
    | demo | lora | 200 | 81.5 | - | - | 9.7 | - | - | - | - |
    """
    if format == "csv":
        return _csv(results)
    header, rows = _cells(results)
    if format == "md":
        ruler = "|" + "|".join(":---" if name in ("task", "method") else "---:" for name in header) + "|"
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (header, *rows)]
        return "\n".join([lines[0], ruler, *lines[1:]])
    return _text(header, rows)


def kept_line(result: Json) -> str:
    """Say how many answers an abstain rule lets through in a result of ``summarize``, and how many of these are right.

    >>> kept_line({"task": "demo", "n": 8, "answered": {"n": 6, "coverage": 0.75, "accuracy": 0.8333}})
    'demo: 6 of 8 answers kept (75.0 %), 83.3 % of these right'
    """
    answered = result["answered"]
    right = "" if answered["accuracy"] is None else f", {percent(answered['accuracy'])} % of these right"
    kept = f"{answered['n']:,} of {result['n']:,} answers kept ({percent(answered['coverage'])} %)"
    return one_line(f"{result.get('task') or '-'}: {kept}{right}")


def null_range(result: Json) -> str:
    """Print what a perfectly calibrated model would show as ECE in 95 % of cases, in per cent."""
    null = result.get("ece_null")
    return f"{percent(null['low'])}-{percent(null['high'])}" if null else "-"


def _cells(results: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    columns = [*COLUMNS]
    if any(result.get("feu_auroc") is not None for result in results):
        columns.append(Column("FEU AUROC", "feu_auroc", decimals, "higher"))
    has_seeds = len({result.get("seed") for result in results}) > 1
    header = ["task", "method", *(["seed"] if has_seeds else []), "n"]
    for column in columns:
        header += [column.title, "calibrated ECE %"] if column.key == "ece" else [column.title]
    rows = []
    for result in results:
        row = [str(result.get("task") or "-"), str(result.get("method") or "-")]
        row += [str(result.get("seed"))] if has_seeds else []
        row.append(str(result.get("n", "-")))
        for column in columns:
            value = result.get(column.key)
            row.append("-" if value is None else column.show(value))
            row += [null_range(result)] if column.key == "ece" else []
        rows.append([one_line(cell) for cell in row])
    return header, rows


def _text(header: list[str], rows: list[list[str]]) -> str:
    """Align columns, leave out those without any value, and part the tasks by an empty line."""
    used = [k for k, name in enumerate(header) if name == "task" or any(row[k] != "-" for row in rows)]
    widths = {k: max(len(line[k]) for line in (header, *rows)) for k in used}

    def line(cells: list[str]) -> str:
        left = ("task", "method")
        parts = [f"{cells[k]:<{widths[k]}}" if header[k] in left else f"{cells[k]:>{widths[k]}}" for k in used]
        return "  ".join(parts).rstrip()

    lines, before = [line(header), "-" * len(line(header))], None
    for row in rows:
        if before not in (None, row[0]) and sum(other[0] == row[0] for other in rows) > 1:
            lines.append("")
        lines.append(line(row))
        before = row[0]
    note = "calibrated ECE: where 95 % of perfectly calibrated models of this confidence and n would lie"
    return "\n".join([*lines, "", note] if any(row[header.index("calibrated ECE %")] != "-" for row in rows) else lines)


def _csv(results: Sequence[Json]) -> str:
    """Write every single number of the results, unrounded, with the ends of its interval."""
    plain = ["task", "method", "seed", "split", "n"]
    known = {column.key: None for column in COLUMNS}
    for result in results:
        known |= {key: None for key, value in result.items() if isinstance(value, float)}
    keys = [key for key in known if key not in plain]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    null = ("ece_null_mean", "ece_null_p95")
    writer.writerow([*plain, *(part for key in keys for part in (key, f"{key}_low", f"{key}_high")), *null])
    for result in results:
        cells = [spreadsheet_text(result.get(key)) for key in plain]
        for key in keys:
            low, high = (result.get("intervals") or {}).get(key) or (None, None)
            cells += [result.get(key), low, high]
        floor = result.get("ece_null") or {}
        writer.writerow(["" if cell is None else cell for cell in [*cells, floor.get("mean"), floor.get("p95")]])
    return buffer.getvalue()


def spreadsheet_text(value: Any) -> Any:
    """Quote text that a spreadsheet would run as a formula, and leave numbers as they are.

    >>> spreadsheet_text("=cmd()"), spreadsheet_text(-1.5)
    ("'=cmd()", -1.5)
    """
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def one_line(text: str) -> str:
    """Replace line breaks and control characters, which could rewrite a terminal or end a comment, by spaces."""
    return "".join(character if character.isprintable() else " " for character in str(text))
