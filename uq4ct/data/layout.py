"""Which columns hold what: a file's layout, recognised by its columns or mapped by the user."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from uq4ct.data.config import Columns, DataConfig
from uq4ct.data.files import RawRow
from uq4ct.data.problems import Rejected, listing
from uq4ct.errors import UserError
from uq4ct.tasks import Schema, schemas
from uq4ct.tasks.own import LETTERED, OWN


def find_layout(
    rows: Sequence[RawRow], source: str, config: DataConfig, schema: Schema | None, need_answers: bool
) -> Schema:
    """Return the layout of the columns that most rows have; raise UserError naming the columns that are missing."""
    good = [row for row in rows if not row.problem]
    if not good:
        raise UserError(listing([Rejected(row.place, (row.problem,)) for row in rows], len(rows), source))
    counts = Counter(column for row in good for column in row.values)
    usual = {column for column, count in counts.items() if 2 * count >= len(good)}
    sample = next((row.values for row in good if usual <= set(row.values)), good[0].values)
    named = config.columns.given()
    if absent := [column for column in _flat(named) if column not in counts]:
        raise UserError(
            f"{source}: data.columns names {_quoted(absent)}, but the columns are {_quoted(list(counts))}."
            + _nearest(absent[0], list(counts))
        )
    for candidate in _candidates(config, schema, counts):
        if found := candidate.fit(usual, sample, counts):
            if found.refusal:
                raise UserError(f"{source}: {found.refusal}")
            if need_answers and found.answer not in counts:
                raise UserError(_missing_columns(source, list(counts), found, [("answer", found.answer)]))
            return found
    expected = replace(schema or OWN, **named)
    wanted = [("question", expected.question), *(("choices", name) for name in expected.choice_columns)]
    wanted += [("answer", expected.answer)] if need_answers else []
    missing = [(role, column) for role, column in wanted if column not in usual]
    raise UserError(_missing_columns(source, list(counts), expected, missing))


def _candidates(config: DataConfig, schema: Schema | None, columns: Collection[str]) -> list[Schema]:
    """List the layouts to try. One whose question or choices the user named is the user's own, never a public one.

    Only a task vouches for what its numbers count from: another file with the same columns may count from 1.
    """
    own = {"group": OWN.group} if OWN.group in columns else {}
    named: dict[str, Any] = {**own, **config.columns.given()}
    given = [replace(schema, absent=(), recognise=None)] if schema else []
    known = given or [replace(s, zero_based=False) for s in schemas()]
    if config.choices is not None:
        constant: dict[str, Any] = {"choices": None, "constant": config.choices, "constant_labels": config.choices}
        known = [s for s in known if s.choices is None and not s.refusal] or [schema or OWN]
        return [replace(s, **named, **constant, absent=()) for s in [*known, *([] if schema else [OWN])]]
    if schema is None and {"question", "choices"} & set(named):
        known = [OWN] if "choices" in named else [OWN, LETTERED]
    return [replace(s, **named) for s in known]


def fitting_options(rows: Sequence[RawRow], config: DataConfig) -> DataConfig:
    """Drop the options that describe another file's columns."""
    columns = {column for row in rows for column in row.values}
    named = {key: value for key, value in config.columns.given().items() if key in ("question", "choices")}
    if any(column not in columns for column in _flat(named)):
        config = config.model_copy(update={"columns": Columns()})
    present = {k: v for k, v in config.columns.given().items() if all(column in columns for column in _flat({k: v}))}
    own_choices = config.choices is not None and "choices" in columns
    return config.model_copy(update={"columns": Columns(**present), "choices": None if own_choices else config.choices})


def unread_columns(rows: Sequence[RawRow], schema: Schema, source: str) -> list[str]:
    """Remark on columns that a layout leaves unread, and not on purpose: one of them may be the passage."""
    labels = schema.labels if isinstance(schema.choices, str) else None
    optional = (schema.context, schema.id, schema.group, labels, schema.stratum, schema.true_probabilities)
    used = {*schema.required, schema.answer, *schema.ignored, *optional}
    columns = dict.fromkeys(column for row in rows for column in row.values)
    unread = [column for column in columns if column not in used]
    if not unread:
        return []
    hint = "" if schema.context in columns else " (a passage? data.columns: {context: ...})"
    return [f"{source}: columns not read: {_quoted(unread)}{hint}"]


def _flat(named: dict[str, Any]) -> list[str]:
    columns = [named.get(key) for key in ("question", "answer", "context", "id", "group")]
    choices = named.get("choices")
    columns += [choices] if isinstance(choices, str) else list(choices or ())
    return [column for column in columns if column]


_OTHER_NAMES = {
    "question": ("query", "prompt", "stem", "text", "sentence", "input", "q", "question_text", "ask"),
    "choices": ("options", "candidates", "answers", "endings", "opts", "alternatives"),
    "answer": ("label", "gold", "target", "correct", "answerkey", "answer_key", "key", "solution", "correct_answer"),
}


def _missing_columns(source: str, columns: list[str], schema: Schema, missing: list[tuple[str, str]]) -> str:
    unnamed = [role for role in ("question", "choices", "answer") if (role, role) in missing]
    mapping = ", ".join(f"{role}: {_guess(role, columns) or '...'}" for role in unnamed)
    wanted = _quoted([name for _, name in missing])
    message = f"{source}: no column {wanted}; the columns are {_quoted(columns)}."
    if not mapping:
        return f"{message} The layout is that of {schema.name}"
    message += _nearest(missing[0][1], columns) if _guess(missing[0][0], columns) is None else ""
    message += f" Say which they are: data.columns: {{{mapping}}}"
    if ("choices", "choices") in missing:
        message += "; or give every row the same choices: data.choices: [first, second]"
    if missing == [("answer", "answer")]:
        message += ". Only predict reads rows without answers"
    return message


def _guess(role: str, columns: list[str]) -> str | None:
    by_name = {column.casefold(): column for column in columns}
    near = difflib.get_close_matches(role, by_name, n=1, cutoff=0.75)
    return next((by_name[name] for name in (*near, *_OTHER_NAMES[role]) if name in by_name), None)


def _nearest(word: str, columns: list[str]) -> str:
    near = difflib.get_close_matches(word, columns, n=1)
    return f" The nearest to '{word}' is '{near[0]}'." if near else ""


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f"'{word}'" for word in words)
