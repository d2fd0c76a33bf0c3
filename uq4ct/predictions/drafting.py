"""Rows of somebody's columns to prediction rows: the distribution, the answer, and everything else a row may have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uq4ct.data.answers import answer_indices
from uq4ct.data.choices import BadValue, Choices, read_choices
from uq4ct.data.files import RawRow, parse_json
from uq4ct.errors import UserError
from uq4ct.predictions import checks
from uq4ct.predictions.columns import Columns, Layout, find_layout
from uq4ct.predictions.writing import OPTIONAL, Row
from uq4ct.tasks import Schema

TEXT = ("id", "question", "label", "prediction", "task", "method", "group", "stratum")  # fields that are no numbers
KINDS = {"log_probabilities": "log-probabilities", "positive": "probability of class 1"}  # as people say


def read_columns(
    path: Path, raws: Sequence[RawRow], columns: Columns, problems: list[str]
) -> tuple[list[Row], str]:
    """Return complete rows with their places, and how they were read; add what is wrong to the problems."""
    names = list(dict.fromkeys(name for raw in raws for name in raw.values))
    layout, wrong = find_layout(names, columns) if names else (None, [])
    problems += [f"{path}: {problem}" for problem in wrong]
    if layout is None:
        return [], ""
    drafts = [_Draft(raw.place, _cells(raw, layout), raw.typed) for raw in raws]
    fill = _fill_distributions if layout.kinds and not _only_correct(layout, drafts) else _fill_confidences
    notes = fill(path, layout, drafts)
    rows: list[Row] = []
    for number, draft in enumerate(drafts, 1):
        if draft.row:
            _fill_rest(layout, draft, number)
        problems += [f"{draft.place}: {problem}" for problem in draft.problems]
        if draft.row and not draft.problems:
            kept = {key: value for key, value in draft.row.items() if value is not None or key not in OPTIONAL}
            rows.append(kept | {"place": draft.place})
    return rows, "; ".join([*notes, *_remarks(layout, names, drafts)])


_NO_CHOICES = Choices((), (), labelled=True, kind="")


@dataclass
class _Draft:
    """A row on its way to a prediction; ``problems`` collects everything that is wrong with it."""

    place: str
    values: Mapping[str, Any]
    typed: bool
    row: Row = field(default_factory=dict)
    choices: Choices = _NO_CHOICES
    problems: list[str] = field(default_factory=list)


def _cells(raw: RawRow, layout: Layout) -> dict[str, Any]:
    """Return a row's values; cells of a table as numbers or JSON where their field is no text."""
    if raw.typed:
        return raw.values
    text = {layout.single.get(field, field) for field in TEXT}
    return {name: (cell or None) if name in text else as_value(cell) for name, cell in raw.values.items()}


def as_value(cell: str) -> Any:
    """Read a cell as a number or as JSON; what is neither stays text, for a check to refuse.

    >>> as_value("[0.2, 0.8]"), as_value("-inf"), as_value("3"), as_value("x"), as_value(" ")
    ([0.2, 0.8], -inf, 3, 'x', None)
    """
    word = cell.strip()
    if not word:
        return None
    for kind in (int, float, parse_json if word[0] in "[{" else float):
        try:
            return kind(word)
        except (ValueError, RecursionError):
            continue
    return cell


# ------------------------------------------------------------------------------------------------ with distributions


def _only_correct(layout: Layout, drafts: Sequence[_Draft]) -> bool:
    """Tell a file that says whether the answers were right, and nowhere what the right answers are."""
    if "correct" not in layout.single or any(layout.value(draft.values, "label") is not None for draft in drafts):
        return False
    return any(layout.value(draft.values, "correct") is not None for draft in drafts)


def _fill_distributions(path: Path, layout: Layout, drafts: Sequence[_Draft]) -> list[str]:
    """Fill the rows of a file with probabilities; return remarks on how."""
    unread: list[str] = []
    for draft in drafts:
        probabilities, logits = checks.distribution(layout, draft.values, draft.problems.append)
        if probabilities:
            value = layout.value(draft.values, "choices")
            listed = isinstance(layout.value(draft.values, layout.kinds[0]), list)  # without labels of its own
            unreadable = draft.problems.append if listed else unread.append
            draft.choices = _choices(value, tuple(probabilities), draft.problems.append, unreadable)
            values = zip(draft.choices.labels, probabilities.values(), strict=True)
            draft.row = {"probabilities": dict(values), "logits": logits}
    notes = _find_answers(path, layout, [draft for draft in drafts if draft.row])
    for draft in drafts:
        if draft.row:
            _complete(layout, draft)
    kinds = " and ".join(f"{KINDS.get(kind, kind)} from {layout.describe(kind)}" for kind in layout.kinds)
    return [kinds, *notes, *([f"choices of {len(unread):,} rows not read ({unread[0]})"] if unread else [])]


