"""Write files so that a crash never leaves half of one, and prove later that none has changed.

A folder is complete when its ``manifest.json`` is there and holds: it lists size and SHA-256 of every file and is
written last, after each file was flushed to disk. A manifest detects corruption; it does not stop an attacker who
rewrites both the files and the manifest.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from uq4ct.errors import UserError

MANIFEST = "manifest.json"
_EXPECTED = 'not a manifest, expected {"files": {name: {"bytes": ..., "sha256": ...}}}'


class CorruptFolder(UserError):
    """A folder whose manifest is absent or does not hold; the message names each file, expected and found."""


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def alone(lock: Path, work: str) -> Iterator[None]:
    """Hold a lock file; wait while another process does, and say what that one does: "makes the same predictions"."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        with contextlib.suppress(OSError):  # a file system without locks: at worst the work is done twice
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting: another process {work}", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees either the old content or the new one, also after a power loss."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically. NaN is refused: an undefined number is null with a reason."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_manifest(folder: Path, files: Iterable[str] | None = None, **facts: Any) -> None:
    """Flush the named files (default: all below the folder) and write ``manifest.json`` last."""
    names = sorted(files) if files is not None else sorted(_files_below(folder))
    for name in names:
        _flush(folder / name)
    entries = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names}
    write_json(folder / MANIFEST, {"format": 1, **facts, "files": entries})


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """Return a folder's manifest without checking its files.

    Raises CorruptFolder when there is none or it is not readable.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CorruptFolder(f"{folder}: no {MANIFEST}, so it was never finished; delete it or run the command again")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        entries = [(entry["bytes"], entry["sha256"]) for entry in manifest["files"].values()]
    except ValueError as error:
        raise CorruptFolder(f"{path}: not readable as JSON ({error}); restore the folder from a copy") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptFolder(f"{path}: {_EXPECTED}; restore the folder from a copy") from error
    if not all(isinstance(size, int) and isinstance(digest, str) for size, digest in entries):
        raise CorruptFolder(f"{path}: {_EXPECTED}; restore the folder from a copy")
    return manifest


def verify_manifest(folder: Path) -> Mapping[str, Any]:
    """Check every file of a folder against its manifest and return the manifest.

    Raises CorruptFolder naming each missing or changed file with its expected and found hash.
    """
    manifest = read_manifest(folder)
    problems = []
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            problems.append(f"{folder / MANIFEST}: '{name}' lies outside the folder")
        elif not path.is_file():
            problems.append(f"{path}: missing, the manifest lists it with {expected['bytes']} bytes")
        elif path.stat().st_size != expected["bytes"]:
            problems.append(f"{path}: {path.stat().st_size} bytes, the manifest says {expected['bytes']}")
        elif (found := sha256(path)) != expected["sha256"]:
            problems.append(f"{path}: SHA-256 {found[:16]}..., the manifest says {expected['sha256'][:16]}...")
    if problems:
        raise CorruptFolder(
            [*problems, f"{folder}: changed since it was written; restore it from a copy or make it anew"]
        )
    return manifest


def is_complete(folder: Path) -> bool:
    """Tell whether a folder's manifest is there and holds."""
    try:
        verify_manifest(folder)
    except CorruptFolder:
        return False
    return True


def _files_below(folder: Path) -> Iterable[str]:
    return (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST and not path.name.endswith(".tmp")
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
