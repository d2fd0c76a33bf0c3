"""How far questions lie from those of the training, in the features of a fitted encoder: a rival of FEU for any model.

Two distances that need nothing but the forward pass of the answer, and what is stored of the training's questions:
Mahalanobis' to one Gaussian (Lee et al. 2018, without classes) and that to the tenth nearest (Sun et al. 2022). Beside
them what needs a tokenizer and no model: how short a question is, and how much of it the training's questions use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist

from uq4ct import data
from uq4ct.answering import UQModel
from uq4ct.encoders import kind_of, tokens_of
from uq4ct.errors import UserError
from uq4ct.forward import base_of
from uq4ct.manifest import write_atomically
from uq4ct.runs import Run
from uq4ct.scoring import Example, in_batches, score
from uq4ct.types import Question
from uq4ct.vocabulary import shares, vocabulary

NEAREST = 10  # the neighbour whose distance counts
TEXTUAL = ("length", "seen")
DISTANCES = ("mahalanobis", "nearest")
Rows = list[np.ndarray]  # of each question, (choice, feature)


def place_of(folder: Path) -> Path:
    """Return where the distances of a campaign's cell are kept: beside its folder, which is closed."""
    return folder.parents[1] / "features" / f"{folder.name}.json"


def write_nearness(folder: Path, tasks: Sequence[str], with_features: Sequence[str] = ()) -> None:
    """Write how near the calibration questions of a run and those of some tasks are: kind -> part -> id -> nearness.

    Length and share of seen tokens are written of all tasks, the distances of those ``with_features``. A file that has
    all that is asked for stays as it is, and distances that it has are not computed again.
    Raises UserError where features are asked of other than an encoder's head on pairs.
    """
    path, parts = place_of(folder), ["calibration", *tasks]
    measured = ["calibration", *with_features] if with_features else []
    wanted = dict.fromkeys(TEXTUAL, parts) | {kind: measured for kind in DISTANCES if measured}
    found = {kind: dict(known) for kind, known in read(path).items()}
    if all(set(own) <= found.get(kind, {}).keys() for kind, own in wanted.items()):
        return
    run = Run.open(folder)
    model, config = UQModel.load(run), run.config.data
    if measured and kind_of(base_of(model.model)) != "multiple_choice":
        raise UserError(f"{folder}: features are what an encoder's head on pairs of question and choice reads")
    training = data.load(str(config.source), root=config.root, config=config, training=True)
    fit, calibration = data.calibration_split(training, config=config, seed=model.config.output.seed)
    asked: dict[str, Sequence[Question]] = {"calibration": calibration}
    for task in tasks:  # called as evaluations are, arc_easy.validation
        asked[task] = data.load(task.replace(".", ":"), root=config.root, config=config).questions
    known = vocabulary(model.encoder.encode_all(fit))
    for part, questions in asked.items():
        examples = model.encoder.encode_all(questions)
        textual = {"length": [-log for log in log_lengths(examples)], "seen": shares(examples, known)}
        for kind, values in textual.items():
            found.setdefault(kind, {})[part] = {q.id: value for q, value in zip(questions, values, strict=True)}
    absent = [part for part in measured if any(part not in found.get(kind, {}) for kind in DISTANCES)]
    near = nearness(features(model, fit)) if absent else {}
    for part in absent:
        seen = features(model, asked[part])
        for kind, measure in near.items():
            found.setdefault(kind, {})[part] = {q.id: measure(rows) for q, rows in zip(asked[part], seen, strict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found))


def log_lengths(examples: Sequence[Example]) -> list[float]:
    """Return the logarithm of the tokens that a model sees of each question, mean over the texts that it sees."""
    return [float(np.log(tokens_of(example) / len(example.get("option_ids", [[]])))) for example in examples]


def features(model: UQModel, questions: Sequence[Question]) -> Rows:
    """Return what the head reads of every question and choice: what the encoder makes of the pair."""
    caught: list[torch.Tensor] = []
    head = base_of(model.model).get_submodule("classifier")
    handle = head.register_forward_pre_hook(lambda _, args: caught.append(args[0].detach().flatten(0, -2)))

    def work(batch: Mapping[str, torch.Tensor]) -> list[np.ndarray]:
        caught.clear()
        with torch.inference_mode():
            item = score(model.model, batch).item
        rows = caught[0].double().cpu().numpy()
        if item is None or len(item) != len(rows):
            raise ValueError("the head did not read one row for each choice")
        return [rows[(item == number).cpu().numpy()] for number in range(int(item.max()) + 1)]

    examples, size = model.encoder.encode_all(questions), model.config.eval.batch_size
    try:
        return in_batches(model.model, examples, model.encoder.pad_token_id, size, work)
    finally:
        handle.remove()


def nearness(known: Iterable[np.ndarray]) -> Mapping[str, Callable[[np.ndarray], float]]:
    """Return the two measures of a question's rows, means over its choices, large where it is like the known ones.

    >>> near = nearness([np.random.default_rng(0).normal(size=(400, 3))])
    >>> usual, odd = np.array([[0.5, 0.0, -0.5]]), np.array([[0.0, -9.0, 0.0]])
    >>> bool(near["mahalanobis"](usual) - near["mahalanobis"](odd) > 7)
    True
    """
    from sklearn.covariance import LedoitWolf

    rows = np.concatenate(list(known))
    gaussian, unit = LedoitWolf().fit(rows), _unit(rows)

    def mahalanobis(own: np.ndarray) -> float:
        return -float(np.sqrt(gaussian.mahalanobis(own)).mean())

    def nearest(own: np.ndarray) -> float:
        return -float(np.sort(cdist(_unit(own), unit), axis=1)[:, NEAREST - 1].mean())

    return {"mahalanobis": mahalanobis, "nearest": nearest}


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def read(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what ``write_nearness`` wrote, or nothing where it did not."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
