"""Which columns of somebody's file hold what: by name, or as the user says. Decided once for a file, and said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uq4ct.errors import UserError, did_you_mean

# The field first, then other names of it that are read when the field itself is not there.
NAMES: Mapping[str, tuple[str, ...]] = {
    "probabilities": ("probabilities", "probs", "proba", "probability"),
    "logits": ("logits",),
    "log_probabilities": ("log_probabilities", "logprobs", "log_probs"),
    "label": ("label", "answer", "gold", "target", "y_true", "true_label", "answerKey"),
    "prediction": ("prediction", "predicted", "pred", "y_pred"),
    "confidence": ("confidence", "conf"),
    "correct": ("correct", "is_correct"),
    "id": ("id", "question_id", "doc_id"),
    "question": ("question",),
    "choices": ("choices",),
    "task": ("task",),
    "method": ("method",),
    "seed": ("seed",),
    "group": ("group",),
    "feu": ("feu",),
}
# Columns with one choice each: p_A, p_B, ...; what follows the prefix is the choice's label.
PREFIXES: Mapping[str, tuple[str, ...]] = {
    "probabilities": ("p_", "prob_", "probs_", "proba_", "probability_"),
    "logits": ("logit_", "logits_"),
    "log_probabilities": ("logp_", "logprob_", "logprobs_", "log_prob_"),
}
DISTRIBUTIONS = tuple(PREFIXES)
POSITIVE = "positive"  # one column with the probability of class 1 of 0 and 1; never found by name
# Further fields of our own rows.
OWN = (
    "uncertainty",
    "abstained",
    "samples",
    "letter_mass",
    "context_characters",
    "seen_tokens",
    "stratum",
    "true_probabilities",
)


@dataclass(frozen=True)
class Columns:
    """What the user says of a file: field -> column, or one column per choice.

    >>> Columns.parse(["label=gold,probabilities=p_no,p_yes", "id=key"]).given
    {'label': ('gold',), 'probabilities': ('p_no', 'p_yes'), 'id': ('key',)}
    """

    given: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Columns:
        """Read ``field=column`` pairs with commas between; further columns follow the first: ``probabilities=a,b,c``.

        ``probabilities=p_*`` takes every column that starts with ``p_``. Raises UserError with every problem.
        """
        given: dict[str, tuple[str, ...]] = {}
        problems: list[str] = []
        for text in texts:
            field = ""
            for part in text.split(","):
                name, equals, column = part.partition("=")
                if equals:
                    field, column = name.strip(), column.strip()
                    problems += _refusals(field, column, given)
                    given[field] = (column,)
                elif field in DISTRIBUTIONS and part.strip():
                    given[field] = (*given[field], part.strip())
                else:
                    problems.append(f"--columns: expected field=column, got '{part.strip()}'")
        if problems:
            raise UserError(problems)
        return cls(given)

    def absent_from(self, names: Sequence[str]) -> list[str]:
        """Return one sentence for each column that the user names and a file does not have."""
        wanted = [column for columns in self.given.values() for column in columns]
        return [
            f"--columns: no column '{column}'; the file has {', '.join(names)}.{did_you_mean(column, names)}"
            for column in wanted
            if column not in names and not _labelled([column], names)
        ]


def _refusals(field: str, column: str, given: Mapping[str, Any]) -> list[str]:
    if field in given:
        return [f"--columns: '{field}' is given twice"]
    known = [*NAMES, POSITIVE]
    if field not in known:
        return [f"--columns: '{field}' is not one of {', '.join(known)}.{did_you_mean(field, known)}"]
    return [] if column else [f"--columns: no column after '{field}='"]


@dataclass(frozen=True)
class Layout:
    """Field -> its column, and kind of distribution -> one column per label, as one file has them."""

    single: Mapping[str, str]
    spread: Mapping[str, Mapping[str, str]]  # kind of distribution -> {label: column}
    unread: tuple[str, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Fields of the file that give a distribution."""
        return tuple(kind for kind in (*DISTRIBUTIONS, POSITIVE) if kind in self.single or kind in self.spread)

    def value(self, row: Mapping[str, Any], field: str) -> Any:
        """Return a row's value of a field; {label: value} where it is spread over columns; None where there is none.

        An empty cell of a choice means that the row has no such choice.
        """
        if field in self.spread:
            found = {label: row.get(column) for label, column in self.spread[field].items()}
            return {label: value for label, value in found.items() if value is not None} or None
        return row.get(self.single.get(field, field))

    def describe(self, field: str) -> str:
        """Say which columns a field is read from."""
        if field not in self.spread:
            return f"'{self.single[field]}'"
        columns = list(self.spread[field].values())
        shown = columns if len(columns) <= 6 else [*columns[:3], "...", columns[-1]]
        return f"{len(columns)} columns ({', '.join(shown)})"


