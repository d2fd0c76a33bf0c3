"""The calibration split, and a smaller training set: drawn so that they depend on nothing but the rows and a seed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from uq4ct.data.rows import normal
from uq4ct.errors import UserError
from uq4ct.types import Question


def split_calibration(
    questions: Sequence[Question], fraction: float, seed: int
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Split questions into those to fit on and those kept for calibration, each in the order given.

    Rows with the same question on the same context stay on one side. The draw depends on ids and seed alone, not on
    the order of rows.

    >>> rows = [Question(str(i), f"Question {i}?", ("yes", "no"), ("A", "B"), 0) for i in range(100)]
    >>> fit, calibration = split_calibration(rows, 0.1, seed=1)
    >>> len(fit), len(calibration), set(fit) & set(calibration)
    (90, 10, set())
    """
    if not 0 <= fraction < 1:
        raise UserError(f"data.calibration_fraction: expected a share from 0 to below 1, got {fraction}")
    wanted = _wanted(len(questions), fraction)
    if not wanted:
        return tuple(questions), ()
    same_text: dict[tuple[str, str], list[str]] = defaultdict(list)
    for question in questions:
        same_text[asked(question)].append(question.id)
    kept: set[str] = set()
    for ids in sorted(same_text.values(), key=lambda ids: _draw(seed, min(ids))):
        if len(kept) + len(ids) <= wanted:
            kept.update(ids)
    if wanted and not kept:
        raise UserError(
            f"no calibration split of {wanted} rows can be cut from {len(questions)}: rows with the same question text "
            "and context stay together, and there are too few different texts; set data.calibration_fraction: 0"
        )
    fit = tuple(question for question in questions if question.id not in kept)
    return fit, tuple(question for question in questions if question.id in kept)


def _wanted(rows: int, fraction: float) -> int:
    return min(max(1, round(fraction * rows)), rows - 1) if fraction > 0 else 0


def notes_on_size(calibration: int, rows: int, fraction: float) -> tuple[str, ...]:
    """Remark on a calibration split, cut from so many rows, that has less than half of what was asked for."""
    wanted = _wanted(rows, fraction)
    if 2 * calibration >= wanted:
        return ()
    return (
        f"data.calibration_fraction: {calibration:,} of {rows:,} rows are kept for calibration, where {wanted:,} were "
        "asked for: rows with the same question text and context stay together, and there are too few different ones",
    )


def asked(question: Question) -> tuple[str, str]:
    """Return what makes two rows the same question: context and text, whatever the choices and capitals."""
    return normal(question.context).casefold(), normal(question.question).casefold()


def draw_questions(questions: Sequence[Question], number: int | None, seed: int) -> tuple[Question, ...]:
    """Return so many of the questions, in the order given; all of them for None.

    They are the first after sorting by a hash of seed and content, so a smaller number takes a part of what a larger
    one takes, and neither ids nor the order of rows matter.

    >>> rows = [Question(str(i), f"Question {i}?", ("yes", "no"), ("A", "B"), 0) for i in range(100)]
    >>> ten, twenty = draw_questions(rows, 10, seed=1), draw_questions(rows[::-1], 20, seed=1)
    >>> len(ten), set(ten) < set(twenty)
    (10, True)
    """
    if number is None or number >= len(questions):
        return tuple(questions)

    def draw(row: int) -> tuple[str, int]:
        question = questions[row]
        return _draw(seed, "\0".join([question.question, question.context, *question.choices])), row

    kept = sorted(sorted(range(len(questions)), key=draw)[:number])
    return tuple(questions[row] for row in kept)


def _draw(seed: int, identifier: str) -> str:
    return hashlib.sha256(f"{seed}\0{identifier}".encode()).hexdigest()
