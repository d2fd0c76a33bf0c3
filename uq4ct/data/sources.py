"""One call from a source (task name, file, folder or hub id) to its questions."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from uq4ct import tasks
from uq4ct.data.config import Counting, DataConfig
from uq4ct.data.files import SUFFIXES, RawRow, read_rows
from uq4ct.data.hub import read_hub, splits_in
from uq4ct.data.problems import Rejected, printable
from uq4ct.data.rows import ReadRows, read_questions
from uq4ct.data.splits import asked, draw_questions, notes_on_size, split_calibration
from uq4ct.errors import UserError, did_you_mean
from uq4ct.manifest import sha256
from uq4ct.tasks import Part, Task
from uq4ct.types import Question

_SPLITS = ("train", "calibration", "validation", "test", "dev")
_BUNDLED = Path(__file__).parents[1] / "tiny" / "data"


class NoData(UserError):
    """A task that has no data where it was looked for; the message says where it would come from."""


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one split, and where they came from.

    ``path`` is a file, a folder or a hub id; ``sha256`` is that of the file, or of the rows read from the hub;
    ``revision`` is the commit of a hub data set where it is known. ``notes`` are remarks for the user.
    ``default_split`` tells whether this is the split that is read when none is named, and all are there. ``counted``
    says what the numeric answers of a file, or of rows from the hub, were taken to count from.
    """

    name: str
    split: str
    questions: tuple[Question, ...]
    path: str
    sha256: str
    revision: str | None = None
    notes: tuple[str, ...] = ()
    skipped: tuple[Rejected, ...] = ()
    default_split: bool = True
    counted: Counting | None = None

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def choice_counts(self) -> dict[int, int]:
        """How many questions have 2, 3, 4, ... choices."""
        return dict(sorted(Counter(len(question.choices) for question in self.questions).items()))

    @property
    def label_counts(self) -> dict[str, int]:
        """How often each label is the gold one; questions whose answer is unknown are not counted."""
        return dict(sorted(Counter(q.gold for q in self.questions if q.gold is not None).items()))

    @property
    def evaluation_name(self) -> str:
        """What an evaluation on these questions is called: as the set is, with the split where it is another."""
        return self.name if self.default_split else f"{self.name}.{self.split}"

    @property
    def rejected_name(self) -> str:
        """Name of the file for the rows that were set aside."""
        return f"{self.name}.rejected.jsonl"

    def rejected_jsonl(self) -> str:
        """Return the rows that were set aside, one JSON object a line: place, reasons, row."""
        rows = ({"place": r.place, "reasons": r.reasons, "row": r.text} for r in self.skipped)
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def load(
    source: str | Path,
    *,
    split: str | None = None,
    root: str | Path = "hub",
    config: DataConfig | None = None,
    training: bool = False,
    need_answers: bool = True,
) -> QuestionSet:
    """Read one split of a task, a file, a folder or a hub data set.

    ``split`` None is train when ``training``, else the labelled test split, else validation. ``root`` is where named
    tasks are read: "hub", or a folder laid out as ``<task>/<split>.jsonl``. A hub id may carry its subset and revision:
    ``owner/name:subset@revision``, and a task its split and revision: ``arc_easy:validation@revision``. ``config`` was
    written for the source that is trained on: other files use of its columns what they have, and its ``answers`` where
    no row says what numbers count from. ``need_answers`` False lets answers be unknown. Raises UserError listing every
    bad row and where two splits are named, NoData when a task has no such file.
    """
    with _printable_problems():
        return _load(str(source), split, root, config or DataConfig(), training, need_answers)