def find_layout(names: Sequence[str], columns: Columns) -> tuple[Layout | None, list[str]]:
    """Return the layout of a file with these columns, or None and the problems.

    What the user names comes first, then columns that are called as the field, then other names of it: of these, there
    must be one only.
    """
    if problems := columns.absent_from(names):
        return None, problems
    single: dict[str, str] = {}
    spread: dict[str, dict[str, str]] = {}
    for field, wanted in columns.given.items():
        if len(wanted) == 1 and not wanted[0].endswith("*"):
            single[field] = wanted[0]
        else:
            spread[field] = _labelled(wanted, names)
    taken = {*single.values(), *(column for labels in spread.values() for column in labels.values())}
    free = [name for name in names if name not in taken]
    said = {*columns.given} & {*DISTRIBUTIONS, POSITIVE}
    for field in NAMES:
        if field not in columns.given and not (said and field in DISTRIBUTIONS):
            problems += _by_name(field, free, single, spread)
    read = {*single.values(), *(column for labels in spread.values() for column in labels.values()), *OWN}
    unread = tuple(name for name in names if name not in read)
    layout = Layout(single, spread, unread)
    problems += _lacking(layout, names) if not problems else []
    return (None if problems else layout), problems


def _labelled(columns: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Name each column's choice: what a star stands for, else the column's own name."""
    labels: dict[str, str] = {}
    for column in columns:
        if column.endswith("*"):
            stem = column[:-1]
            labels |= {name[len(stem) :]: name for name in names if name.startswith(stem) and len(name) > len(stem)}
        elif column in names:
            labels[column] = column
    return labels


def _by_name(field: str, free: Sequence[str], single: dict[str, str], spread: dict[str, dict[str, str]]) -> list[str]:
    """Find a field's column by name; return a problem where several could be it."""
    exact, *others = NAMES[field]
    if exact in free:
        single[field] = exact
        return []
    found = [name for name in others if name in free]
    groups = []
    for prefix in PREFIXES.get(field, ()):
        columns = [name for name in free if re.fullmatch(re.escape(prefix) + r".+", name)]
        groups += [(prefix, columns)] if len(columns) > 1 else []
    if len(found) + len(groups) > 1:
        shown = [f"'{name}'" for name in found] + [f"'{prefix}*'" for prefix, _ in groups]
        return [f"{' and '.join(shown)} could each be the {field}; say which: --columns {field}={shown[0][1:-1]}"]
    if found:
        single[field] = found[0]
    elif groups:
        prefix, columns = groups[0]
        spread[field] = {name[len(prefix) :]: name for name in columns}
    return []


def _lacking(layout: Layout, names: Sequence[str]) -> list[str]:
    """Say what a file of predictions must have and this one has not."""
    if layout.kinds:
        return []
    if "confidence" not in layout.single:
        return [
            "no probabilities; expected 'probabilities' (an object {label: p} or a list), one column per choice (p_A, "
            "p_B, ...), 'logits', 'log_probabilities', or 'confidence' and 'correct'; the file has "
            f"{', '.join(names)}; say where they are: --columns probabilities=..."
        ]
    if "correct" in layout.single or {"prediction", "label"} <= {*layout.single}:
        return []
    return ["'confidence' alone says nothing; add 'correct' (true or false), or 'prediction' and 'label'"]
