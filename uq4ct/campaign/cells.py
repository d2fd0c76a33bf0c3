"""One cell of a campaign: a method on a task with a seed, in a run folder named by the hash of all it is made of.

<folder of the run>/            as `uq4ct train` and `uq4ct evaluate` write it
<folder of the run>/cell.json   written last, when every evaluation is done
<folder of the run>/failed.json why it has no result, instead
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from uq4ct.config import Config, Layer, resolve
from uq4ct.errors import UserError
from uq4ct.manifest import CorruptFolder, is_complete, read_manifest, sha256, write_json
from uq4ct.methods.base import LoraMethod, MixtureMethod, VariationalMethod
from uq4ct.runs import Run, Say, code_digest

RECEIPT, FAILED = "cell.json", "failed.json"
Status = Literal["complete", "failed", "diverged", "interrupted", "planned"]


@dataclass(frozen=True)
class Cell:
    """What is fitted, and where it is evaluated. ``digest`` stands for all of it; ``config.output`` has the folder.

    ``training`` is what cells have in common that share a training, or the first of several, as far as can be told
    before it. The store knows exactly; this keeps such cells from waiting for each other, and counts a cost once.
    """

    method: str  # as the user wrote it: "lora", "uq4ct[top_k=3]", "mixlora+temperature"
    task: str  # name of what it is trained on
    seed: int
    config: Config
    evaluate: tuple[tuple[str, str | None], ...]  # (source, split, or None for its default) to evaluate on
    digest: str = ""
    training: str = ""

    @property
    def folder(self) -> Path:
        """The run folder of this cell."""
        return Path(self.config.output.folder)

    @property
    def name(self) -> str:
        """Name of the cell's folder."""
        return self.folder.name

    def to_json(self) -> str:
        """Return the cell as one line for another process; ``from_json`` reads it back to an equal one."""
        plain = {"method": self.method, "task": self.task, "seed": self.seed}
        plain |= {"digest": self.digest, "training": self.training}
        return json.dumps({**plain, "config": self.config.dump(), "evaluate": self.evaluate})

    @classmethod
    def from_json(cls, line: str) -> Cell:
        """Read what ``to_json`` wrote."""
        plain = json.loads(line)
        config = resolve([Layer.of(plain.pop("config"), "cell")])
        evaluate = tuple((source, split) for source, split in plain.pop("evaluate"))
        return cls(config=config, evaluate=evaluate, **plain)


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: its metrics, one per evaluated source, or the reason why there are none."""

    cell: Cell
    status: Status
    seconds: float | None = None  # of the fit and its evaluations, where the cell is complete
    results: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    message: str = ""


def placed(cell: Cell, output: Path, base: str, training: str, sets: Mapping[str, str]) -> Cell:
    """Return the cell with its content hash, and its folder below the campaign's.

    ``base`` identifies the base model, ``training`` is the SHA-256 of the questions to train on; ``sets`` has that of
    the questions of each evaluation, by its name. Results are kept and told under these names: the same questions by
    another name make another cell, whose training and predictions are in the store.
    """
    facts = cell.config.dump()
    del facts["output"], facts["model"]["device"]
    facts["train"] = cell.config.train.substance()
    content = {
        "code": code_digest(cell.config.method.label),
        "base": base,
        "config": facts,
        "seed": cell.seed,
        "data": training,
        "evaluations": list(sets.items()),
        "splits": [split for _, split in cell.evaluate],
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    folder = output / "cells" / f"{slug(cell.method)}-{slug(cell.task)}-seed{cell.seed}-{digest[:12]}"
    where = cell.config.output.model_copy(update={"folder": str(folder)})
    config = cell.config.model_copy(update={"output": where})
    return replace(cell, config=config, digest=digest, training=_training(cell, base, training))


def _training(cell: Cell, base: str, questions: str) -> str:
    """Return a SHA-256 over what weights depend on: code, base model, questions, and the options of the training."""
    method, config = cell.config.method, cell.config
    plain = isinstance(method, LoraMethod) and not isinstance(method, VariationalMethod)
    kind = LoraMethod if plain else type(method)
    options = method.model_dump(mode="json", include=set(kind.model_fields) - {"posthoc"})
    loss = repr(method.objective()) if isinstance(method, LoraMethod | MixtureMethod) else ""
    parts = [config.model.model_dump(mode="json", exclude={"device"}), config.prompt.model_dump(mode="json")]
    parts += [config.data.model_dump(mode="json"), config.train.substance()]
    facts = [code_digest(), base, questions, kind.__name__, options, loss, parts, cell.seed]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def slug(text: str) -> str:
    """Return a text as part of a folder's name.

    >>> slug("uq4ct[top_k=3;rank=8]+temperature")
    'uq4ct-top_k-3-rank-8-temperature'
    """
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")[:60] or "x"


def state(cell: Cell) -> Outcome:
    """Return what the cell's folder says about it, from files alone."""
    receipt, failure = _json(cell.folder / RECEIPT), _json(cell.folder / FAILED)
    if receipt.get("digest") == cell.digest and _holds(cell.folder, receipt):
        results = [
            _json(cell.folder / "evaluations" / name / "metrics.json") | {"method": cell.method}
            for name in receipt["evaluations"]
        ]
        return Outcome(cell, "complete", receipt["seconds"], results)
    if failure.get("status") in ("failed", "diverged"):
        return Outcome(cell, failure["status"], message=str(failure.get("message")))
    begun = (cell.folder / "config.yaml").is_file()
    return Outcome(cell, "interrupted" if begun else "planned")