def _load(
    name: str, split: str | None, root: str | Path, config: DataConfig, training: bool, need_answers: bool
) -> QuestionSet:
    if wanted := tasks.wanted(name):
        task = wanted.task
        if wanted.revision and (task.hub_id is None or str(root) != "hub"):
            raise UserError(
                f"'{name}': '@{wanted.revision}' is a revision on the hub, and {task.name} is read "
                f"{'from the package' if task.hub_id is None else f'below {root}'}; a split is named as in "
                f"{task.name}:validation"
            )
        pinned = wanted.revision or (config.revision if training else None) or task.revision
        if wanted.split and split and wanted.split != split:
            raise UserError(f"'{name}' names the split {wanted.split}, and {split} is asked for; name one of them")
        split = wanted.split or split
        return _load_task(replace(task, revision=pinned), split, root, config, training, need_answers)
    kind = _kind_of_source(name)
    if kind == "file":
        return _load_file(Path(name), split, config, training, need_answers)
    if kind == "folder" and (file := _file_of_split(Path(name), split, training)):
        found = _load_file(file, None, config, training, need_answers)
        return replace(found, split=split or found.split)
    if kind == "folder":
        return _load_hub_id(name, split, config, training, need_answers, distinct_gold=training)
    plain, _, revision = name.partition("@")
    name, _, subset = plain.partition(":")
    config = config.model_copy(
        update={"subset": subset or config.subset, "revision": revision or (None if subset else config.revision)}
    )
    return _load_hub_id(name, split, config, training, need_answers, distinct_gold=False)


def read_file(path: str | Path, *, config: DataConfig | None = None, require_answers: bool = True) -> QuestionSet:
    """Read one file of questions, as ``load`` does, but never take the name for a task or a hub id."""
    with _printable_problems():
        if not Path(path).is_file():
            raise UserError(f"{path}: {'a folder, expected a file' if Path(path).is_dir() else 'no such file'}")
        return _load_file(Path(path), None, config or DataConfig(), training=False, need_answers=require_answers)


@contextmanager
def _printable_problems() -> Iterator[None]:
    """Escape control characters in what is shown: the text of a data set must not steer the terminal."""
    try:
        yield
    except UserError as error:
        raise type(error)([printable(problem) for problem in error.problems]) from error.__cause__


