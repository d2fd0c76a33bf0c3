"""A run folder: one method fitted on one task with one seed, and every evaluation of it.

config.yaml, environment.json, uq4ct.json, splits.json, vocabulary.json, training_log.jsonl, training.json,
calibration.jsonl, adapter_config.json, adapter_model.safetensors, manifest.json   the fit; the manifest is written last
state.safetensors, member-N/, posthoc.json                             where a method has more
evaluations/<task>/{predictions.jsonl, metrics.json, manifest.json}    one folder per evaluated task
abstain.json                                                           the abstain rule, once one was chosen
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from uq4ct import config as configuration
from uq4ct.config import Config
from uq4ct.data import DataConfig
from uq4ct.errors import UserError
from uq4ct.manifest import MANIFEST, sha256, verify_manifest
from uq4ct.posthoc.abstain import AbstainRule
from uq4ct.posthoc.base import Calibrator
from uq4ct.vocabulary import VOCABULARY

Say = Callable[[str], None]

RULE = "abstain.json"
POSTHOC = "posthoc.json"
FIT_FILES = (
    "config.yaml",
    "environment.json",
    "uq4ct.json",
    "splits.json",
    VOCABULARY,
    "training_log.jsonl",
    "training.json",
    "calibration.jsonl",
    "adapter_config.json",
    "adapter_model.safetensors",
    "state.safetensors",
    POSTHOC,
)


def to_stderr(line: str) -> None:
    """Print a line of progress where it does not disturb the output."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Run:
    """A complete run folder."""

    folder: Path

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """Open a run folder and check every file of the fit against its manifest.

        Raises UserError where the folder is no run, is unfinished or has changed.
        """
        folder = Path(folder)
        if not folder.is_dir():
            if folder.exists():
                raise UserError(f"{folder}: a file, expected the folder of a run")
            raise UserError(f"{folder}: no such run folder; `uq4ct train ... --output {folder}` makes one")
        if not (folder / "config.yaml").is_file():
            if (folder / "adapter_config.json").is_file():
                raise UserError(
                    f"{folder}: an adapter without its run (no config.yaml); load it with peft after "
                    "`import uq4ct.adapters`, or give the folder that `uq4ct train` wrote"
                )
            raise UserError(
                f"{folder}: not a run folder, it has no config.yaml; give the folder that `uq4ct train` wrote"
            )
        if not (folder / MANIFEST).is_file():
            raise UserError(
                f"{folder}: its training was not finished; the same `uq4ct train` command with --resume continues it"
            )
        verify_manifest(folder)
        return cls(folder)

    @cached_property
    def config(self) -> Config:
        """The resolved configuration of the run."""
        try:
            return configuration.resolve([configuration.read_yaml(self.folder / "config.yaml")])
        except UserError as error:
            advice = f"{self.folder}: not of this version of uq4ct; use the one that its environment.json names"
            raise UserError([*error.problems, advice]) from error

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Identity and cost of the fit, from ``uq4ct.json``."""
        return json.loads((self.folder / "uq4ct.json").read_text(encoding="utf-8"))

    @property
    def reading(self) -> DataConfig:
        """How other question files are read for this run; numbers count as in training where no row says otherwise."""
        return self.config.data.for_others(self.facts["data"].get("answers"))  # older runs do not keep it

    @property
    def digest(self) -> str:
        """SHA-256 of the fit's manifest: it changes when any file of the fit does."""
        return sha256(self.folder / MANIFEST)

    @property
    def rule(self) -> AbstainRule | None:
        """The abstain rule saved with the run, if one was chosen."""
        path = self.folder / RULE
        return AbstainRule.load(path) if path.is_file() else None

    @property
    def calibrator(self) -> Calibrator | None:
        """The post-hoc calibration that was fitted with the run, if its method has one."""
        path = self.folder / POSTHOC
        return Calibrator.from_dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the claim ends with the process, however it ends.

    Raises UserError naming the other process when the folder is in use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as lock:
        lock.seek(0)
        hold(lock, folder, f" ({lock.read().strip() or 'unknown'})")
        lock.truncate(0)
        lock.write(f"{platform.node()} pid {os.getpid()}")
        lock.flush()
        yield


def hold(file: IO, place: Path, holder: str = "") -> None:
    """Hold an open file for this process until it is closed. Raises UserError when another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{place}: in use by another process{holder}") from error
    except OSError:
        pass  # a file system without locks: better unguarded than unusable


def environment(device: str) -> dict[str, Any]:
    """Describe what a run was made with: versions, code, machine."""
    import torch

    names = ["torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "datasets"]
    return {
        "uq4ct": metadata.version("uq4ct"),
        "code_sha256": code_digest(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in names},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
    }


# A run is made by these and its method's and calibrator's files; verbs, reports and other methods change nothing.
_ROOTS = ("uq4ct.fitting", "uq4ct.evaluating")


def code_digest(label: str | None = None) -> str:
    """SHA-256 over every source file of this package that a number of a method's run can depend on.

    These are the files that fitting, evaluating, the method and its calibrator import, directly or not, and the tasks.
    Without a method it covers them all. Two results with the same digest come from the same code.
    """
    from uq4ct import methods, posthoc

    kinds, suffixes = methods.names(), posthoc.names()
    if label is not None:
        kind, suffix = methods.parse(label)
        kinds, suffixes = [kind.name], [suffix] if suffix else []
    own = (*(f"uq4ct.methods.{name}" for name in kinds), *(f"uq4ct.posthoc.{name}" for name in suffixes))
    return _digest_of((*_ROOTS, *own))


@cache
def _digest_of(roots: tuple[str, ...]) -> str:
    package = Path(__file__).parent
    files = set((package / "tasks").glob("*.py"))
    ahead = [file for name in roots for file in _files_of(name)]
    while ahead:
        file = ahead.pop()
        if file not in files:
            files.add(file)
            ahead += _imported(file)
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def _imported(file: Path) -> tuple[Path, ...]:
    """Return the files of this package that a file imports, at its top or inside a function."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(found for name in names for found in _files_of(name))


def _files_of(name: str) -> list[Path]:
    """Return a module's file, if it is one of ours, and those of the packages that it lies in, but for the root's."""
    first, *parts = name.split(".")
    if first != "uq4ct":
        return []
    place, files = Path(__file__).parent, []
    for part in parts:
        place = place / part
        files += [place / "__init__.py", place.with_suffix(".py")]
    return [file for file in files if file.is_file()]