def trainings_done(folder: Path, besides: Collection[str] = ()) -> dict[str, int]:
    """Return how many adapters of each training the finished cells below a campaign's ``cells`` have, of any plan.

    Those of the cells called ``besides`` are left out.
    """
    found: dict[str, int] = {}
    for path in folder.glob(f"*/{RECEIPT}"):
        receipt = _json(path) if path.parent.name not in besides else {}
        if "training" in receipt:
            found[receipt["training"]] = max(receipt["trainings"], found.get(receipt["training"], 0))
    return found


def work(cell: Cell, *, store: Path, snapshots: Sequence[float], say: Say) -> Outcome:
    """Fit and evaluate a cell, going on where an earlier attempt stopped; a failure is written down, not raised.

    Interrupted (a SystemExit), KeyboardInterrupt and the like do pass: the cell is to be continued.
    """
    from uq4ct import fitting
    from uq4ct.training import Diverged

    before = state(cell)
    if before.status in ("complete", "diverged"):
        return before
    (cell.folder / FAILED).unlink(missing_ok=True)
    started = time.monotonic()
    try:
        run = fitting.train(cell.config, resume=True, store=store, snapshots=tuple(snapshots), say=say)
        begun = time.monotonic()
        answered: set[str] = set()
        results = _evaluate(run, cell, store, answered, say)
    except Diverged as error:
        return fail(cell, "diverged", str(error))
    except UserError as error:
        return fail(cell, "failed", str(error))
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return fail(cell, "failed", reason)
    names = [_place(run, result) for result in results]
    plain = {"digest": cell.digest, "method": cell.method, "task": cell.task, "seed": cell.seed}
    plain |= {"training": cell.training, "trainings": cell.config.method.trainings}
    # no time is told for predictions that were found: an interrupted attempt, or another method's, made them
    spent = {"seconds": _since(started), "evaluation_seconds": _since(begun) if len(answered) == len(names) else None}
    write_json(cell.folder / RECEIPT, {**plain, "evaluations": names, **spent})
    return state(cell)


def fail(cell: Cell, status: Status, message: str) -> Outcome:
    """Write down in the cell's folder why it has no result."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    write_json(cell.folder / FAILED, {"status": status, "message": message, "digest": cell.digest})
    return Outcome(cell, status, message=message)


@contextlib.contextmanager
def alone(cell: Cell) -> Iterator[bool]:
    """Hold a cell for this process and give True, or False where another process works on it."""
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    with (cell.folder.parent / f".{cell.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass  # a file system without locks: the run folder's own checks remain
        yield True


def _evaluate(run: Run, cell: Cell, store: Path, answered: set[str], say: Say) -> list[dict[str, Any]]:
    """Evaluate a run; note the names of the evaluations whose questions the model answered now."""
    from uq4ct import evaluating

    def watch(name: str, total: int) -> Callable[[int, int], None]:
        return lambda done, all_of_them: answered.add(name)

    results: list[dict[str, Any]] = []
    for split in dict.fromkeys(split for _, split in cell.evaluate):
        sources = [source for source, wanted in cell.evaluate if wanted == split]
        results += evaluating.evaluate(run, sources, split=split, resume=True, store=store, progress=watch, say=say)
    return results


def _place(run: Run, result: Mapping[str, Any]) -> str:
    """Return the folder of an evaluation: the task's, or task.split where that is not its default split."""
    for name in (result["task"], f"{result['task']}.{result['split']}"):
        if _json(run.folder / "evaluations" / name / "metrics.json") == result:
            return name
    raise RuntimeError(f"{run.folder}: no evaluation of {result['task']} ({result['split']}) after it was evaluated")


def _holds(folder: Path, receipt: Mapping[str, Any]) -> bool:
    """Tell whether a finished cell is whole: its files byte by byte, but weights (they can be large) by their sizes."""
    try:
        fit = read_manifest(folder)["files"]
        whole = all(_is_as_written(folder / name, entry) for name, entry in fit.items())
        names = receipt["evaluations"]
    except (CorruptFolder, OSError, KeyError):
        return False
    return whole and all(is_complete(folder / "evaluations" / name) for name in names)


def _is_as_written(path: Path, entry: Mapping[str, Any]) -> bool:
    same_size = path.stat().st_size == entry["bytes"]
    return same_size and (path.suffix == ".safetensors" or sha256(path) == entry["sha256"])


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent or unreadable file is an empty one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)
