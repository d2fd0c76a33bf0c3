"""What a data set file of this folder declares: where its splits lie, and which columns hold what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from string import ascii_uppercase
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Schema:
    """Say which columns of a row hold the question, its choices and its answer.

    ``choices`` is one column (a list, ``{text, label}``, or one delimited string), a tuple of columns with one choice
    each, or None where ``constant`` gives every row the same choices. The other columns are read where they are there.
    """

    name: str
    question: str = "question"
    choices: str | tuple[str, ...] | None = "choices"
    answer: str = "answer"
    context: str | None = "context"
    id: str | None = "id"
    group: str | None = "group"  # a file's own column 'group' comes before another that is named here
    labels: str | None = "labels"  # beside one column of choices
    stratum: str | None = None
    true_probabilities: str | None = None
    constant: tuple[str, ...] = ()
    constant_labels: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()  # columns left unread on purpose
    marks: tuple[str, ...] = ()  # further columns by which the layout is recognised
    absent: tuple[str, ...] = ()  # columns that must not be there
    recognise: Callable[[Row], bool] | None = None  # a look at one row's values
    unpack: Callable[[Row], Row] | None = None  # rearranges nested columns; must accept any row
    keep: Callable[[Row], bool] | None = None  # rows that the data set's authors leave out
    lettered: bool = False  # choices stand in columns A, B, C, ...
    zero_based: bool = False  # whole numbers in a task's files are positions counted from 0, whatever they look like
    gold_first: bool = False  # the first choice is the gold one: choices are shuffled by content hash
    refusal: str = ""  # why such a file is refused, for layouts that are not multiple choice

    @property
    def choice_columns(self) -> tuple[str, ...]:
        """The columns that hold the choices."""
        if self.choices is None:
            return ()
        return (self.choices,) if isinstance(self.choices, str) else self.choices

    @property
    def required(self) -> tuple[str, ...]:
        """The columns without which a file is not of this layout. The answer is not one: it may be unknown."""
        choices = () if self.unpack else self.choice_columns  # unpacked rows hold their choices inside another column
        return (self.question, *choices, *self.marks)

    def fit(self, columns: Collection[str], row: Row, every: Collection[str] = ()) -> Schema | None:
        """Return the layout as this file has it, or None where the columns or the sample row are of another layout.

        ``columns`` are those that most rows have. Lettered choices go on through ``every`` column of the file: a few
        rows may have more choices than most.
        """
        if not set(self.required) <= set(columns) or set(self.absent) & set(columns):
            return None
        if self.recognise is not None and not self.recognise(row):
            return None
        if not self.lettered:
            return self
        there = {*columns, *every}
        run = next((n for n, letter in enumerate(ascii_uppercase) if letter not in there), len(ascii_uppercase))
        return replace(self, choices=tuple(ascii_uppercase[:run]))


@dataclass(frozen=True)
class Part:
    """One file of a split, below a data root and on the hub; ``group`` names it where a split has several."""

    path: str
    subset: str | None = None
    hub_split: str = "train"
    group: str | None = None


@dataclass(frozen=True)
class Task:
    """Name a public data set: where each split lies on the hub and below a data root, and how its rows read."""

    name: str
    summary: str
    schema: Schema
    splits: Mapping[str, tuple[Part, ...]] = field(repr=False)
    hub_id: str | None = None  # None: bundled with this package
    revision: str | None = None  # a commit of the hub repository; None reads the newest
    paper_split: str = "validation"  # the split that the paper's protocol reports

    @property
    def folder(self) -> str:
        """The folder below a data root that holds every file of the task."""
        first = next(iter(self.splits.values()))[0].path
        return first.split("/")[0] if "/" in first else ""

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """Splits that an evaluation reads by default, the preferred one first: labelled test, else validation."""
        return tuple(split for split in ("test", "validation") if split in self.splits)

    def parts(self, split: str) -> tuple[Part, ...]:
        """Return the files of a split; a split that the hub does not have may still lie below a data root."""
        if split in self.splits:
            return self.splits[split]
        pattern = next(iter(self.splits.values()))
        return tuple(
            replace(part, path=f"{part.path.rsplit('/', 1)[0]}/{split}.jsonl", hub_split=split) for part in pattern
        )

    def describe(self) -> dict[str, Any]:
        """Describe the task in plain values."""
        return {
            "name": self.name,
            "summary": self.summary,
            "splits": list(self.splits),
            "evaluation_split": self.evaluation_splits[0],
            "paper_split": self.paper_split,
            "source": self.hub_id or "bundled",
            "files": sorted({part.path for parts in self.splits.values() for part in parts}),
        }


def splits_of(folder: str, names: Iterable[str], subset: str | None = None) -> dict[str, tuple[Part, ...]]:
    """Lay out splits whose name on the hub and below a data root is the same.

    >>> splits_of("boolq", ["validation"])["validation"][0].path
    'boolq/validation.jsonl'
    """
    return {name: (Part(f"{folder}/{name}.jsonl", subset, name),) for name in names}
