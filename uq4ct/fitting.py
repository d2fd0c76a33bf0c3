"""Fit one method on one task with one seed: from a configuration to a complete run folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uq4ct import data, predictions, vocabulary
from uq4ct.adapting import Bench, check_training_options, is_main_process, remove_checkpoints, wait_for_all
from uq4ct.answering import UQModel
from uq4ct.config import Config
from uq4ct.encoders import new_modules
from uq4ct.errors import UserError
from uq4ct.manifest import MANIFEST, sha256, verify_manifest, write_atomically, write_json, write_manifest
from uq4ct.posthoc import Calibrator, calibrator
from uq4ct.runs import FIT_FILES, POSTHOC, Run, Say, claimed, code_digest, environment, to_stderr
from uq4ct.types import Prediction, Question

if TYPE_CHECKING:
    from uq4ct.backbone import Backbone
    from uq4ct.prompts import Encoder
    from uq4ct.sequences import SequenceEncoder


class Prepared(NamedTuple):
    """Questions, prompts and base model of a configuration, checked and ready to fit."""

    questions: data.QuestionSet
    calibration: tuple[Question, ...]
    examples: list[dict[str, Any]]
    calibration_examples: list[dict[str, Any]]
    backbone: Backbone
    encoder: Encoder | SequenceEncoder
    notes: tuple[str, ...]


def prepare(config: Config) -> Prepared:
    """Read the questions, take the calibration split from them, load the base model and encode every prompt.

    Raises UserError with every bad row, or for a base model or tokenizer that cannot serve.
    """
    from uq4ct.sequences import encoder_for

    questions = data.load(config.data.source, root=config.data.root, config=config.data, training=True)
    everything = questions.questions
    fit, calibration = data.calibration_split(questions, config=config.data, seed=config.output.seed)
    small = data.calibration_notes(questions, calibration, config=config.data)
    questions = replace(questions, questions=fit)
    if problems := config.method.unfit(len(fit), len(calibration)):
        raise UserError([f"method {config.method.label}: {problem}" for problem in problems])
    backbone = _base_model(config, everything)
    encoder = encoder_for(backbone, config.prompt)
    config.method.check(backbone.model)
    if config.method.trainings:
        check_training_options(config.train, backbone.model.device)
    examples, notes = encoder.encode_training(questions.questions)
    asked, shortened = encoder.encode_evaluation(calibration)
    after = config.method.notes_on_steps(config.train.steps(len(examples)))
    kind = _kind_notes(config, backbone)
    notes = (*questions.notes, *small, *kind, *notes, *shortened, *config.method.notes(backbone.model), *after)
    return Prepared(questions, calibration, examples, asked, backbone, encoder, notes)


def _base_model(config: Config, questions: Sequence[Question]) -> Backbone:
    """Load the base model, a classifier with the choices that all questions have."""
    from uq4ct import backbone as backbones
    from uq4ct.sequences import classes_of

    kind = backbones.kind(config.model, fixed_choices=config.data.choices is not None)
    classes = classes_of(questions) if kind == "classification" else ()
    return backbones.load(config.model.model_copy(update={"kind": kind}), classes)


def _kind_notes(config: Config, backbone: Backbone) -> list[str]:
    """Say what an encoder was taken for, and that its new head is trained as an adapter alone would be."""
    if backbone.kind == "causal":
        return []
    classes = ", ".join(backbone.classes)
    does = f"tells {classes} apart" if classes else "scores every pair of question and choice"
    notes = [f"model.kind: {backbone.kind}: {backbone.name} is an encoder, its head {does}"]
    if new_modules(backbone.model) and config.train.lr_scheduler_type == "constant":
        notes.append(
            f"train.lr_scheduler_type: constant, {config.train.num_train_epochs:g} epochs; for an encoder's new head "
            "--preset encoder trains longer, with warm-up and decay"
        )
    return notes


def train(
    config: Config,
    *,
    resume: bool = False,
    store: Path | None = None,
    snapshots: Sequence[float] = (),
    say: Say = to_stderr,
) -> Run:
    """Fit one method and write the run folder; a complete folder of the same configuration is returned as it is.

    ``store`` is a folder in which trainings are shared by content, and ``snapshots`` are the fractions of a training at
    which other methods that share it will want the adapter. Below ``torchrun`` every process fits, and the main one
    alone checks, claims and writes the folder.
    Raises UserError for an output folder that is in use, unfinished without ``resume``, of another configuration, or
    fitted on data that have changed since.
    """
    if not config.output.folder:
        raise UserError("output.folder: name the folder of the run with --output DIR")
    folder, main = Path(config.output.folder), is_main_process()
    if main:
        _refuse_foreign(folder, config, resume)
    if (folder / MANIFEST).is_file():
        return _complete(folder, config, say)
    ready = prepare(config)  # every mistake of the user shows before anything is written
    with claimed(folder) if main else nullcontext():
        if main:
            _refuse_foreign(folder, config, resume)  # again: another process may have come first
        if (folder / MANIFEST).is_file():
            return _complete(folder, config, say)
        _fit(ready, config, folder, resume, store, tuple(snapshots), say)
    return Run(folder)


def _complete(folder: Path, config: Config, say: Say) -> Run:
    """Return a finished run. Raises UserError where a file of the fit, or the data it was fitted on, has changed."""
    verify_manifest(folder)
    run = Run(folder)
    place = Path(run.facts["data"]["path"])
    if place.exists() and _digest_of_data(place, config, folder) != run.facts["data"]["sha256"]:
        raise UserError(f"{folder}: {place} has changed since this run was fitted on it; choose another --output")
    if is_main_process():
        say(f"{folder}: already complete")
    return run


def _digest_of_data(place: Path, config: Config, folder: Path) -> str:
    """Return the SHA-256 of local training data: of one file, or of what is read from a folder."""
    if place.is_file():
        return sha256(place)
    try:
        return data.load(config.data.source, root=config.data.root, config=config.data, training=True).sha256
    except UserError as error:
        reason = f"{folder}: is complete, but what it was fitted on can no longer be read:"
        raise UserError([reason, *error.problems]) from error


def _fit(
    ready: Prepared,
    config: Config,
    folder: Path,
    resume: bool,
    store: Path | None,
    snapshots: tuple[float, ...],
    say: Say,
) -> None:
    if is_main_process():
        _begin(ready, config, folder, say)
    started, shared = time.monotonic(), list[float]()  # seconds of trainings that were found in the store
    bench = Bench(
        model=ready.backbone.model,
        pad_token_id=ready.encoder.pad_token_id,
        examples=ready.examples,
        calibration=ready.calibration_examples,
        train=config.train,
        seed=config.output.seed,
        folder=folder,
        resume=resume,
        config_hash=config.fit_hash,
        base=_base_identity(ready, config),
        store=store,
        snapshots=snapshots,
        charge=shared.append,
    )
    model = config.method.fit(bench)
    if is_main_process():
        seconds = time.monotonic() - started + sum(shared)
        fitted = UQModel(config, model, ready.encoder, known=vocabulary.read(folder))
        _finish(ready, config, fitted, folder, seconds, say)
    wait_for_all()


def _base_identity(ready: Prepared, config: Config) -> str:
    """SHA-256 over what all trainings on one base model by one version of this package have in common."""
    options = config.model.model_dump(mode="json", exclude={"name", "device"})
    facts = [code_digest(), ready.backbone.fingerprint, ready.backbone.dtype, ready.encoder.hash, options]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _begin(ready: Prepared, config: Config, folder: Path, say: Say) -> None:
    """Write what is known before training: configuration, environment, splits and rejected rows."""
    for note in ready.notes:
        say(f"note: {note}")
    sizes = f"{len(ready.questions):,} questions, {len(ready.calibration):,} kept for calibration"
    say(f"{config.method.label} on {ready.questions.name}: {sizes}")
    write_atomically(folder / "config.yaml", config.to_yaml())
    write_json(folder / "environment.json", environment(str(ready.backbone.model.device)))
    write_json(
        folder / "splits.json",
        {
            "fit": [question.id for question in ready.questions.questions],
            "calibration": [question.id for question in ready.calibration],
        },
    )
    vocabulary.write(folder, ready.examples)
    if ready.questions.skipped:
        write_atomically(folder / ready.questions.rejected_name, ready.questions.rejected_jsonl())
        say(f"{len(ready.questions.skipped):,} bad rows left out, listed in {folder / ready.questions.rejected_name}")


def _finish(ready: Prepared, config: Config, fitted: UQModel, folder: Path, seconds: float, say: Say) -> None:
    """Calibrate where the method asks for it, and write what the fit gave, its manifest last."""
    if ready.calibration:
        prediction = fitted.predict_raw(ready.calibration, examples=ready.calibration_examples)
        if config.method.posthoc:
            found = _calibrate(config.method.posthoc, prediction, ready.calibration)
            write_json(folder / POSTHOC, found.to_dict())
            say(f"{config.method.label}: {found.describe()}")
            fitted, prediction = replace(fitted, calibrator=found), found.apply(prediction)
        rows = fitted.rows(ready.calibration, prediction, ready.calibration_examples)
        predictions.write(folder / "calibration.jsonl", rows)
    write_json(folder / "uq4ct.json", _facts(ready, config, fitted, folder, seconds))
    members = (f"{path.name}/{file.name}" for path in folder.glob("member-*") for file in path.iterdir())
    write_manifest(folder, [name for name in (*FIT_FILES, *members) if (folder / name).is_file()])
    if not config.output.keep_checkpoints:
        for trained in (folder, *folder.glob("member-*")):
            remove_checkpoints(trained)
            shutil.rmtree(trained / "snapshots", ignore_errors=True)
    say(f"wrote {folder} in {seconds:.0f} s")


def _calibrate(name: str, prediction: Prediction, questions: Sequence[Question]) -> Calibrator:
    answer = [-1 if question.answer is None else question.answer for question in questions]
    return calibrator(name).fit(prediction, np.array(answer))


def _facts(ready: Prepared, config: Config, fitted: UQModel, folder: Path, seconds: float) -> dict[str, Any]:
    return {
        "method": config.method.label,
        "passes": config.method.passes,
        "seed": config.output.seed,
        "task": ready.questions.name,
        "split": ready.questions.split,
        "n": len(ready.questions),
        "data": {
            "path": ready.questions.path,
            "sha256": ready.questions.sha256,
            "revision": ready.questions.revision,
            "skipped": len(ready.questions.skipped),
            "answers": ready.questions.counted,
        },
        "base": ready.backbone.description,
        "prompt": ready.encoder.description,
        "trainable_parameters": config.method.trainable_parameters(folder),
        "extra_bytes": sum(file.stat().st_size for file in folder.rglob("*.safetensors") if _is_kept(folder, file)),
        "seconds": round(seconds, 1),
        "config_hash": config.fit_hash,
        "fingerprint": fitted.fingerprint(),
        "notes": list(ready.notes),
    }


def _refuse_foreign(folder: Path, config: Config, resume: bool) -> None:
    """Refuse to write over anything that is not an interrupted run of the very same configuration."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: a file, expected a folder for the run")
    inside = {path.name for path in folder.iterdir() if path.name != ".lock" and path.suffix != ".tmp"}
    if not inside:
        return
    if "config.yaml" not in inside:
        raise UserError(f"{folder}: not empty and not a run folder; choose another --output")
    from uq4ct.config import read_yaml, resolve

    before = resolve([read_yaml(folder / "config.yaml")])
    if before.fit_hash != config.fit_hash:
        raise UserError(
            f"{folder}: holds a run of another configuration ({_difference(before, config)}); choose another --output"
        )
    if MANIFEST not in inside and not resume:
        raise UserError(f"{folder}: holds an unfinished run of this configuration; add --resume to continue it")


def _difference(before: Config, now: Config) -> str:
    old, new = before.dump(), now.dump()
    changed = [
        f"{section}.{name}: {old[section].get(name)!r} there, {new[section].get(name)!r} now"
        for section in new
        if section not in ("eval",)
        for name in {**old[section], **new[section]}
        if old[section].get(name) != new[section].get(name) and name not in ("folder", "keep_checkpoints")
    ]
    return "; ".join(changed) or "another version of the options"


def _is_kept(folder: Path, file: Path) -> bool:
    """Tell whether a file belongs to the finished run: its own or a member's, not a checkpoint's or a snapshot's."""
    return file.parent == folder or (file.parent.parent == folder and file.parent.name.startswith("member-"))
