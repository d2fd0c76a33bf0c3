"""Put questions to a fitted model: evaluation with metrics, and prediction from file to file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from uq4ct import data, predictions
from uq4ct.answering import UQModel
from uq4ct.errors import UserError
from uq4ct.manifest import alone, is_complete, read_manifest, write_atomically, write_json, write_manifest
from uq4ct.metrics import Answers, summarize
from uq4ct.posthoc.abstain import AbstainRule
from uq4ct.runs import RULE, Run, Say, code_digest, hold, to_stderr
from uq4ct.types import Prediction

CHUNK = 512  # questions between two writes of a prediction file; an interrupted prediction loses at most one chunk


def evaluate(
    run: Run,
    sources: Sequence[str],
    *,
    split: str | None = None,
    root: str | None = None,
    batch_size: int | None = None,
    base: str | None = None,
    resume: bool = False,
    rule: AbstainRule | None = None,
    model: UQModel | None = None,
    store: Path | None = None,
    progress: Callable[[str, int], Callable[[int, int], None]] | None = None,
    say: Say = to_stderr,
) -> list[dict[str, Any]]:
    """Score every question of each source and write ``evaluations/<task>/`` below the run; return the metrics.

    With ``resume``, an evaluation that is complete for the same run and data is read back instead. A ``rule`` is saved
    with the run and applied, here and from now on. With a ``store``, what a method itself predicts is kept there by
    content and not computed again for another post-hoc calibration of the same fit.
    Raises UserError for bad rows, missing data, two sources of the same name, or one whose folder holds the evaluation
    of other data; nothing is written then.
    """
    root = root or run.config.data.root
    sets = [data.load(source, split=split, root=root, config=run.reading) for source in sources]
    names = [questions.evaluation_name for questions in sets]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"--data: two sources are called '{repeated[0]}'; rename one file or its folder")
    rule = rule or run.rule
    facts = {"run": run.digest, "rule": rule.to_dict() if rule else None}
    folders = [run.folder / "evaluations" / name for name in names]
    _refuse_other_data(folders, sets)
    kept = [
        resume and _is_evaluated(folder, {**facts, "data_sha256": questions.sha256})
        for folder, questions in zip(folders, sets, strict=True)
    ]
    examples: Iterator[dict[str, Any]] = iter(())
    if not all(kept):
        model = replace(model or UQModel.load(run, base=base), rule=rule)
        # a prompt that cannot be scored shows before anything is written
        asked = [q for done, part in zip(kept, sets, strict=True) if not done for q in part.questions]
        encoded, remarks = model.encoder.encode_evaluation(asked)
        for remark in remarks:
            say(f"note: {remark}")
        examples = iter(encoded)
    if rule != run.rule and rule is not None:
        rule.save(run.folder / RULE)
    results = []
    for name, folder, questions, done in zip(names, folders, sets, kept, strict=True):
        if done or model is None:
            results.append(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
            continue
        for note in questions.notes:
            say(f"note: {note}")
        own, asked_now = model, list(islice(examples, len(questions)))
        bar = progress(name, len(questions)) if progress else None
        raw = shelved(
            store / "predictions" / f"{_raw_identity(run, own, questions)}.npz" if store else None,
            [question.id for question in questions.questions],
            lambda: own.predict_raw(questions.questions, examples=asked_now, batch_size=batch_size, progress=bar),  # noqa: B023, called at once
        )
        calibrated = raw if model.calibrator is None else model.calibrator.apply(raw)
        rows = model.rows(questions.questions, calibrated, asked_now)
        settings = run.config.eval
        metrics = {
            **summarize(
                Answers.of_rows(rows),
                task=questions.name,
                split=questions.split,
                bins=settings.bins,
                resamples=settings.resamples,
            ),
            **_provenance(run, questions),
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").unlink(missing_ok=True)
        predictions.write(folder / "predictions.jsonl", rows)
        write_json(folder / "metrics.json", metrics)
        place = str(Path(questions.path).resolve())  # the path that was given may be one from another working folder
        written = ["predictions.jsonl", "metrics.json"]
        write_manifest(folder, written, data_sha256=questions.sha256, data_place=place, **facts)
        results.append(metrics)
    return results


def predict(
    run: Run,
    source: Path,
    output: Path,
    *,
    batch_size: int | None = None,
    rule: AbstainRule | None = None,
    base: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Say = to_stderr,
) -> int:
    """Answer every question of a file, labelled or not, and write prediction rows; return how many.

    An interrupted prediction of the same file continues where it stopped. A ``rule`` is saved with the run and applied,
    here and from now on. Raises UserError with every bad row or prompt, and for an output that cannot be written;
    nothing is written then.
    """
    _refuse_bad_output(source, output)
    questions = data.read_file(source, config=run.reading, require_answers=False)
    for note in questions.notes:
        say(f"note: {note}")
    model = UQModel.load(run, base=base)
    # a prompt that cannot be scored shows before anything is written
    examples, remarks = model.encoder.encode_evaluation(questions.questions)
    for remark in remarks:
        say(f"note: {remark}")
    if rule is not None:
        rule.save(run.folder / RULE)
        model = replace(model, rule=rule)
    facts = {
        "run": run.digest,
        "input": questions.sha256,
        "rule": model.rule.to_dict() if model.rule else None,
        "batch_size": batch_size,
    }
    partial, receipt = output.with_name(f"{output.name}.partial"), output.with_name(f"{output.name}.partial.json")
    with partial.open("a+b") as file:
        hold(file, output)
        done = _rows_done(file, receipt, facts)
        if done:
            say(f"{output}: continuing after {done:,} of {len(questions):,} questions")
        write_json(receipt, facts)
        for start in range(done, len(questions), CHUNK):
            chunk = questions.questions[start : start + CHUNK]
            encoded = examples[start : start + CHUNK]
            answered = model.predict_questions(chunk, examples=encoded, batch_size=batch_size)
            for row in model.rows(chunk, answered, encoded):
                file.write(predictions.to_line(row).encode())
            file.flush()
            os.fsync(file.fileno())
            if progress:
                progress(start + len(chunk), len(questions))
        os.replace(partial, output)
        receipt.unlink()
    if model.rule:
        kept = sum(not row["abstained"] for row in predictions.read_own(output))
        say(f"{output}: {kept:,} of {len(questions):,} answers kept, the others abstain")
    return len(questions)


def target_accuracy_rule(run: Run, target: float) -> AbstainRule:
    """Fit the abstain threshold on the run's calibration split.

    Raises UserError where the run has no calibration split or no threshold reaches the target with 95 % confidence.
    """
    path = run.folder / "calibration.jsonl"
    if not path.is_file():
        raise UserError(
            f"{run.folder}: --target-accuracy needs a calibration split, and the run was trained with "
            "data.calibration_fraction 0; give a threshold with --abstain-below"
        )
    return AbstainRule.fit(predictions.read(path), target_accuracy=target)


def _provenance(run: Run, questions: data.QuestionSet) -> dict[str, Any]:
    facts = run.facts
    return {
        "data": {"path": questions.path, "sha256": questions.sha256, "revision": questions.revision},
        "method": facts["method"],
        "seed": facts["seed"],
        "passes": facts["passes"],
        "prompt": {
            "pack": facts["prompt"]["pack"],
            "scoring": facts["prompt"]["scoring"],
            "hash": facts["prompt"]["hash"],
            "evaluation_max_length": run.config.prompt.evaluation_max_length,
        },
        "dtype": facts["base"]["dtype"],
    }


def _raw_identity(run: Run, model: UQModel, questions: data.QuestionSet) -> str:
    """SHA-256 over what a method's own prediction depends on: weights, method, prompts, questions and code."""
    files = read_manifest(run.folder)["files"]
    config, base = run.config, run.facts["base"]
    facts = {
        "weights": {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")},
        "method": [config.method.name, config.method.options()],
        "base": [base["fingerprint"], base["dtype"], config.model.model_dump(mode="json", exclude={"name"})],
        "prompts": [model.encoder.hash, config.prompt.evaluation_max_length],
        "questions": [
            [question.id, question.question, question.context, *question.choices] for question in questions.questions
        ],
        "code": code_digest(config.method.name),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def shelved(path: Path | None, ids: Sequence[str], predict: Callable[[], Prediction]) -> Prediction:
    """Return the prediction kept at a path, or make it and keep it there; without a path just make it.

    Of several processes that want the same one, the first makes it and the others wait.
    """
    if path is None:
        return predict()
    if found := _kept(path, ids):
        return found
    with alone(path.with_suffix(".lock"), "makes the same predictions"):
        if found := _kept(path, ids):  # made while we waited
            return found
        prediction = predict()
        arrays = {name: getattr(prediction, name) for name in ("logits", "mask", "feu", "letter_mass")}
        content = io.BytesIO()
        np.savez(content, **{name: array for name, array in arrays.items() if array is not None})
        write_atomically(path, content.getvalue())
    return prediction


def _kept(path: Path, ids: Sequence[str]) -> Prediction | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Prediction(tuple(ids), **{name: arrays[name] for name in arrays.files})
    except (OSError, ValueError, TypeError, zipfile.BadZipFile):  # not there, or not whole
        return None


def _is_evaluated(folder: Path, facts: Mapping[str, Any]) -> bool:
    """Tell whether a folder holds a whole evaluation of the same run, data and rule."""
    return is_complete(folder) and all(read_manifest(folder).get(key) == value for key, value in facts.items())


def _refuse_other_data(folders: Sequence[Path], sets: Sequence[data.QuestionSet]) -> None:
    """Raise UserError where a folder holds an evaluation of data with other content at another place."""
    problems = []
    for folder, questions in zip(folders, sets, strict=True):
        if not is_complete(folder) or (manifest := read_manifest(folder)).get("data_sha256") == questions.sha256:
            continue
        former = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["data"]["path"]
        place = manifest.get("data_place", str(Path(former).resolve()))  # older ones do not keep it
        if place != str(Path(questions.path).resolve()):
            former = place if former == questions.path else former
            problems.append(
                f"{folder}: holds the evaluation of {former}, and {questions.path} is called the same; rename the "
                "file or its folder, or delete that evaluation"
            )
    if problems:
        raise UserError(problems)


def _refuse_bad_output(source: Path, output: Path) -> None:
    if output.suffix in (".csv", ".parquet"):
        raise UserError(f"{output}: predictions are written as JSON lines; name the output .jsonl")
    if output.is_dir():
        raise UserError(f"{output}: a folder, expected a file to write predictions to")
    if not output.parent.is_dir():
        raise UserError(f"{output}: the folder {output.parent} does not exist")
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"{output}: is the file of questions itself; choose another --output")


def _rows_done(file: BinaryIO, receipt: Path, facts: Mapping[str, Any]) -> int:
    """Count the whole rows of an interrupted prediction of the same run and input, and cut off everything else."""
    try:
        same = json.loads(receipt.read_text(encoding="utf-8")) == facts
    except (OSError, ValueError):
        same = False
    file.seek(0)
    content = file.read() if same else b""
    whole = content.rfind(b"\n") + 1
    file.truncate(whole)
    return content.count(b"\n", 0, whole)
