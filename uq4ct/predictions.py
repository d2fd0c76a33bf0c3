"""The prediction file: one row per question with everything that metrics, post-hoc fits and reports need.

    {"id", "question", "choices", "prediction", "confidence", "probabilities": {label: p}, "feu",
     "uncertainty": {"total", "aleatoric", "epistemic"}, "label", "correct", "abstained"}

``label`` and ``correct`` are null where unknown, ``feu`` where there is no router. Optional: ``logits`` (per choice,
softmax gives ``probabilities``), ``samples`` (the logits of each of several forward passes), ``letter_mass``,
``group``, ``stratum``, ``true_probabilities``, ``method``, ``seed``. Anyone's jsonl or csv is read too:
``probabilities`` and ``label`` are enough.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uq4ct.errors import UserError
from uq4ct.manifest import write_atomically
from uq4ct.types import Prediction, Question

Row = dict[str, Any]

SUM_TOLERANCE = 0.005  # probabilities printed with three digits need not sum to exactly one
LOGIT_TOLERANCE = 0.02  # logits stored in half precision give slightly other probabilities
PROBLEMS_SHOWN = 20
OPTIONAL = ("logits", "samples", "letter_mass", "group", "stratum", "true_probabilities", "method", "seed")


def rows(
    questions: Sequence[Question], prediction: Prediction, *, method: str | None = None, seed: int | None = None
) -> list[Row]:
    """Return one prediction row per question, in their order. Nothing is abstained until a rule is applied.

    >>> q = Question(id="1", question="Which melts first?", choices=("ice", "iron"), labels=("A", "B"), answer=0)
    >>> row = rows([q], Prediction(("1",), np.array([[[2.0, 0.0]]]), np.array([[True, True]])))[0]
    >>> row["prediction"], round(row["confidence"], 4), row["correct"]
    ('A', 0.8808, True)
    """
    if tuple(question.id for question in questions) != prediction.ids:
        raise ValueError(
            f"{len(questions)} questions and {len(prediction.ids)} predictions have different ids or orders"
        )
    probabilities, samples = prediction.probabilities, prediction.logits.shape[1]
    logits = prediction.logits[:, 0] if samples == 1 else prediction.log_probabilities
    parts = zip(prediction.total, prediction.aleatoric, prediction.epistemic, strict=True)
    made = []
    for i, (question, (total, aleatoric, epistemic)) in enumerate(zip(questions, parts, strict=True)):
        k = len(question.choices)
        best = int(probabilities[i, :k].argmax())
        row: Row = {
            "id": question.id,
            "question": question.question,
            "choices": list(question.choices),
            "prediction": question.labels[best],
            "confidence": float(probabilities[i, best]),
            "probabilities": dict(zip(question.labels, probabilities[i, :k].tolist(), strict=True)),
            "feu": None if prediction.feu is None else float(prediction.feu[i]),
            "uncertainty": {"total": float(total), "aleatoric": float(aleatoric), "epistemic": float(epistemic)},
            "label": question.gold,
            "correct": None if question.answer is None else best == question.answer,
            "abstained": False,
            "logits": logits[i, :k].tolist(),
            "samples": prediction.logits[i, :, :k].tolist() if samples > 1 else None,
            "letter_mass": None if prediction.letter_mass is None else float(prediction.letter_mass[i]),
            "group": question.group,
            "stratum": question.stratum,
            "true_probabilities": None if question.true_probabilities is None else list(question.true_probabilities),
            "method": method,
            "seed": seed,
        }
        made.append({key: value for key, value in row.items() if value is not None or key not in OPTIONAL})
    return made


def to_line(row: Row) -> str:
    """Return a row as one line of a jsonl file, newline included; numbers keep every bit."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as a jsonl file, atomically."""
    write_atomically(path, "".join(map(to_line, rows)))


