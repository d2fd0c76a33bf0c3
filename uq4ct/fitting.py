"""Fit one method on one task with one seed: from a configuration to a complete run folder."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from uq4ct import data, predictions
from uq4ct.answering import UQModel
from uq4ct.config import Config
from uq4ct.errors import UserError
from uq4ct.manifest import MANIFEST, verify_manifest, write_atomically, write_json, write_manifest
from uq4ct.runs import FIT_FILES, Run, Say, claimed, environment, to_stderr
from uq4ct.types import Question

if TYPE_CHECKING:
    from uq4ct.backbone import Backbone
    from uq4ct.prompts import Encoder


class Prepared(NamedTuple):
    """Questions, prompts and base model of a configuration, checked and ready to fit."""

    questions: data.QuestionSet
    calibration: tuple[Question, ...]
    examples: list[dict[str, Any]]
    backbone: Backbone
    encoder: Encoder
    notes: tuple[str, ...]


def prepare(config: Config) -> Prepared:
    """Read the questions, take the calibration split from them, load the base model and encode every prompt.

    Raises UserError with every bad row, or for a base model or tokenizer that cannot serve.
    """
    from uq4ct import backbone as backbones
    from uq4ct.prompts import Encoder

    questions = data.load(config.data.source, root=config.data.root, config=config.data, training=True)
    fit, calibration = data.calibration_split(questions, config=config.data, seed=config.output.seed)
    questions = replace(questions, questions=fit)
    backbone = backbones.load(config.model)
    encoder = Encoder(backbone.tokenizer, config.prompt, context_length=backbone.context_length)
    config.method.check(backbone.model)
    examples, notes = encoder.encode_training(questions.questions)
    return Prepared(questions, calibration, examples, backbone, encoder, (*questions.notes, *notes))


def train(config: Config, *, resume: bool = False, say: Say = to_stderr) -> Run:
    """Fit one method and write the run folder; a complete folder of the same configuration is returned as it is.

    Raises UserError for an output folder that is in use, unfinished without ``resume``, or of another configuration.
    """
    if not config.output.folder:
        raise UserError("output.folder: name the folder of the run with --output DIR")
    folder = Path(config.output.folder)
    _refuse_foreign(folder, config, resume)
    if (folder / MANIFEST).is_file():
        verify_manifest(folder)
        say(f"{folder}: already complete")
        return Run(folder)
    ready = prepare(config)  # every mistake of the user shows before anything is written
    with claimed(folder):
        _fit(ready, config, folder, resume, say)
    return Run(folder)


def _fit(ready: Prepared, config: Config, folder: Path, resume: bool, say: Say) -> None:
    from uq4ct.methods.base import Bench

    method, base = config.method, ready.backbone
    for note in ready.notes:
        say(f"note: {note}")
    sizes = f"{len(ready.questions):,} questions, {len(ready.calibration):,} kept for calibration"
    say(f"{method.name} on {ready.questions.name}: {sizes}")
    write_atomically(folder / "config.yaml", config.to_yaml())
    write_json(folder / "environment.json", environment(str(base.model.device)))
    write_json(
        folder / "splits.json",
        {
            "fit": [question.id for question in ready.questions.questions],
            "calibration": [question.id for question in ready.calibration],
        },
    )
    if ready.questions.skipped:
        write_atomically(folder / ready.questions.rejected_name, ready.questions.rejected_jsonl())
        say(f"{len(ready.questions.skipped):,} bad rows left out, listed in {folder / ready.questions.rejected_name}")
    started = time.monotonic()
    bench = Bench(
        model=base.model,
        pad_token_id=ready.encoder.pad_token_id,
        examples=ready.examples,
        calibration=ready.encoder.encode_all(ready.calibration),
        train=config.train,
        seed=config.output.seed,
        folder=folder,
        resume=resume,
        config_hash=config.fit_hash,
    )
    model = method.fit(bench)
    seconds = time.monotonic() - started
    if not _is_main_process():
        return
    fitted = UQModel(config, model, ready.encoder)
    if ready.calibration:
        rows = fitted.rows(ready.calibration, fitted.predict_questions(ready.calibration))
        predictions.write(folder / "calibration.jsonl", rows)
    write_json(folder / "uq4ct.json", _facts(ready, config, fitted, seconds))
    write_manifest(folder, [name for name in FIT_FILES if (folder / name).is_file()])
    if not config.output.keep_checkpoints:
        _remove_checkpoints(folder)
    say(f"wrote {folder} in {seconds:.0f} s")


def _facts(ready: Prepared, config: Config, fitted: UQModel, seconds: float) -> dict[str, Any]:
    return {
        "method": config.method.name,
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
        },
        "base": ready.backbone.description,
        "prompt": {
            "pack": config.prompt.pack,
            "scoring": config.prompt.scoring,
            "hash": ready.encoder.hash,
            "letters": dict(ready.encoder.letters),
        },
        "trainable_parameters": sum(p.numel() for p in fitted.model.parameters() if p.requires_grad),
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
    inside = {path.name for path in folder.iterdir()} - {".lock"}
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


def _remove_checkpoints(folder: Path) -> None:
    import shutil

    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)


def _is_main_process() -> bool:
    import torch.distributed

    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
