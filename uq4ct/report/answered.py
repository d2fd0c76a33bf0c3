"""What a comparison is made of: finished runs of several methods and seeds, and what they answered; files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from uq4ct import predictions
from uq4ct.errors import UserError
from uq4ct.manifest import sha256
from uq4ct.metrics import Answers
from uq4ct.metrics.answers import characters

Json = Mapping[str, Any]


class Scored(NamedTuple):
    """A finished run: its name in the tables, its seed, and its evaluations, folders below ``evaluations/``."""

    method: str
    seed: int
    folder: Path
    evaluations: tuple[str, ...]


class Answered(NamedTuple):
    """One evaluation of a run: its metrics, and the labelled answers behind them."""

    run: Scored
    metrics: Json
    answers: Answers
    groups: tuple[Any, ...] | None  # of each answer, where all have one
    epistemic: np.ndarray  # mutual information of each answer and its samples, in nats; NaN where it is not known
    samples: int  # distributions behind an answer, as its row keeps them
    length: np.ndarray  # characters of each question and its choices, NaN where the row does not keep them
    seen: np.ndarray  # share of each question's tokens that the questions fitted on have, NaN where the row has none


Asked = Mapping[str, Mapping[str, Sequence[Answered]]]  # by evaluation and method, one of each seed


def read(scored: Sequence[Scored]) -> Asked:
    """Read what finished runs answered, tasks and methods in the order in which they are met.

    Raises UserError where runs did not answer the same questions: they could not be compared.
    """
    found: dict[str, dict[str, list[Answered]]] = {}
    for task in dict.fromkeys(name for run in scored for name in run.evaluations):
        first: tuple[Path, list[Any]] | None = None
        for run in scored:
            if task in run.evaluations:
                folder = run.folder / "evaluations" / task
                rows = predictions.read_own(folder / "predictions.jsonl")
                asked = [(row["id"], row["label"]) for row in rows]
                first = first or (folder, asked)
                if asked != first[1]:
                    raise UserError(f"{folder}: answers other questions than {first[0]}; they cannot be compared")
                found.setdefault(task, {}).setdefault(run.method, []).append(_answered(run, folder, rows))
    return found


def _answered(run: Scored, folder: Path, rows: Sequence[Json]) -> Answered:
    labelled = [row for row in rows if row["label"] is not None]
    groups = tuple(row.get("group") for row in labelled)
    parts = [row["uncertainty"]["epistemic"] for row in labelled]
    return Answered(
        run,
        json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
        Answers.of_rows(rows),
        None if None in groups else groups,
        np.array([np.nan if part is None else part for part in parts], dtype=np.float64),
        max(len(row.get("samples") or [None]) for row in labelled),
        np.array([characters(row) for row in labelled], dtype=np.float64),
        np.array([row.get("seen_tokens", np.nan) for row in labelled], dtype=np.float64),
    )


def trained_on(scored: Sequence[Scored]) -> str | None:
    """Return the evaluation whose questions are like the training questions, None where there is none.

    It is that of the task that the runs were fitted on; for a file, that of the file called test or validation beside.
    """
    for run in scored:
        facts = json.loads((run.folder / "uq4ct.json").read_text(encoding="utf-8"))
        source = Path(facts["data"]["path"])
        for name in run.evaluations:
            path = run.folder / "evaluations" / name / "metrics.json"
            metrics = json.loads(path.read_text(encoding="utf-8"))
            place = Path((metrics.get("data") or {}).get("path") or "")
            beside = place.parent == source.parent and place.stem in ("test", "validation")
            if metrics["task"] == facts["task"] or (beside and place != source):
                return name
    return None


def options_of(run: Scored) -> dict[str, dict[str, Any]]:
    """Return the configuration that a run was made with, section by section."""
    return yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))


def beta_zero(scored: Sequence[Scored]) -> dict[str, str]:
    """Return, by method, the plain ``mixlora`` with the same options: the same mixture without the calibration loss."""
    options = {run.method: options_of(run) for run in reversed(scored)}
    found: dict[str, str] = {}
    for method, own in options.items():
        for other, plain in options.items():
            if _without_loss(own, plain):
                found[method] = other
    return found


def _without_loss(own: Json, plain: Json) -> bool:
    """Tell whether the second is mixlora and otherwise the first."""
    mine, theirs = dict(own["method"]), dict(plain["method"])
    name, _, suffix = str(mine.pop("name")).partition("+")
    other, _, other_suffix = str(theirs.pop("name")).partition("+")
    if other != "mixlora" or name == "mixlora" or suffix != other_suffix or not theirs.items() <= mine.items():
        return False
    return all(own[section] == plain[section] for section in own if section not in ("method", "output"))


def fingerprint(scored: Sequence[Scored]) -> str:
    """Return a text that changes with the runs or their evaluations: the same one, the same results."""
    parts = [
        [run.method, run.seed, name, sha256(run.folder / "evaluations" / name / "manifest.json")]
        for run in scored
        for name in run.evaluations
    ]
    return json.dumps(parts)