def read(path: Path) -> list[Row]:
    """Read a prediction file (jsonl or csv) with ``probabilities`` and, where known, ``label``.

    ``probabilities`` is an object {label: p}, or a list whose labels are then A, B, C, ... and whose integer ``label``
    counts from 0; in a csv file it is the same as JSON text. What a row lacks is computed (``prediction``,
    ``confidence``, ``correct``) or null. Raises UserError with the place of every problem.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".csv"):
        raise UserError(f"{path}: predictions are read from .jsonl or .csv files, got '{path.suffix or path.name}'")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    read_rows: list[Row] = []
    problems: list[str] = []
    entries = (_csv_rows if path.suffix == ".csv" else _jsonl_rows)(text, path, problems)
    for number, (line, raw) in enumerate(entries, 1):
        row = _checked(raw, f"{path}:{line}", number, problems)
        if row is not None:
            read_rows.append(row)
    if not read_rows and not problems:
        problems.append(f"{path}: holds no predictions")
    problems += _repeated(read_rows, path)
    if problems:
        more = [f"{path}: ... and {len(problems) - PROBLEMS_SHOWN} more problems"]
        raise UserError([*problems[:PROBLEMS_SHOWN], *(more if len(problems) > PROBLEMS_SHOWN else [])])
    return read_rows


def to_prediction(rows: Sequence[Row]) -> Prediction:
    """Return rows as a predictive distribution: from ``samples`` where all rows have as many, else from ``logits``."""
    passes = {len(row.get("samples") or ()) for row in rows}
    several = len(passes) == 1 and passes != {0}
    matrices = [np.array(row["samples"] if several else [_logits(row)], dtype=np.float64) for row in rows]
    choices = max(matrix.shape[1] for matrix in matrices)
    logits = np.full((len(rows), len(matrices[0]), choices), -np.inf)
    for i, matrix in enumerate(matrices):
        logits[i, :, : matrix.shape[1]] = matrix
    sizes = np.array([matrix.shape[1] for matrix in matrices])
    feu, mass = _column(rows, "feu"), _column(rows, "letter_mass")
    return Prediction(tuple(row["id"] for row in rows), logits, np.arange(choices) < sizes[:, None], feu, mass)


def _column(rows: Sequence[Row], name: str) -> np.ndarray | None:
    values = [row.get(name) for row in rows]
    return None if any(value is None for value in values) else np.array(values, dtype=np.float64)


def _logits(row: Row) -> list[float]:
    if row.get("logits"):
        return row["logits"]
    with np.errstate(divide="ignore"):
        return np.log(np.array(list(row["probabilities"].values()), dtype=np.float64)).tolist()


# ------------------------------------------------------------------------------------------------ reading anyone's rows


def _jsonl_rows(text: str, path: Path, problems: list[str]) -> Iterator[tuple[int, Row]]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            raw = json.loads(content, parse_constant=_refuse_constant)
        except ValueError as error:
            problems.append(f"{path}:{line}: not a JSON object ({error})")
            continue
        if isinstance(raw, dict):
            yield line, raw
        else:
            problems.append(f"{path}:{line}: expected a JSON object, got {type(raw).__name__}")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _csv_rows(text: str, path: Path, problems: list[str]) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    line = 2
    try:
        if "probabilities" not in (reader.fieldnames or ()):
            found = ", ".join(reader.fieldnames or ()) or "nothing"
            problems.append(f"{path}:1: expected a column 'probabilities' (JSON text, {{label: p}}), got {found}")
            return
        for raw in reader:
            if None in raw or None in raw.values():
                problems.append(f"{path}:{line}: expected {len(reader.fieldnames or ())} cells, as in the header")
            else:
                yield line, {name: _cell(name, cell) for name, cell in raw.items()}
            line = reader.line_num + 1
    except csv.Error as error:
        problems.append(f"{path}:{line}: not readable as csv ({error})")


def _cell(name: str, cell: str) -> Any:
    """Read a csv cell as JSON unless its field is text; what is no JSON stays text, for a later check to refuse."""
    if cell.strip() == "":
        return None
    if name in ("id", "question", "label", "prediction", "group", "stratum", "method"):
        return cell
    try:
        return json.loads({"True": "true", "False": "false"}.get(cell, cell), parse_constant=_refuse_constant)
    except ValueError:
        return cell


def _checked(raw: Row, place: str, number: int, problems: list[str]) -> Row | None:
    """Return a complete row, or add its problems and return None."""
    before = len(problems)

    def complain(message: str) -> None:
        problems.append(f"{place}: {message}")

    probabilities = _probabilities(raw.get("probabilities"), complain)
    if probabilities is None:
        return None
    labels, listed = list(probabilities), isinstance(raw["probabilities"], list)
    best = max(labels, key=probabilities.__getitem__)
    label = _label(raw.get("label"), "label", labels, listed, complain)
    prediction = _label(raw.get("prediction"), "prediction", labels, listed, complain) or best
    if prediction in probabilities and probabilities[prediction] < probabilities[best]:
        complain(
            f"prediction '{prediction}' is not the most probable choice '{best}'; leave it out to have it computed"
        )
    uncertainty = raw.get("uncertainty") if isinstance(raw.get("uncertainty"), dict) else {}
    identity, choices = raw.get("id"), raw.get("choices")
    if isinstance(choices, list) and len(choices) != len(labels):
        complain(f"{len(choices)} choices, but probabilities of {len(labels)}")
    row: Row = {
        "id": str(number) if identity is None else str(identity),
        "question": "" if raw.get("question") is None else str(raw["question"]),
        "choices": list(map(str, choices)) if isinstance(choices, list) else labels,
        "prediction": prediction,
        "confidence": probabilities.get(prediction, 0.0),
        "probabilities": probabilities,
        "feu": _number(raw.get("feu"), "feu", complain),
        "uncertainty": {name: (uncertainty or {}).get(name) for name in ("total", "aleatoric", "epistemic")},
        "label": label,
        "correct": None if label is None else prediction == label,
        "abstained": raw.get("abstained") is True,
        "logits": _vector(raw.get("logits"), "logits", len(labels), complain),
        "samples": _samples(raw.get("samples"), len(labels), complain),
        "letter_mass": _number(raw.get("letter_mass"), "letter_mass", complain),
        "group": raw.get("group"),
        "stratum": raw.get("stratum"),
        "true_probabilities": _vector(raw.get("true_probabilities"), "true_probabilities", len(labels), complain),
        "method": raw.get("method"),
        "seed": raw.get("seed"),
    }
    _agree(raw, row, complain)
    if len(problems) > before:
        return None
    return {key: value for key, value in row.items() if value is not None or key not in OPTIONAL}


def _probabilities(value: Any, complain: Callable[[str], None]) -> dict[str, float] | None:
    """Return {label: p}; values outside [0, 1] are refused, never read as logits."""
    if isinstance(value, list) and len(value) <= 26:
        value = {chr(ord("A") + k): p for k, p in enumerate(value)}
    if value is None:
        complain("no 'probabilities'; a prediction has them as an object {label: p}")
        return None
    if not isinstance(value, dict) or len(value) < 2:
        complain(f"expected 'probabilities' as an object {{label: p}} of two or more choices, got {_shown(value)}")
        return None
    wrong = {label: p for label, p in value.items() if not _is_number(p) or not 0 <= p <= 1 + 1e-9}
    if wrong:
        label, p = next(iter(wrong.items()))
        complain(
            f"probability of '{label}' must lie in [0, 1], got {_shown(p)}; if these are logits, apply softmax first"
        )
        return None
    total = math.fsum(value.values())
    if abs(total - 1) > SUM_TOLERANCE:
        complain(f"probabilities sum to {total:.6g}, expected 1; give every choice of the question")
        return None
    return {str(label): float(p) for label, p in value.items()}


def _label(value: Any, what: str, labels: list[str], listed: bool, complain: Callable[[str], None]) -> str | None:
    """Find a gold or predicted label among the row's own, however it was typed."""
    if value is None or value == "":
        return None
    if listed and (isinstance(value, int) or str(value).isdecimal()) and not isinstance(value, bool):
        if 0 <= int(value) < len(labels):
            return labels[int(value)]
    else:
        names = (str(value), str(value).lower()) if isinstance(value, bool) else (str(value), str(value).strip())
        for name in names:
            if name in labels:
                return name
    complain(f"{what} {_shown(value)} is not one of {', '.join(labels)}")
    return None


