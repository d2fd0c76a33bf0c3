"""Anyone's predictions to rows, from jsonl, csv, tsv or parquet: all problems at once, and how the file was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uq4ct.data.files import SUFFIXES, read_rows
from uq4ct.errors import UserError
from uq4ct.predictions import lm_eval
from uq4ct.predictions.columns import Columns
from uq4ct.predictions.drafting import read_columns
from uq4ct.predictions.writing import Row

PROBLEMS_SHOWN = 20
BY_NAME = Columns({})


@dataclass(frozen=True)
class Reading:
    """Prediction rows, and one line that says how they were read."""

    rows: list[Row]
    how: str


def read(path: Path) -> list[Row]:
    """Return the rows of a prediction file; see ``read_any``."""
    return read_any(path).rows


def read_any(path: Path, columns: Columns = BY_NAME, likelihood: str = "acc") -> Reading:
    """Read a file of probabilities, logits, log-probabilities or confidences, or lm-eval's samples.

    Columns are found by name, or as ``columns`` says. A list's choices are A, B, C, ...; the label is a label, a
    position or the text of a choice, decided once for the file. ``likelihood`` says how probabilities are made of
    lm-eval's log-likelihoods. What a row lacks is computed (``prediction``, ``confidence``, ``correct``) or null.
    Raises UserError with the place of every problem.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, likelihood)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{path}: predictions are read from {', '.join(SUFFIXES)} files, got '{path.suffix or path.name}'"
        )
    raws = read_rows(path, "prediction")
    problems = [f"{raw.place}: {raw.problem}" for raw in raws if raw.problem]
    good = [raw for raw in raws if not raw.problem]
    if lm_eval.recognise(good):
        rows, how = lm_eval.read_samples(path, good, likelihood, problems)
    else:
        rows, how = read_columns(path, good, columns, problems)
    problems += _repeated(rows)
    if problems:
        places = {raw.place: number for number, raw in enumerate(raws)}
        problems.sort(key=lambda problem: places.get(problem.partition(": ")[0], -1))
        more = [f"{path}: ... and {len(problems) - PROBLEMS_SHOWN} more problems"]
        raise UserError([*problems[:PROBLEMS_SHOWN], *(more if len(problems) > PROBLEMS_SHOWN else [])])
    return Reading(
        [{key: value for key, value in row.items() if key != "place"} for row in rows],
        f"read {len(rows):,} {'row' if len(rows) == 1 else 'rows'} of {path}: {how}",
    )


def _read_folder(folder: Path, likelihood: str) -> Reading:
    """Read every multiple-choice sample file of a results folder of lm-eval."""
    readings: list[Reading] = []
    left: list[str] = []
    problems: list[str] = []
    for path in lm_eval.sample_files(folder):
        try:
            readings.append(read_any(path, likelihood=likelihood))
        except lm_eval.NoChoices:
            left.append(path.name)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    if not readings:
        raise UserError(f"{folder}: holds no samples of multiple-choice tasks, only {', '.join(left)}")
    notes = [reading.how for reading in readings]
    notes += [f"not read: {', '.join(left)}; generated texts have no probabilities"] if left else []
    return Reading([row for reading in readings for row in reading.rows], "\n".join(notes))


def evaluations(rows: Sequence[Row], by_group: bool = False) -> dict[tuple[str | None, str | None, Any], list[Row]]:
    """Part rows by (task, method, seed), in the order in which they are met; ``by_group`` parts tasks by group, too.

    >>> [key for key in evaluations([{"task": "arc", "seed": 1}, {"task": "arc", "seed": 2}])]
    [('arc', None, 1), ('arc', None, 2)]
    >>> [key for key in evaluations([{"task": "mmlu", "group": "law"}, {"group": "law"}], by_group=True)]
    [('mmlu: law', None, None), ('law', None, None)]
    """
    parts: dict[tuple[str | None, str | None, Any], list[Row]] = {}
    for row in rows:
        names = [row.get("task"), row.get("group") if by_group else None]
        task = ": ".join(str(name) for name in names if name is not None) or None
        parts.setdefault((task, row.get("method"), row.get("seed")), []).append(row)
    return parts


def _repeated(rows: Sequence[Row]) -> list[str]:
    """Report ids that stand twice for the same task, method and seed: such a file mixes two evaluations."""
    seen: dict[tuple[Any, ...], str] = {}
    problems = []
    for row in rows:
        key = (row["id"], *(row.get(field) for field in ("task", "group", "method", "seed")))
        if key in seen:
            problems.append(
                f"{row['place']}: id '{row['id']}' stands twice, first at {seen[key]}; "
                "one file holds one row per question, task, method and seed"
            )
        seen.setdefault(key, row["place"])
    return problems
