"""Data sets of the Hugging Face hub, and local folders laid out like one, through ``datasets``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from uq4ct.data.files import RawRow
from uq4ct.errors import UserError, did_you_mean


def read_hub(name: str, subset: str | None, split: str, revision: str | None) -> tuple[list[RawRow], str | None]:
    """Read one split; return its rows and the commit they are of, None where it is not known.

    Raises UserError when the data set, the subset or the split is not there, or the hub cannot be reached.
    """
    _quiet()
    import datasets

    commit = _commit(name, revision)
    try:
        rows = datasets.load_dataset(name, subset, split=split, revision=commit or revision)
    except Exception as error:  # datasets raises many kinds, most of them without saying what to do
        raise _explained(name, subset, split, revision, error) from error
    return [RawRow(f"{name}[{split}]:row {n}", dict(row), "", str(row)) for n, row in enumerate(rows, start=1)], commit


def splits_in(name: str, subset: str | None, revision: str | None) -> list[str]:
    """List the splits of a data set; an empty list where they cannot be known."""
    _quiet()
    import datasets

    try:
        return [str(split) for split in datasets.get_dataset_split_names(name, subset, revision=revision)]
    except Exception as error:
        raise _explained(name, subset, None, revision, error) from error


def _quiet() -> None:
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def _commit(name: str, revision: str | None) -> str | None:
    """Resolve a branch or tag to its commit, so that what was read can be named exactly."""
    if Path(name).is_dir():
        return None
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=10).sha
    except Exception:  # offline: the cached copy is read, and its commit stays unknown unless it was given
        return revision if revision and len(revision) == 40 else None


def _explained(name: str, subset: str | None, split: str | None, revision: str | None, error: Exception) -> UserError:
    """Turn an exception of ``datasets`` into a sentence that says what to do."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    where = name + (f", subset '{subset}'" if subset else "") + (f", revision '{revision}'" if revision else "")
    named = re.findall(r"'([\w.-]+)'", str(error).split("[", 1)[-1]) if "[" in str(error) else []
    available = f"available: {', '.join(named)}" if named else reason
    if "Config name is missing" in reason or ("BuilderConfig" in reason and "not found" in reason):
        return UserError(f"{where}: name one of its subsets with data.subset, or as {name}:SUBSET ({available})")
    if split and "Unknown split" in reason:
        near = did_you_mean(split, named)
        return UserError(f"{where}: no split '{split}' ({available}).{near} Map it with data.splits: {{{split}: ...}}")
    if Path(name).is_dir():
        return UserError(
            f"{name}: not a readable data set folder ({reason}); expected <split>.jsonl, .csv or .parquet files in it"
        )
    return UserError(
        f"{where}: the hub data set could not be read ({reason}). Check the name, log in if it is gated, go online, "
        "or save its rows as a jsonl file and give that, or give --data-root DIR for a named task"
    )