def _number(value: Any, name: str, complain: Callable[[str], None]) -> float | None:
    if value is None:
        return None
    if _is_number(value) and 0 <= value <= 1 + 1e-6:
        return float(value)
    complain(f"'{name}' must be a number in [0, 1], got {_shown(value)}")
    return None


def _vector(value: Any, name: str, length: int, complain: Callable[[str], None]) -> list[float] | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == length and all(map(_is_number, value)):
        return [float(x) for x in value]
    complain(f"'{name}' must be a list of {length} numbers, one per choice, got {_shown(value)}")
    return None


def _samples(value: Any, length: int, complain: Callable[[str], None]) -> list[list[float]] | None:
    if value is None:
        return None
    if isinstance(value, list) and value and all(isinstance(one, list) and len(one) == length for one in value):
        return [_vector(one, "samples", length, complain) or [] for one in value]
    complain(f"'samples' must be a list of lists of {length} logits, got {_shown(value)}")
    return None


def _agree(raw: Row, row: Row, complain: Callable[[str], None]) -> None:
    """Check that what the row says twice is the same: correctness, confidence, logits, true probabilities."""
    if isinstance(raw.get("correct"), bool) and row["correct"] is not None and raw["correct"] != row["correct"]:
        complain(f"'correct' is {raw['correct']}, but prediction is '{row['prediction']}' and label '{row['label']}'")
    if _is_number(raw.get("confidence")) and abs(raw["confidence"] - row["confidence"]) > SUM_TOLERANCE:
        complain(
            f"'confidence' is {raw['confidence']}, but '{row['prediction']}' has probability {row['confidence']:.6g}"
        )
    if row["logits"] is not None:
        shifted = np.exp(np.array(row["logits"]) - max(row["logits"]))
        gap = np.abs(shifted / shifted.sum() - list(row["probabilities"].values())).max()
        if gap > LOGIT_TOLERANCE:
            complain(f"softmax of 'logits' differs from 'probabilities' by {gap:.3g}; leave out the wrong one")
    truth = row["true_probabilities"]
    if truth is not None and (min(truth) < 0 or abs(math.fsum(truth) - 1) > SUM_TOLERANCE):
        complain(f"'true_probabilities' must be at least 0 and sum to 1, got {_shown(truth)}")


def _repeated(rows: list[Row], path: Path) -> list[str]:
    """Report ids that stand twice for the same method and seed: such a file mixes two evaluations."""
    seen: set[tuple[Any, ...]] = set()
    again: dict[str, None] = {}
    for row in rows:
        key = (row["id"], row.get("method"), row.get("seed"))
        if key in seen:
            again[row["id"]] = None
        seen.add(key)
    return [f"{path}: id '{name}' stands twice; one file holds one row per question, method and seed" for name in again]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
