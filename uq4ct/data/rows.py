"""Raw rows to questions: find the columns, read the choices, look every answer up through the row's own labels."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from string import ascii_uppercase
from typing import Any

from uq4ct.data.answers import Outcome, answer_indices
from uq4ct.data.choices import BadValue, Choices, as_text, read_choices
from uq4ct.data.config import Counting, DataConfig
from uq4ct.data.files import RawRow, kind_of
from uq4ct.data.layout import find_layout, fitting_options, unread_columns
from uq4ct.data.problems import Rejected, listing, printable, rows_counted
from uq4ct.errors import UserError
from uq4ct.tasks import Row, Schema
from uq4ct.types import Question

_PLACES_SHOWN = 3
_MINUS_ONE = (-1, "-1")


@dataclass(frozen=True)
class ReadRows:
    """The questions of one source, the rows that were set aside, remarks, and what numeric answers count from."""

    questions: tuple[Question, ...]
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...]
    counted: Counting | None


@dataclass
class Draft:
    """A row on its way to a question; ``problems`` collects everything that is wrong with it."""

    place: str
    number: int
    text: str
    typed: bool
    question: str = ""
    choices: Choices | None = None
    answer: Any = None
    gold: int | None = None
    optional: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_questions(
    rows: Sequence[RawRow],
    source: str,
    config: DataConfig,
    *,
    schema: Schema | None = None,
    need_answers: bool = True,
    distinct_gold: bool = False,
    trained_on: bool = True,
    id_prefix: str = "",
) -> ReadRows:
    """Turn raw rows into questions.

    ``schema`` None recognises the layout by its columns. ``distinct_gold`` makes a gold text that stands at two letters
    an error. ``trained_on`` False says that the options describe another file, the one that was trained on:
    ``config.columns`` and ``config.choices`` are dropped where this one has other columns, and ``config.answers``
    decides where no row does. Raises UserError listing every bad row, unless ``config.skip_bad_rows``.
    """
    if not trained_on:
        config = fitting_options(rows, config)
    recognised = schema is None  # a task leaves unread on purpose what its schema does not name
    schema = find_layout(rows, source, config, schema, need_answers)
    kept = [row for row in rows if row.problem or schema.keep is None or schema.keep(row.values)]
    drafts = [_draft(row, number, schema, config) for number, row in enumerate(kept, start=1)]
    _check_one_kind(drafts)
    outcome = _resolve_answers(drafts, source, schema, need_answers, _counting(config, schema, recognised, trained_on))
    notes = [] if schema.zero_based else list(outcome.notes)
    _check_gold_texts(drafts, distinct_gold)
    questions = _finish(drafts, id_prefix)
    rejected = tuple(Rejected(d.place, tuple(d.problems), d.text) for d in drafts if d.problems)
    if rejected and not config.skip_bad_rows:
        raise UserError(listing(rejected, len(drafts), source))
    if not questions:
        raise UserError([*listing(rejected, len(drafts), source)[:-1], f"{source}: no good row is left"])
    notes += unread_columns(rows, schema, source) if recognised else []
    if len(kept) < len(rows):
        notes.append(
            f"{source}: {rows_counted(len(rows) - len(kept))} left out that the data set's authors did not validate"
        )
    if rejected:
        notes.append(f"{source}: {rows_counted(len(rejected))} of {len(drafts)} bad and set aside")
    notes += _remarks(questions, source)
    return ReadRows(questions, rejected, tuple(map(printable, notes)), outcome.counted)


def one_question(question: str, choices: Sequence[str], context: str = "") -> Question:
    """Return a question that stands in no file, its texts read as a file's are: without outer white space.

    Raises UserError with all that is wrong with it.

    >>> one_question(" Which melts first? ", ["ice ", "iron"]).choices
    ('ice', 'iron')
    """
    values = {"id": "question", "question": question, "choices": list(choices), "context": context}
    draft = _draft(RawRow("question", values), 1, Schema(name="question"), DataConfig())
    if draft.problems:
        raise UserError(draft.problems)
    return _finish([draft], "")[0]


def _draft(row: RawRow, number: int, schema: Schema, config: DataConfig) -> Draft:
    """Read one row's fields, collecting all of its problems."""
    draft = Draft(row.place, number, row.text, row.typed)
    if row.problem:
        draft.problems.append(row.problem)
        return draft
    values = schema.unpack(row.values) if schema.unpack else row.values
    draft.question = _required_text(draft, values, schema.question)
    try:
        draft.choices = read_choices(values, schema, config.choice_delimiter)
    except BadValue as error:
        draft.problems.append(str(error))
    if schema.gold_first and draft.choices:
        draft.choices, draft.gold = _shuffle(draft.question, draft.choices)
    else:
        draft.answer = values.get(schema.answer)
    for name in ("context", "id", "group", "stratum"):
        column = getattr(schema, name)
        try:
            draft.optional[name] = as_text(values.get(column)) if column else None
        except BadValue as error:
            draft.problems.append(f"{column} {error}")
    draft.optional["true_probabilities"] = _probabilities(draft, values, schema)
    return draft