def calibration_split(
    train: QuestionSet, *, config: DataConfig, seed: int
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Return the questions to fit on and those to calibrate on.

    ``config.limit`` questions of train are taken, or all. A bundled task with a calibration split of its own gives
    that; otherwise ``config.calibration_fraction`` of what was taken is cut off. With a fraction of 0 there are none.
    """
    taken = draw_questions(train.questions, config.limit, seed)
    if _has_calibration(train) and config.calibration_fraction > 0:
        return taken, load(train.name, split="calibration").questions
    return split_calibration(taken, config.calibration_fraction, seed)


def calibration_notes(train: QuestionSet, calibration: Sequence[Question], *, config: DataConfig) -> tuple[str, ...]:
    """Return remarks on the calibration split that ``calibration_split`` cut from train: whether it is too small."""
    if _has_calibration(train):
        return ()
    taken = min(len(train), config.limit or len(train))
    return notes_on_size(len(calibration), taken, config.calibration_fraction)


def _has_calibration(train: QuestionSet) -> bool:
    """Tell whether train is that of a bundled task with a calibration split of its own."""
    return train.name in tasks.names() and "calibration" in tasks.get(train.name).splits and train.split == "train"


def overlap(first: Sequence[Question], second: Sequence[Question]) -> tuple[str, ...]:
    """Return the ids of those questions of ``second`` whose text also stands, on the same context, in ``first``.

    >>> row = Question("1", "Which melts?", ("ice", "iron"), ("A", "B"))
    >>> overlap([row], [replace(row, id="2"), replace(row, id="3", question="Which floats?")])
    ('2',)
    """
    seen = {asked(question) for question in first}
    return tuple(question.id for question in second if asked(question) in seen)


def _kind_of_source(name: str) -> str:
    """Tell a file, a folder and a hub id apart; raise UserError for none of them."""
    if not name.strip() or "\0" in name:
        raise UserError(f"data: expected a task, a file or a hub id, got {name!r}")
    try:
        path = Path(name)
        if path.is_file():
            return "file"
        if path.is_dir():
            return "folder"
        exists = path.exists()
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from error
    if exists:
        raise UserError(f"{name}: not a regular file")
    if len(parts := [part.strip() for part in name.split(",") if part.strip()]) > 1:
        apart = " ".join(parts)
        raise UserError(f"'{name}' is one name to this option; where it takes several, put spaces between: {apart}")
    if path.suffix.lower() in SUFFIXES or name.startswith(("/", "./", "../", "~", ".\\")):
        parent = path.parent
        beside = sorted(f.name for f in parent.iterdir() if f.suffix in SUFFIXES) if parent.is_dir() else []
        where = "" if parent.is_dir() else f"; there is no folder {parent} either"
        raise UserError(f"{name}: no such file{where}.{did_you_mean(path.name, beside)}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?(@[\w./-]+)?", name):
        near = did_you_mean(name, tasks.names())
        raise UserError(
            f"'{name}' is not a task, a file or a hub id (owner/name).{near} Tasks: {', '.join(tasks.names())}"
        )
    return "hub"


def _load_file(path: Path, split: str | None, config: DataConfig, training: bool, need_answers: bool) -> QuestionSet:
    own = _split_of(path)
    if split is not None and split != own:
        raise UserError(f"{path}: one file is one split, so there is no split '{split}' in it; leave the split out")
    read = read_questions(
        read_rows(path),
        str(path),
        config,
        need_answers=need_answers,
        distinct_gold=training and need_answers,
        trained_on=training,
    )
    name = safe_name(f"{path.resolve().parent.name}-{path.stem}".lstrip("-"))
    return QuestionSet(
        name, own, read.questions, str(path), sha256(path), None, read.notes, read.rejected, counted=read.counted
    )


def _split_of(path: Path) -> str:
    return path.stem if path.stem in _SPLITS else "all"


def safe_name(text: str) -> str:
    """Return a name that can be a folder's: letters and digits of any script, dot, dash and underscore.

    It has at most 100 of them, and at most 200 bytes: file systems allow 255.

    >>> safe_name("my data/überschrift (v2)")
    'my-data-überschrift-v2'
    """
    words = re.split(r"[\s/\\]+", unicodedata.normalize("NFC", text))
    kept = "-".join("".join(filter(_stays, word)) for word in words)
    return kept.strip(".-_")[:100].encode()[:200].decode(errors="ignore") or "data"


def _stays(character: str) -> bool:
    return character in "._-" or unicodedata.category(character)[0] in "LMN"  # letters, their marks, numbers


def _load_task(
    task: Task, split: str | None, root: str | Path, config: DataConfig, training: bool, need_answers: bool
) -> QuestionSet:
    folder = _BUNDLED if task.hub_id is None else None if str(root) == "hub" else Path(root)
    notes: list[str] = []
    measured_on = _evaluation_split(task, folder, [] if training or split else notes)
    split = split or ("train" if training else measured_on)
    parts = task.parts(split)
    _check_present(task, split, folder, parts)
    if training and split == measured_on:
        notes.append(
            f"{task.name}: its {split} split is trained on, the one that answers are usually measured on; on these "
            "questions no figure of this run says anything of new ones"
        )
    # A task knows its own layout; the options that describe a user's file are not for it.
    config = DataConfig(skip_bad_rows=config.skip_bad_rows)
    reads, digests, commits = zip(
        *(_read_part(task, part, folder, config, need_answers) for part in parts), strict=True
    )
    path = str(task.hub_id) if folder is None else str(folder / (parts[0].path if len(parts) == 1 else task.folder))
    return QuestionSet(
        name=task.name,
        split=split,
        questions=tuple(question for read in reads for question in read.questions),
        path=path,
        sha256=digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        revision=commits[0],
        notes=(*notes, *(note for read in reads for note in read.notes)),
        skipped=tuple(row for read in reads for row in read.rejected),
        default_split=split == ("train" if training else task.evaluation_splits[0]),
    )


def _read_part(
    task: Task, part: Part, folder: Path | None, config: DataConfig, need_answers: bool
) -> tuple[ReadRows, str, str | None]:
    """Read one file of a task; return its questions, its SHA-256 and the hub's commit."""
    commit = None
    if folder is None:
        rows, commit = read_hub(str(task.hub_id), part.subset, part.hub_split, task.revision)
        source, digest = f"{task.hub_id}[{part.hub_split}]", _digest_of(rows)
    else:
        source, digest = str(folder / part.path), sha256(folder / part.path)
        rows = read_rows(folder / part.path)
    prefix = f"{part.group}-" if part.group else ""
    read = read_questions(rows, source, config, schema=task.schema, need_answers=need_answers, id_prefix=prefix)
    return read, digest, commit


def _evaluation_split(task: Task, folder: Path | None, notes: list[str]) -> str:
    """Return the labelled test split, else validation; below a data root, the first of them that is there."""
    wanted = task.evaluation_splits
    if folder is None:
        return wanted[0]
    for split in wanted:
        if all((folder / part.path).is_file() for part in task.parts(split)):
            if split != wanted[0]:
                notes.append(f"{task.name}: no {wanted[0]} split in {folder}, so {split} is read")
            return split
    return wanted[0]


def _check_present(task: Task, split: str, folder: Path | None, parts: Sequence[Part]) -> None:
    """Raise UserError where a task has no such split, NoData where its files are not below the data root."""
    paths = [folder / part.path for part in parts] if folder else []
    missing = [str(path) for path in paths if not path.is_file()]
    if folder and not missing:
        return
    files = ", ".join(missing[:2]) + (f" and {len(missing) - 2} more" if len(missing) > 2 else "")
    if split not in task.splits:
        here = f", and there is no file {files}" if files and task.hub_id else ""
        near = did_you_mean(split, list(task.splits))
        raise UserError(f"task '{task.name}' has no split '{split}'{here}.{near} Splits: {', '.join(task.splits)}")
    if task.hub_id is None:
        raise NoData(f"task '{task.name}': {files} is missing from the installation; install the package again")
    if missing:
        origin = " and ".join(sorted({" ".join(filter(None, (part.subset, part.hub_split))) for part in parts}))
        raise NoData(
            f"task '{task.name}' has no data for split '{split}': no file {files}. It comes from the hub data set "
            f"{task.hub_id} ({origin}): use --data-root hub, or save it there as jsonl"
        )


def _file_of_split(folder: Path, split: str | None, training: bool) -> Path | None:
    """Return the one file of a folder that holds a split, or None where the folder is laid out otherwise."""
    wanted = [split] if split else ["train"] if training else ["test", "validation"]
    candidates = (folder / f"{name}{suffix}" for name in wanted for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _load_hub_id(
    name: str, split: str | None, config: DataConfig, training: bool, need_answers: bool, distinct_gold: bool
) -> QuestionSet:
    wanted = ["train"] if training else ["test", "validation"]
    if split is None:
        there = splits_in(name, config.subset, config.revision)
        split = next((s for s in wanted if config.splits.get(s, s) in there), wanted[0])
    rows, commit = read_hub(name, config.subset, config.splits.get(split, split), config.revision)
    read = read_questions(
        rows,
        f"{name}[{split}]",
        config,
        need_answers=need_answers,
        distinct_gold=distinct_gold,
        trained_on=training,
    )
    place = Path(name).resolve().name if Path(name).is_dir() else name
    label = safe_name(f"{place}-{config.subset}" if config.subset else place)
    default, digest = split == wanted[0], _digest_of(rows)
    return QuestionSet(
        label, split, read.questions, name, digest, commit, read.notes, read.rejected, default, read.counted
    )


def _digest_of(rows: Sequence[RawRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.values, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()
