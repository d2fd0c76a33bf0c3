"""Answers to choice indices: labels, positions or texts, decided once for a file and never guessed row by row."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uq4ct.data.choices import BadValue, Choices, as_text
from uq4ct.data.config import Counting
from uq4ct.errors import UserError

_READ_AS = {
    "label": "labels",
    "text": "the texts of choices",
    "index": "positions counted from 0",
    "position": "positions counted from 1",
}
_ONE_OF = {
    "label": "a label",
    "text": "the text of a choice",
    "index": "a position counted from 0",
    "position": "a position counted from 1",
}
_NUMBERS_FIRST = ("index", "position", "text")
_TEXT_FIRST = ("text", "index", "position")
_OTHER_COUNT = {"index": "position", "position": "index"}
_DRESSED = re.compile(r"\(?(\w{1,2})[).:]")  # "a)", "(B)", "C."
_YES_NO = {"true": ("true", "yes"), "false": ("false", "no")}


@dataclass(frozen=True)
class Outcome:
    """For each row the index of its gold choice, or the sentence that says why there is none; and remarks.

    ``counted`` says what the answers were taken to count from, None where they are labels or texts.
    """

    results: tuple[int | str, ...]
    notes: tuple[str, ...]
    counted: Counting | None = None


def answer_indices(
    answers: Sequence[Any],
    choices: Sequence[Choices],
    *,
    column: str = "answer",
    source: str = "",
    only: Counting | None = None,
    like: Counting | None = None,
    undecided: str = "",
    typed: bool = True,
) -> Outcome:
    """Find the gold choice of every row.

    The reading that fits most rows is taken for the whole file; rows outside it are errors. Labels that a row brings
    itself come first, so that files mixing A-E and 1-4 are read right. ``only`` says what numbers count from, whatever
    they look like, and ``like`` what they do where counting from 0 and from 1 fit as many rows; ``undecided`` is added
    to the remark that no row says it. ``typed`` is False where all values are text.

    >>> four = Choices(("ice", "iron", "salt", "sand"), ("1", "2", "3", "4"), labelled=True, kind="a list")
    >>> answer_indices(["1", 4, "5"], [four] * 3, column="answerKey").results
    (0, 3, "answerKey '5' is not one of the labels 1, 2, 3, 4")
    """
    if not answers:
        return Outcome((), ())
    readings = [_readings(answer, row) for answer, row in zip(answers, choices, strict=True)]
    if only:
        readings = [{k: v for k, v in reading.items() if k in ("label", "text", only)} for reading in readings]
    numbers = sum(isinstance(answer, (int, float)) and not isinstance(answer, bool) for answer in answers)
    order = ["label", *([only] if only else []), *(_NUMBERS_FIRST if 2 * numbers > len(answers) else _TEXT_FIRST)]
    if like == "position":
        order = [_OTHER_COUNT.get(kind, kind) for kind in order]  # it comes first of the two, texts where they were
    fits = Counter(kind for reading in readings for kind in reading)
    chosen = max(order, key=lambda kind: (fits[kind], -order.index(kind)))
    if not typed and chosen not in ("label", only):
        _refuse_ambiguity(readings, like or "index", source, column)
    results = tuple(
        reading[chosen] if chosen in reading else _mismatch(column, answer, row, reading, chosen)
        for answer, row, reading in zip(answers, choices, readings, strict=True)
    )
    counted: Counting | None = "index" if chosen == "index" else "position" if chosen == "position" else None
    return Outcome(results, _notes(chosen, fits, len(answers), source, column, undecided), counted)


def _readings(answer: Any, row: Choices) -> dict[str, int]:
    """List every way in which an answer can be read, with the index it then means."""
    try:
        word = as_text(int(answer) if isinstance(answer, float) and answer.is_integer() else answer)
    except BadValue:
        return {}
    if word is None:
        return {}
    found: dict[str, int] = {}
    labels, texts = [_key(label) for label in row.labels], [_key(text) for text in row.texts]
    if (label := _match(_key(word), labels)) is not None:
        found["label"] = label
    elif (meant := _truth(word, labels, texts)) is not None:
        found["label"] = meant
    elif (dressed := _DRESSED.fullmatch(word)) and (label := _match(_key(dressed[1]), labels)) is not None:
        found["label"] = label
    if (text := _match(_key(word), texts)) is not None:
        found["text"] = text
    numeric_labels = row.labelled and all(label.isdecimal() for label in labels)
    if word.isdecimal() and len(word) < 3 and not numeric_labels and not isinstance(answer, bool):
        number = int(word)
        found |= {"index": number} if number < len(texts) else {}
        found |= {"position": number - 1} if 1 <= number <= len(texts) else {}
    return found


def _key(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _match(word: str, names: Sequence[str]) -> int | None:
    """Return the one name that equals the word, else the one that does so but for capitals."""
    for same in (str, str.casefold):
        equal = [i for i, name in enumerate(names) if same(name) == same(word)]
        if equal:
            return equal[0] if len(equal) == 1 else None
    return None


def _truth(word: str, labels: Sequence[str], texts: Sequence[str]) -> int | None:
    """Look true and false up as yes and no, by meaning and not by position."""
    words = _YES_NO.get(word.casefold(), ())
    for names in (labels, texts):
        equal = [i for i, name in enumerate(names) if name.casefold() in words]
        if len(equal) == 1:
            return equal[0]
    return None


def _refuse_ambiguity(readings: Sequence[dict[str, int]], count: Counting, source: str, column: str) -> None:
    both = all("text" in reading and count in reading for reading in readings)
    if both and any(reading["text"] != reading[count] for reading in readings):
        raise UserError(
            f"{source}: every {column} could be the text of a choice or its position counted from "
            f"{'0' if count == 'index' else '1'}; write the letters A, B, C, ... instead"
        )


def _mismatch(column: str, answer: Any, row: Choices, reading: dict[str, int], chosen: str) -> str:
    shown = f"{column} {str(answer).lower() if isinstance(answer, bool) else repr(answer):.60}"
    if isinstance(answer, (list, dict)):
        return f"{column} is {'a list' if isinstance(answer, list) else 'an object'}, expected one label"
    aside = f"; here it could be {_ONE_OF[next(iter(reading))]}" if reading else ""
    if chosen in ("index", "position"):
        first = int(chosen == "position")
        span = f"from {first} to {len(row.texts) - 1 + first}"
        return f"{shown} is not a position {span} (the file's answers are read as {_READ_AS[chosen]}{aside})"
    if chosen == "text":
        near = difflib.get_close_matches(str(answer), row.texts, n=1)
        hint = f" Did you mean {near[0]!r:.60}?" if near else ""
        if _key(str(answer)) in map(_key, row.texts):
            return f"{shown} is the text of two choices; write the letter of the right one"
        return f"{shown} is not one of the choices {', '.join(repr(text)[:40] for text in row.texts)}{aside}.{hint}"
    own = f" (the file's answers are read as labels{aside})" if aside else ""
    return f"{shown} is not one of the labels {', '.join(row.labels)}{own}"


def _notes(
    chosen: str, fits: Counter[str], total: int, source: str, column: str, undecided: str
) -> tuple[str, ...]:
    if chosen == "label":
        return ()
    note = f"{source}: {column} is read as {_READ_AS[chosen]}"
    if chosen in ("index", "position") and fits["index"] == fits["position"] == total:
        note += f"; no row says whether they are counted from 0 or from 1{undecided}"
    return (note,)