def _required_text(draft: Draft, values: Row, column: str) -> str:
    if column not in values:
        draft.problems.append(f"no '{column}'")
        return ""
    value = values[column]
    if value is not None and not isinstance(value, str):
        draft.problems.append(f"{column} is {kind_of(value)}, expected text")
        return ""
    try:
        text = as_text(value)
    except BadValue as error:
        draft.problems.append(f"{column} {error}")
        return ""
    if text is None:
        draft.problems.append(f"{column} is {'null' if value is None else 'empty'}")
    return text or ""


def _shuffle(question: str, choices: Choices) -> tuple[Choices, int]:
    """Order choices by a hash of their content; the first was the gold one."""
    order = sorted(range(len(choices.texts)), key=lambda i: _digest(question, choices.texts[i]))
    return replace(choices, texts=tuple(choices.texts[i] for i in order)), order.index(0)


def _probabilities(draft: Draft, values: Row, schema: Schema) -> tuple[float, ...] | None:
    value = values.get(schema.true_probabilities) if schema.true_probabilities else None
    if value is None or draft.choices is None:
        return None
    numbers = isinstance(value, list) and all(isinstance(p, (int, float)) and 0 <= p <= 1 for p in value)
    count = len(draft.choices.texts)
    if not numbers or len(value) != count or abs(sum(value) - 1) > 1e-3:
        draft.problems.append(f"true_probabilities: expected {count} numbers from 0 to 1 with sum 1, got {value!r:.80}")
        return None
    return tuple(float(p) for p in value)


def _check_one_kind(drafts: list[Draft]) -> None:
    """Mark rows whose choices are of another kind than those of most rows: half of such a file would be misread."""
    kinds = Counter(draft.choices.kind for draft in drafts if draft.choices)
    if len(kinds) < 2:
        return
    usual = kinds.most_common(1)[0][0]
    model = next(draft.place for draft in drafts if draft.choices and draft.choices.kind == usual)
    for draft in drafts:
        if draft.choices and draft.choices.kind != usual:
            draft.problems.append(f"choices are {draft.choices.kind}, but {usual} at {model}; use one form in a file")


def _counting(config: DataConfig, schema: Schema, recognised: bool, trained_on: bool) -> dict[str, Any]:
    """Return what is known of numeric answers before they are seen, as ``answer_indices`` takes it."""
    stated = None if config.answers == "auto" else config.answers
    if schema.zero_based:
        return {"only": "index"}
    if trained_on:
        return {"only": stated, "undecided": ": set data.answers to index or position if you know" * recognised}
    read_alike = ", so they are read as those trained on; letters A, B, C, ... would say it"
    return {"like": stated, "undecided": read_alike if stated else ""}


def _resolve_answers(
    drafts: list[Draft], source: str, schema: Schema, need_answers: bool, counting: dict[str, Any]
) -> Outcome:
    """Set each draft's gold index, or its problem; return how the answers were read."""
    waiting = [draft for draft in drafts if draft.choices is not None and draft.gold is None]
    hides = any(_plain(draft.answer) in _MINUS_ONE and not _offers(draft, "-1") for draft in waiting)
    given: list[Draft] = []
    for draft in waiting:
        if not (reason := _unknown(draft.answer, hides)):
            given.append(draft)
        elif need_answers:
            draft.problems.append(f"{schema.answer} is {reason}; only predict reads rows without answers")
    outcome = answer_indices(
        [draft.answer for draft in given],
        [draft.choices for draft in given if draft.choices],
        column=schema.answer,
        source=source,
        typed=all(draft.typed for draft in given),
        **counting,
    )
    for draft, result in zip(given, outcome.results, strict=True):
        if isinstance(result, int):
            draft.gold = result
        else:
            draft.problems.append(result)
    return outcome