def _choices(value: Any, own: tuple[str, ...], complain: checks.Complain, unreadable: checks.Complain) -> Choices:
    """Return labels and texts of a row's choices: the distribution's own labels, with the texts that the row names."""
    lettered = own == tuple(chr(ord("A") + k) for k in range(len(own)))
    alone = Choices(own, own, labelled=not lettered, kind="")
    if value is None:
        return alone
    if isinstance(value, list) and len(value) == len(own) and all(isinstance(text, str) and text for text in value):
        return alone if set(value) == set(own) else Choices(tuple(value), own, labelled=not lettered, kind="")
    try:
        named = read_choices({"choices": value}, Schema("predictions"), None)
    except BadValue as error:
        if isinstance(value, list | Mapping):
            complain(str(error))
        else:
            unreadable(f"expected 'choices' as a list of {len(own)} texts, got {checks.shown(value)}")
        return alone
    if len(named.texts) != len(own):
        complain(f"{len(named.texts)} choices, but probabilities of {len(own)}")
        return alone
    if set(named.texts) == set(own):
        return alone
    texts = dict(zip(named.labels, named.texts, strict=True))
    if named.labelled and set(texts) == set(own):
        return Choices(tuple(texts[label] for label in own), own, labelled=True, kind="")
    if named.labelled and not lettered:
        complain(f"choices are labelled {', '.join(named.labels)}, but probabilities {', '.join(own)}")
        return alone
    return named if named.labelled else Choices(named.texts, own, labelled=not lettered, kind="")


def _find_answers(path: Path, layout: Layout, drafts: Sequence[_Draft]) -> list[str]:
    """Find gold and predicted labels, both read in the same way, the one that fits the whole file."""
    given = [
        (draft, name, value)
        for draft in drafts
        for name in ("label", "prediction")
        if (value := layout.value(draft.values, name)) is not None and value != ""
    ]
    waiting = []
    for draft, name, value in given:
        if isinstance(value, str) and value in draft.choices.labels:
            draft.row[name] = value
        waiting.append((draft, name, value))
    if all(draft.row.get(name) is not None for draft, name, _ in given):
        return [f"label from {layout.describe('label')}"] if "label" in layout.single else []
    outcome = answer_indices(
        [value for _, _, value in waiting],
        [draft.choices for draft, _, _ in waiting],
        column="label",
        source=str(path),
        typed=all(draft.typed for draft, _, _ in waiting),
    )
    for (draft, name, _), found in zip(waiting, outcome.results, strict=True):
        if isinstance(found, int):
            draft.row[name] = draft.choices.labels[found]
        else:
            draft.problems.append(found.replace("label", name, 1))
    notes = [note.removeprefix(f"{path}: label is ") for note in outcome.notes]
    return [", ".join([f"label from {layout.describe('label')}", *notes])] if "label" in layout.single else notes


def _complete(layout: Layout, draft: _Draft) -> None:
    """Compute prediction, confidence and correctness, and compare them with what the row says itself."""
    row, values, complain = draft.row, draft.values, draft.problems.append
    probabilities = row["probabilities"]
    row["prediction"] = row.get("prediction") or max(probabilities, key=probabilities.__getitem__)
    row["confidence"] = probabilities[row["prediction"]]
    row["label"] = row.get("label")
    row["correct"] = None if row["label"] is None else row["prediction"] == row["label"]
    row["choices"] = list(draft.choices.texts)
    truth = layout.value(values, "true_probabilities")
    row["true_probabilities"] = checks.vector(truth, "true_probabilities", len(probabilities), complain)
    row["samples"] = checks.samples(layout.value(values, "samples"), len(probabilities), complain)
    said = {
        "correct": checks.as_bool(layout.value(values, "correct"), "correct", complain),
        "confidence": checks.unit_number(layout.value(values, "confidence"), "confidence", complain),
    }
    checks.agree(said, row, complain)
    if said["correct"] is not None and layout.value(values, "label") in (None, ""):
        complain(f"'correct' is {said['correct']}, but there is no label, as other rows have; add it or drop 'correct'")


# --------------------------------------------------------------------------------------------- without distributions


