"""Results for people: a table for the terminal and one self-contained html report; read from files, never a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from uq4ct.report.tables import kept_line, table

__all__ = ["build_report", "kept_line", "table"]


def build_report(
    sources: Sequence[Path | str],
    output: Path | str,
    title: str | None = None,
    figures: Path | str | None = None,
    say: Callable[[str], None] = lambda _: None,
    read: Callable[[Path], list[Any]] | None = None,
) -> None:
    """Write one self-contained html report of runs, folders of ``uq4ct compare``, or anyone's predictions.

    ``figures`` names a folder for every figure (svg, pdf, png, csv, json) and table (md, csv, tex) as files of their
    own. ``read`` returns the rows of a prediction file or results folder, by default as its columns are called. The
    page needs no script and no network, follows the reader's light or dark theme, and is the same to the byte for the
    same input. Raises UserError where a source cannot be read or has changed since it was written.
    """
    from uq4ct import predictions
    from uq4ct.manifest import write_atomically
    from uq4ct.report.files import refuse_bad_folder, write_files
    from uq4ct.report.page import render
    from uq4ct.report.sections import build
    from uq4ct.report.sources import read_sources

    output = Path(output)
    _refuse_bad_output(output)
    if figures is not None:
        refuse_bad_folder(Path(figures))
    material = read_sources(sources, read or predictions.read, say)
    made, absent = build(material)
    write_atomically(output, render(material, made, absent, title))
    if figures is not None:
        write_files(material, made, Path(figures), say)


def _refuse_bad_output(output: Path) -> None:
    from uq4ct.errors import UserError

    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{output}: the report is an html page; name it .html")
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(
            f"{output}: {'is a folder' if output.is_dir() else f'the folder {output.parent} does not exist'}"
        )
