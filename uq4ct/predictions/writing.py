"""Predictions to rows and back: what our own commands write, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uq4ct.manifest import write_atomically
from uq4ct.types import Prediction, Question

Row = dict[str, Any]

OPTIONAL = (
    "logits",
    "samples",
    "letter_mass",
    "context_characters",
    "seen_tokens",
    "group",
    "stratum",
    "true_probabilities",
    "task",
    "method",
    "seed",
)


def rows(
    questions: Sequence[Question],
    prediction: Prediction,
    *,
    seen: Sequence[float] | None = None,
    method: str | None = None,
    seed: int | None = None,
) -> list[Row]:
    """Return one prediction row per question, in their order. Nothing is abstained until a rule is applied.

    ``seen`` is the share of each question's tokens that the questions fitted on have, too.

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
            "context_characters": len(question.context) or None,
            "seen_tokens": None if seen is None else seen[i],
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


def read_own(path: Path) -> list[Row]:
    """Return the rows of a file that ``write`` made and a manifest seals; ``read`` is for anyone's."""
    with path.open(encoding="utf-8", newline="\n") as lines:  # str.splitlines would also end lines at U+2028
        return [json.loads(line) for line in lines]


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