def _unknown(answer: Any, hides: bool) -> str:
    """Say why an answer says nothing, or nothing where it does. ``hides``: the file marks hidden labels by -1."""
    plain = _plain(answer)
    if plain is None or plain == "":
        return "missing"
    return "-1, the mark of a hidden test label" if hides and plain in _MINUS_ONE else ""


def _plain(answer: Any) -> Any:
    return answer.strip() if isinstance(answer, str) else answer


def _offers(draft: Draft, name: str) -> bool:
    return draft.choices is not None and name in (*draft.choices.labels, *draft.choices.texts)


def _check_gold_texts(drafts: list[Draft], distinct_gold: bool) -> None:
    for draft in drafts if distinct_gold else []:
        if twice := _letters_of_gold(draft):
            draft.problems.append(
                f"the gold text {draft.choices.texts[draft.gold]!r:.60} stands at {' and '.join(twice)}: "  # type: ignore[union-attr,index]
                "training would punish a right answer; make the choices distinct"
            )


def _letters_of_gold(draft: Draft) -> list[str]:
    if draft.choices is None or draft.gold is None:
        return []
    texts = [normal(text) for text in draft.choices.texts]
    letters = [ascii_uppercase[i] for i, text in enumerate(texts) if text == texts[draft.gold]]
    return letters if len(letters) > 1 else []


def _finish(drafts: list[Draft], id_prefix: str) -> tuple[Question, ...]:
    """Build the questions of the good drafts; a repeated id is a problem of its second row."""
    questions: list[Question] = []
    places: dict[str, str] = {}
    for draft in drafts:
        identifier = draft.optional.get("id") or id_prefix + _content_id(draft)
        if not draft.problems and identifier in places:
            draft.problems.append(f"id '{identifier}' is used twice (first at {places[identifier]})")
        if draft.problems or draft.choices is None:
            continue
        places[identifier] = draft.place
        questions.append(
            Question(
                id=identifier,
                question=draft.question,
                choices=draft.choices.texts,
                labels=draft.choices.labels,
                answer=draft.gold,
                context=draft.optional["context"] or "",
                group=draft.optional["group"],
                stratum=draft.optional["stratum"],
                true_probabilities=draft.optional["true_probabilities"],
                place=draft.place,
            )
        )
    return tuple(questions)


def _content_id(draft: Draft) -> str:
    texts = draft.choices.texts if draft.choices else ()
    return f"{_digest(draft.question, *texts, draft.optional.get('context') or '')[:12]}-{draft.number}"


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", errors="replace")).hexdigest()


def normal(text: str) -> str:
    """Return the form in which texts are compared: NFC, without outer white space."""
    return unicodedata.normalize("NFC", text).strip()


def _remarks(questions: Sequence[Question], source: str) -> list[str]:
    """Count what is allowed but worth knowing: equal choices, gold texts at two letters, repeats, a single label."""
    equal, golden = [], []
    for question in questions:
        texts = [normal(choice) for choice in question.choices]
        if len(set(texts)) < len(texts):
            equal.append(question.place)
            if question.answer is not None and texts.count(texts[question.answer]) > 1:
                golden.append(question.place)
    remarks = []
    if equal:
        remarks.append(f"{source}: {rows_counted(len(equal))} with two equal choices ({_some(equal)})")
    if golden:
        remarks.append(f"{source}: {rows_counted(len(golden))} whose gold text stands at two letters ({_some(golden)})")
    contents = Counter((normal(q.question), q.context, tuple(map(normal, q.choices))) for q in questions)
    if repeats := sum(count - 1 for count in contents.values()):
        remarks.append(f"{source}: {rows_counted(repeats)} with the question and choices of an earlier one")
    golds = {question.answer for question in questions}
    if len(questions) > 1 and len(golds) == 1 and None not in golds:
        remarks.append(f"{source}: every answer is '{questions[0].gold}'; AUROC and ECE say little on such data")
    return remarks


def _some(places: Sequence[str]) -> str:
    short = [places[0], *(place.rsplit(":", 1)[1] for place in places[1:_PLACES_SHOWN])]
    return ", ".join(short) + (", ..." if len(places) > _PLACES_SHOWN else "")