def _fill_confidences(path: Path, layout: Layout, drafts: Sequence[_Draft]) -> list[str]:
    """Fill the rows of a file that says how sure each answer was and whether it was right; return remarks on how."""
    spread = bool(layout.kinds)
    for draft in drafts:
        if spread:
            probabilities, _ = checks.distribution(layout, draft.values, draft.problems.append)
            confidence: float | None = max(probabilities.values(), default=None)
            correct = checks.as_bool(layout.value(draft.values, "correct"), "correct", draft.problems.append)
        else:
            confidence, correct = checks.confidence_and_correct(layout, draft.values, draft.problems.append)
        draft.row = {
            "probabilities": None,
            "prediction": _answer(layout.value(draft.values, "prediction")),
            "confidence": confidence,
            "label": _answer(layout.value(draft.values, "label")),
            "correct": correct,
            "choices": [],
        }
    if not spread:
        _refuse_unlike(path, layout, drafts)
    sure = " and ".join(map(layout.describe, layout.kinds)) if spread else layout.describe("confidence")
    right = [layout.describe(field) for field in ("correct", "prediction", "label") if field in layout.single]
    why = "the right answers are not given" if spread else "no probabilities"
    return [f"confidence from {sure}; correct from {', '.join(right)}; {why}: metrics that need them are null"]


def _refuse_unlike(path: Path, layout: Layout, drafts: Sequence[_Draft]) -> None:
    """Raise UserError where no prediction is the label of any row: nothing then tells that both mean the same things.

    Only rows that do not say themselves whether they are right are looked at.
    """
    untold = [draft.row for draft in drafts if layout.value(draft.values, "correct") in (None, "")]
    pairs = [row for row in untold if row["prediction"] is not None and row["label"] is not None]
    given = [list(dict.fromkeys(row[name] for row in pairs)) for name in ("prediction", "label")]
    predicted, right = ({checks.word(text) for text in texts} for texts in given)
    if pairs and not predicted & right:
        shown = [", ".join(map(checks.shown, texts[:3])) + ", ..." * (len(texts) > 3) for texts in given]
        raise UserError(
            f"{path}: no prediction ({shown[0]}) is the label of any row ({shown[1]}), so that every answer would "
            "count as wrong; write both in the same way, or add 'correct' (true or false)"
        )


def _fill_rest(layout: Layout, draft: _Draft, number: int) -> None:
    """Add what is the same for all rows, in the order of the documented schema."""
    values, complain = draft.values, draft.problems.append
    identity, question = layout.value(values, "id"), layout.value(values, "question")
    uncertainty = layout.value(values, "uncertainty")
    uncertainty = uncertainty if isinstance(uncertainty, Mapping) else {}
    row = draft.row
    draft.row = {
        "id": str(number) if identity is None else str(identity),
        "question": "" if question is None else str(question),
        "choices": row["choices"],
        "prediction": row["prediction"],
        "confidence": row["confidence"],
        "probabilities": row["probabilities"],
        "feu": checks.unit_number(layout.value(values, "feu"), "feu", complain),
        "uncertainty": {name: uncertainty.get(name) for name in ("total", "aleatoric", "epistemic")},
        "label": row["label"],
        "correct": row["correct"],
        "abstained": checks.as_bool(layout.value(values, "abstained"), "abstained", complain) is True,
        "logits": row.get("logits"),
        "samples": row.get("samples"),
        "letter_mass": checks.unit_number(layout.value(values, "letter_mass"), "letter_mass", complain),
        "context_characters": checks.count(layout.value(values, "context_characters"), "context_characters", complain),
        "seen_tokens": checks.unit_number(layout.value(values, "seen_tokens"), "seen_tokens", complain),
        "group": _text(layout.value(values, "group")),
        "stratum": layout.value(values, "stratum"),
        "true_probabilities": row.get("true_probabilities"),
        "task": _text(layout.value(values, "task")),
        "method": _text(layout.value(values, "method")),
        "seed": _seed(layout.value(values, "seed"), complain),
    }


def _seed(value: Any, complain: checks.Complain) -> Any:
    """Read a number or a name; NaN is none."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list | Mapping) or value in (math.inf, -math.inf):
        complain(f"'seed' must be a number or a name, got {checks.shown(value)}")
        return None
    return value


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value).strip()


def _answer(value: Any) -> str | None:
    return None if checks.word(value) is None else str(value).strip()


def _remarks(layout: Layout, names: Sequence[str], drafts: Sequence[_Draft]) -> list[str]:
    """Say where the ids come from, by what a file is parted, which choices are missing, and what is not read."""
    remarks = [f"id from {layout.describe('id')}" if "id" in layout.single else "row numbers as ids"]
    if parts := [field for field in ("task", "method", "seed") if field in layout.single]:
        remarks.append(f"by {', '.join(parts)}")
    for columns in layout.spread.values():
        short = sum(any(draft.values.get(column) is None for column in columns.values()) for draft in drafts)
        if short:
            remarks.append(f"empty cells of {short:,} rows are choices that they have not")
    if layout.unread:
        shown = [*layout.unread[:6], *(["..."] if len(layout.unread) > 6 else [])]
        remarks.append(f"not read: {', '.join(shown)}")
    return remarks
