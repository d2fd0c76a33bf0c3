"""The many forms in which choices are written: lists, label-text pairs, columns, one delimited string."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from uq4ct.data.files import kind_of, parse_json
from uq4ct.tasks import Schema


class BadValue(Exception):
    """Say what is wrong with one value of a row; the message follows the column's name."""


@dataclass(frozen=True)
class Choices:
    """The choices of one row, its labels, whether the row named them itself, and how they were written."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    labelled: bool
    kind: str


def read_choices(values: Mapping[str, Any], schema: Schema, delimiter: str | None) -> Choices:
    """Read a row's choices in whatever form its layout has them; raise BadValue with the reason."""
    if schema.choices is None:
        return _checked("choices", schema.constant, schema.constant_labels, "the same for every row")
    if isinstance(schema.choices, tuple):
        return _from_columns(values, schema.choices, may_stop_early=not schema.gold_first)
    column = schema.choices
    if column not in values:
        raise BadValue(f"no '{column}'")
    value = values[column]
    if schema.labels and values.get(schema.labels) is not None:
        return _checked(column, value, values[schema.labels], "a list")
    if isinstance(value, str):
        return _from_string(column, value, delimiter)
    return _from_value(column, value)


def _from_value(column: str, value: Any) -> Choices:
    if isinstance(value, Mapping):
        if set(value) >= {"text", "label"}:
            return _checked(column, value["text"], value["label"], "{text, label}")
        pairs = {label: text for label, text in value.items() if text is not None}
        return _checked(column, list(pairs.values()), list(pairs), "an object of labels and texts")
    if not isinstance(value, list):
        raise BadValue(f"{column} is {kind_of(value)}, expected a list of texts")
    if value and all(isinstance(choice, Mapping) and {"text", "label"} <= set(choice) for choice in value):
        return _checked(column, [c["text"] for c in value], [c["label"] for c in value], "{text, label}")
    return _checked(column, value, None, "a list")


def _from_columns(values: Mapping[str, Any], columns: Sequence[str], may_stop_early: bool) -> Choices:
    """Read one choice per column. Empty columns at the end mean fewer choices in this row."""
    texts = [values.get(column) for column in columns]
    while may_stop_early and texts and texts[-1] in (None, ""):
        texts.pop()
    for column, text in zip(columns, texts, strict=False):
        if text is None or text == "":
            raise BadValue(f"{column} is {'empty' if text == '' else 'null'}")
    return _checked("choices", texts, None, "columns")


_DASHES = re.compile(r"\s*\n\s*-{3,}\s*\n\s*")
_LABELLED = re.compile(r"^\s*\(?([A-Za-z]|\d{1,2})[).:]\s+(.*)$", re.DOTALL)


def _from_string(column: str, value: str, delimiter: str | None) -> Choices:
    """Read choices written as one string: JSON, or parts separated by a delimiter, a dashed line or labelled lines."""
    text = value.strip()
    if not text:
        raise BadValue(f"{column} is empty")
    if delimiter is None and text[0] in "[{":
        try:
            return _from_value(column, parse_json(text))
        except (ValueError, RecursionError):
            raise BadValue(
                f"{column} is text that starts like a list but is not JSON; write it with double quotes: "
                '["first", "second"]'
            ) from None
    if delimiter is not None:
        parts = text.split(delimiter)
    elif _DASHES.search(text):
        parts = _DASHES.split(text)
    else:
        parts = text.splitlines()
        if len(parts) < 2 or not all(_LABELLED.match(part) for part in parts):
            raise BadValue(
                f"{column} is one text, expected a list; if it holds several choices, name what separates them: "
                "data.choice_delimiter: '|'"
            )
    matches = [_LABELLED.match(part) for part in parts]
    if all(matches):
        return _checked(column, [m[2] for m in matches if m], [m[1] for m in matches if m], "one delimited text")
    return _checked(column, parts, None, "one delimited text")


def _checked(column: str, texts: Any, labels: Any, kind: str) -> Choices:
    """Check number, texts and labels."""
    if not isinstance(texts, (list, tuple)):
        raise BadValue(f"{column} is {kind_of(texts)}, expected a list of texts")
    if not 2 <= len(texts) <= len(ascii_uppercase):
        raise BadValue(f"{len(texts)} choice{'s' * (len(texts) != 1)}, expected 2 to {len(ascii_uppercase)}")
    named = tuple(_part(f"choice {ascii_uppercase[i]}", text) for i, text in enumerate(texts))
    if labels is None:
        return Choices(named, tuple(ascii_uppercase[: len(named)]), labelled=False, kind=kind)
    if not isinstance(labels, (list, tuple)) or len(labels) != len(named):
        got = len(labels) if isinstance(labels, (list, tuple)) else kind_of(labels)
        raise BadValue(f"labels: expected one for each of the {len(named)} choices, got {got}")
    own = tuple(_part(f"label {i}", label) for i, label in enumerate(labels, start=1))
    if len(set(own)) < len(own):
        raise BadValue(f"the labels {', '.join(own)} repeat; every choice needs its own")
    return Choices(named, own, labelled=True, kind=kind)


def _part(name: str, value: Any) -> str:
    try:
        text = as_text(value)
    except BadValue as error:
        raise BadValue(f"{name} {error}") from None
    if text is None:
        raise BadValue(f"{name} is {'null' if value is None else 'empty'}")
    return text


def as_text(value: Any) -> str | None:
    """Return a scalar as text without outer white space, None where it is null or empty.

    Raises BadValue for lists, objects, numbers that are not finite, and characters that no tokenizer can take.

    >>> as_text(" ice "), as_text(3), as_text(True), as_text("  ")
    ('ice', '3', 'true', None)
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        raise BadValue(f"is {value}, which is not a value")
    if not isinstance(value, (str, int, float)):
        raise BadValue(f"is {kind_of(value)}, expected text")
    text = str(value).strip()
    if "\x00" in text:
        raise BadValue("contains a NUL character; the file is damaged or not a text file")
    if not text.isascii() and any(unicodedata.category(character) == "Cs" for character in text):
        raise BadValue("contains half of a surrogate pair, which is not a character; write the character itself")
    return text or None
