"""From a configuration to a run folder, and from a run folder to answers: what a person does, end to end."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from uq4ct import backbone, cli, data, evaluating, fitting, methods, predictions, preflight
from uq4ct.adapting import TrainConfig, check_training_options
from uq4ct.answering import FINGERPRINT_QUESTIONS, UQModel
from uq4ct.config import Layer, resolve
from uq4ct.errors import Note, UserError
from uq4ct.manifest import CorruptFolder
from uq4ct.posthoc.abstain import AbstainRule
from uq4ct.prompts import Encoder, PromptConfig
from uq4ct.runs import Run, claimed, hold
from uq4ct.scoring import score_all
from uq4ct.tasks.mmlu import LAW
from uq4ct.types import FeuReading, Prediction

ROWS = [
    {
        "id": f"q{i}",
        "question": f"What is number {i} called?",
        "choices": ["red", "green", "blue", "grey"][: 3 + i % 2],
        "answer": "ABC"[i % 3],
    }
    for i in range(48)
]


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("colours") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def config_of(questions, folder, method="uq4ct", **train):
    small = {} if method == "zero_shot" else {"rank": 2}
    return resolve(
        [
            Layer.of(
                {
                    "data": {"source": str(questions)},
                    "method": {"name": method, **small},
                    "train": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, **train},
                    "eval": {"resamples": 100},
                    "output": {"folder": str(folder)},
                },
                "test",
            )
        ]
    )


@pytest.fixture(scope="module")
def run(questions, tmp_path_factory) -> Run:
    return fitting.train(config_of(questions, tmp_path_factory.mktemp("runs") / "uq4ct"), say=lambda line: None)


@pytest.fixture(scope="module")
def model(run) -> UQModel:
    return UQModel.load(run)


@pytest.mark.parametrize("method", ["zero_shot", "lora", "mixlora"])
def test_every_method_fits_saves_and_answers_the_same_after_loading(method, questions, tmp_path):
    run = fitting.train(config_of(questions, tmp_path / method, method), say=lambda line: None)
    saved = predictions.read(run.folder / "calibration.jsonl")
    assert len(saved) == 5
    loaded = UQModel.load(run)
    assert {p.requires_grad for p in loaded.model.parameters()} <= {False, True}
    for row in saved:
        answer = loaded.predict(row["question"], row["choices"])
        assert answer.probabilities == pytest.approx(row["probabilities"], abs=1e-6)
        assert (answer.feu is None) == (method != "mixlora")


@pytest.mark.parametrize(("method", "cost"), [("mixlora", "10 steps of 10"), ("zero_shot", "0 steps of 10")])
def test_the_preflight_checks_everything_and_writes_nothing(method, cost, questions, tmp_path):
    said: list[str] = []
    config = config_of(questions, tmp_path / "run", method, max_steps=-1, per_device_train_batch_size=10)
    preflight.run(lambda: config, said.append)
    assert [line[:5] for line in said if line.startswith("[")] == [f"[{step}/6]" for step in range(1, 7)]
    assert cost in said[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", methods.names())
def test_the_preflight_counts_the_parameters_and_steps_of_the_run(method, questions, tmp_path):
    said: list[str] = []
    config = config_of(questions, tmp_path / "run", method, max_steps=1)
    preflight.run(lambda: config, said.append)
    run = fitting.train(config, say=lambda line: None)
    logs = [path.read_text(encoding="utf-8").splitlines() for path in run.folder.rglob("training_log.jsonl")]
    steps = sum(json.loads(lines[-1])["step"] for lines in logs)
    assert f"ok   {run.facts['trainable_parameters']:,} trainable parameters; {steps} steps of 4" in said[-1]


@pytest.mark.parametrize(("method", "passes"), [("lora", 12 + 5), ("deep_ensemble", 36 + 15), ("zero_shot", 5)])
def test_the_preflight_counts_the_time_of_all_trainings_and_of_calibration(method, passes, questions, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(preflight, "_sample", lambda config, ready: (0.9, 60.0))
    preflight.run(lambda: config_of(questions, "unused", method, max_steps=1), said.append)
    assert f"roughly {passes}.0 minutes" in said[-1]


def test_the_run_folder_says_what_was_done(run):
    facts = run.facts
    assert (facts["method"], facts["n"], facts["passes"], facts["base"]["name"]) == ("uq4ct", 43, 1, "tiny")
    splits = json.loads((run.folder / "splits.json").read_text())
    assert len(splits["fit"]) == 43
    assert not set(splits["fit"]) & set(splits["calibration"])
    log = [json.loads(line) for line in (run.folder / "training_log.jsonl").read_text().splitlines()]
    assert log
    assert not list(run.folder.glob("checkpoint-*"))


def test_a_fresh_process_loads_the_run(run):
    asked = [sys.executable, "-m", "uq4ct", "ask", str(run.folder), "-q", "Which?", "-c", "ice", "-c", "iron", "--json"]
    printed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed)["choice"] in ("ice", "iron")


def test_a_complete_run_is_not_trained_again(run, questions):
    before = (run.folder / "adapter_model.safetensors").stat().st_mtime_ns
    fitting.train(run.config, say=lambda line: None)
    assert (run.folder / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_a_complete_run_of_a_file_that_has_changed_is_not_passed_off_as_its_fit(questions, tmp_path):
    copy = tmp_path / "train.jsonl"
    copy.write_text(questions.read_text(encoding="utf-8"), encoding="utf-8")
    config = config_of(copy, tmp_path / "run", "zero_shot")
    fitting.train(config, say=lambda line: None)
    copy.write_text(copy.read_text(encoding="utf-8").replace("grey", "gray"), encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.jsonl has changed since this run was fitted on it"):
        fitting.train(config, say=lambda line: None)


def write_parquet(folder: Path, rows: list[dict]) -> str:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / "train-00000-of-00001.parquet")
    return str(folder)


def write_subjects(root: Path, rows: list[dict]) -> str:
    for part in LAW.splits["validation"]:
        (root / part.path).parent.mkdir(parents=True, exist_ok=True)
        (root / part.path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"{LAW.name}:validation"


@pytest.mark.parametrize("write", [write_parquet, write_subjects])
def test_a_complete_run_of_several_files_that_have_changed_is_not_passed_off_as_its_fit(write, tmp_path):
    place = tmp_path / "several"
    rows = [{"question": q, "choices": list("wxyz"), "answer": n % 4, "subject": "x"} for n, q in enumerate("abcdefgh")]
    source = write(place, rows)
    given = {"source": source, "root": str(place), "calibration_fraction": 0}
    output = {"folder": str(tmp_path / "run")}
    config = resolve([Layer.of({"data": given, "method": {"name": "zero_shot"}, "output": output}, "test")])
    fitting.train(config, say=lambda line: None)
    said: list[str] = []
    fitting.train(config, say=said.append)
    assert said == [f"{tmp_path / 'run'}: already complete"]
    write(place, [{**row, "answer": 3 - row["answer"]} for row in rows])
    with pytest.raises(UserError, match=r"several.* has changed since this run was fitted on it; choose"):
        fitting.train(config, say=lambda line: None)
    for file in [path for path in place.rglob("*") if path.is_file()]:
        file.unlink()
    with pytest.raises(UserError, match=r"run: is complete, but what it was fitted on can no longer be read:\n"):
        fitting.train(config, say=lambda line: None)


def test_a_calibration_prompt_that_cannot_be_scored_shows_before_anything_is_written(tmp_path):
    rows = [{**row, "context": "word " * 9000} for row in ROWS[:4]]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(UserError, match="the model's context holds"):
        fitting.train(config_of(path, tmp_path / "run"), say=lambda line: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora+feu", {}, r"method lora\+feu: calibration by FEU needs a method with a router"),
        ("uq4ct+vector", {}, r"method uq4ct\+vector: vector scaling needs at least 200 .* got 5"),
        ("laplace", {"method": {"prior": "grid"}, "data": {"calibration_fraction": 0}}, "laplace: needs a calibration"),
    ],
)
def test_what_the_calibration_split_cannot_serve_shows_before_training(method, options, message, questions, tmp_path):
    config = config_of(questions, tmp_path / "run", method).dump()
    both = [Layer.of(config, "test"), Layer.of(options, "more")]
    with pytest.raises(UserError, match=message):
        fitting.train(resolve(both))
    assert not (tmp_path / "run").exists()


def test_two_processes_train_one_run(questions, tmp_path):
    options = ["method.rank=2", "train.per_device_train_batch_size=2", "train.logging_steps=1"]
    train = ["-m", "uq4ct", "train", "--data", str(questions), "--output", str(tmp_path / "run"), "--max-steps", "1"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *train, "--set", *options]
    done = subprocess.run(launch, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 1 of 1") == done.stderr.count("next: uq4ct evaluate") == 1
    assert Run.open(tmp_path / "run").facts["n"] == 43
    log = [json.loads(line) for line in (tmp_path / "run" / "training_log.jsonl").read_text().splitlines()]
    assert log[0]["accuracy"] in (0.0, 0.25, 0.5, 0.75, 1.0)  # of four questions, two from each process


def test_a_folder_of_another_configuration_is_refused(run, questions):
    with pytest.raises(UserError, match=r"holds a run of another configuration \(train.max_steps: 2 there, 3 now\)"):
        fitting.train(config_of(questions, run.folder, max_steps=3), say=lambda line: None)


def test_an_unfinished_run_needs_resume(questions, tmp_path):
    config = config_of(questions, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config.to_yaml())
    with pytest.raises(UserError, match="add --resume to continue it"):
        fitting.train(config, say=lambda line: None)
    with pytest.raises(UserError, match="its training was not finished"):
        Run.open(tmp_path / "run")
    assert fitting.train(config, resume=True, say=lambda line: None).facts["n"] == 43


def test_a_foreign_folder_is_never_written_to(questions, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty and not a run folder"):
        fitting.train(config_of(questions, tmp_path), say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_do_not_share_a_folder(tmp_path):
    with claimed(tmp_path):
        code = f"from pathlib import Path; from uq4ct.runs import claimed; claimed(Path({str(tmp_path)!r})).__enter__()"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "in use by another process" in other.stderr


def test_a_changed_adapter_is_named_and_not_loaded(questions, tmp_path):
    run = fitting.train(config_of(questions, tmp_path / "run", "lora"), say=lambda line: None)
    adapter = run.folder / "adapter_model.safetensors"
    content = bytearray(adapter.read_bytes())
    content[-5] ^= 1
    adapter.write_bytes(content)
    with pytest.raises(CorruptFolder, match=r"adapter_model\.safetensors: SHA-256"):
        Run.open(run.folder)


def test_a_run_is_read_in_the_dtype_it_was_fitted_in_and_where_its_device_is_not(questions, tmp_path, monkeypatch):
    config = config_of(questions, tmp_path / "half", "mixlora")
    half = config.model.model_copy(update={"device": "cpu", "dtype": "bfloat16"})
    fitted = fitting.train(config.model_copy(update={"model": half}), say=lambda line: None)
    auto = fitted.config.model.model_copy(update={"dtype": "auto"})  # as where `auto` means half on a GPU
    monkeypatch.setattr(Run, "config", fitted.config.model_copy(update={"model": auto}))
    monkeypatch.setattr(backbone, "is_there", lambda device: False)
    monkeypatch.setattr(backbone, "_device", lambda config: "cpu" if config.device is None else "not asked")
    with pytest.warns(UserWarning, match="half: fitted on cpu, which is not here; it is read on another device"):
        assert UQModel.load(fitted).model.dtype == torch.bfloat16


def test_training_on_another_gpu_than_the_first_is_refused_and_the_way_named(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match=r"takes cuda:0 here, not cuda:1; leave model.device out and set CUDA_VISI"):
        check_training_options(TrainConfig(), torch.device("cuda:1"))
    check_training_options(TrainConfig(), torch.device("cpu"))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"takes cuda:2 here, not cuda:0; leave model.device out$"):
        check_training_options(TrainConfig(), torch.device("cuda:0"))


def test_another_base_model_is_refused(run, tmp_path):
    import shutil

    import safetensors.torch

    from uq4ct import backbone

    moved = tmp_path / "moved"
    shutil.copytree(backbone.load().files[0].parent, moved)
    assert UQModel.load(run, base=str(moved)).predict("Which?", ["a", "b"]).confidence > 0
    tensors = safetensors.torch.load_file(moved / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    safetensors.torch.save_file(tensors, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="give the right base with --base"):
        UQModel.load(run, base=str(moved))


def test_an_answer_has_probabilities_confidence_and_feu(model):
    answer = model.predict("Which melts first?", ["ice", "iron", "salt"])
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert answer.confidence == max(answer.probabilities.values())
    assert 0.25 <= answer.feu <= 1
    assert answer.choice in ("ice", "iron", "salt")


def test_feu_is_read_as_it_was_trained(model):
    """Over the same tokens, by the same reduction; the mass where the loss compares vectors, which are no number."""
    examples = model.encoder.encode_all(FINGERPRINT_QUESTIONS)
    kind = type(model.config.method)
    settings = {"ids": [str(i) for i in range(len(examples))], "pad_token_id": model.encoder.pad_token_id}
    seen = set()
    for options, reading in (
        ({}, FeuReading("mass", "prompt")),
        ({"feu_tokens": "last"}, FeuReading("mass", "last")),
        ({"feu_reduction": "top1"}, FeuReading("top1", "prompt")),
        ({"feu_reduction": "vector"}, FeuReading("mass", "prompt")),
    ):
        read = kind(**options).predict(model.model, examples, **settings).feu
        expected = score_all(model.model, examples, model.encoder.pad_token_id, 32, feu=reading)[2]
        assert read.tolist() == expected.tolist()
        seen.add(tuple(read))
    assert len(seen) == 3


@pytest.mark.parametrize("damage", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_an_error_and_no_confident_answer(model, damage):
    """As half precision that overflows gives them; the largest of NaNs would be choice A, kept by every threshold."""
    head = model.model.get_output_embeddings().weight
    before = head.detach().clone()
    try:
        head.data.mul_(damage)
        with pytest.raises(UserError, match=r"1 of 1 questions have scores that are not finite, the first 'question'"):
            model.predict("Which melts first?", ["ice", "iron", "salt"])
    finally:
        head.data.copy_(before)


def test_batch_size_and_order_change_no_probability(model, questions):
    from uq4ct import data

    asked = data.read_file(questions).questions
    straight = model.predict_questions(asked, batch_size=48).probabilities
    backwards = model.predict_questions(asked[::-1], batch_size=5).probabilities[::-1]
    assert np.abs(straight - backwards).max() < 1e-6


def test_evaluation_scores_every_item_and_writes_its_folder(run, questions, tmp_path):
    (result,) = evaluating.evaluate(run, [str(questions)], say=lambda line: None)
    assert (result["n"], result["method"], result["bins"] is not None) == (48, "uq4ct", True)
    folder = run.folder / "evaluations" / result["task"]
    assert len(predictions.read(folder / "predictions.jsonl")) == 48
    before = (folder / "predictions.jsonl").stat().st_mtime_ns
    again = evaluating.evaluate(run, [str(questions)], resume=True, say=lambda line: None)
    assert again[0]["nll"] == result["nll"]
    assert (folder / "predictions.jsonl").stat().st_mtime_ns == before


def write_numbers(path: Path, *answers: int) -> Path:
    rows = [{"question": f"Which is {n} ?", "choices": list("wxyz"), "answer": a} for n, a in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_test_file_whose_rows_do_not_say_what_they_count_from_is_read_as_the_training_file(tmp_path):
    train = write_numbers(tmp_path / "train.jsonl", *[1, 2, 3, 4] * 4)
    run = fitting.train(config_of(train, tmp_path / "run", "zero_shot"), say=lambda line: None)
    assert run.facts["data"]["answers"] == "position"
    said: list[str] = []
    for name, answers, gold in (("tie", (1, 2, 3), "ABC"), ("zero", (0, 1, 3), "ABD")):
        file, output = write_numbers(tmp_path / f"{name}.jsonl", *answers), tmp_path / f"{name}.out.jsonl"
        (metrics,) = evaluating.evaluate(run, [str(file)], say=said.append)
        evaluating.predict(run, file, output, say=said.append)
        evaluated = run.folder / "evaluations" / metrics["task"] / "predictions.jsonl"
        for path in (evaluated, output):
            assert [row["label"] for row in predictions.read(path)] == list(gold)
    assert [line for line in said if "read as those trained on" in line] == [
        f"note: {tmp_path / 'tie.jsonl'}: answer is read as positions counted from 1; no row says whether they are "
        "counted from 0 or from 1, so they are read as those trained on; letters A, B, C, ... would say it"
    ] * 2


def test_a_run_that_does_not_say_what_its_answers_counted_from_still_reads_files(run, tmp_path):
    facts = {**run.facts, "data": {name: value for name, value in run.facts["data"].items() if name != "answers"}}
    (tmp_path / "uq4ct.json").write_text(json.dumps(facts), encoding="utf-8")
    (tmp_path / "config.yaml").write_text((run.folder / "config.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert Run(tmp_path).reading == run.config.data


def test_rows_say_which_share_of_their_tokens_the_questions_fitted_on_have(run, model, questions, tmp_path):
    asked = [ROWS[3], {**ROWS[3], "id": "new", "question": "Quartz?"}]
    source, output = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    evaluating.predict(run, source, output, say=lambda line: None)
    (result,) = evaluating.evaluate(run, [str(source)], say=lambda line: None)
    answered, evaluated = (
        predictions.read(path) for path in (output, run.folder / "evaluations" / result["task"] / "predictions.jsonl")
    )
    fitted = set(json.loads((run.folder / "splits.json").read_text())["fit"])
    known: set[int] = set()
    for question in data.read_file(questions).questions:
        if question.id in fitted:
            known |= {*model.encoder.encode(question)["input_ids"]}
    expected = []
    for question in data.read_file(source).questions:
        ids = model.encoder.encode(question)["input_ids"]
        expected.append(sum(1 for token in ids if token in known) / len(ids))
    assert expected[1] < expected[0] <= 1
    assert [row["seen_tokens"] for row in answered] == [row["seen_tokens"] for row in evaluated] == expected
    assert all(0 < row["seen_tokens"] <= 1 for row in predictions.read(run.folder / "calibration.jsonl"))
    former = replace(model, known=None)  # a run of a former version keeps no vocabulary
    (row,) = former.rows([question], former.predict_questions([question]))
    assert "seen_tokens" not in row


def test_two_sources_of_one_name_are_refused(run, questions):
    with pytest.raises(UserError, match="two sources are called"):
        evaluating.evaluate(run, [str(questions), str(questions)], say=lambda line: None)


def test_an_evaluation_of_other_data_is_never_overwritten(run, tmp_path, monkeypatch):
    def write(path: str, rows) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    def evaluate(file: Path) -> int:
        return evaluating.evaluate(run, [str(file)], say=lambda line: None)[0]["n"]

    first, second = write("x/fold/test.jsonl", ROWS[:4]), write("y/fold/test.jsonl", ROWS[4:6])
    assert evaluate(first) == 4
    with pytest.raises(UserError) as caught:
        evaluate(second)
    assert str(caught.value) == (
        f"{run.folder}/evaluations/fold-test: holds the evaluation of {first}, and {second} is called the same; rename "
        "the file or its folder, or delete that evaluation"
    )
    assert evaluate(write("z/fold/test.jsonl", ROWS[:4])) == 4  # a copy
    assert evaluate(write("z/fold/test.jsonl", ROWS[:3])) == 3  # the same file, corrected
    relative = Path("same/test.jsonl")  # from two working folders two files
    for place, rows in (("v", ROWS[:4]), ("w", ROWS[4:6])):
        write(f"{place}/{relative}", rows)
    monkeypatch.chdir(tmp_path / "v")
    assert evaluate(relative) == 4
    monkeypatch.chdir(tmp_path / "w")
    with pytest.raises(UserError) as caught:
        evaluate(relative)
    assert f"same-test: holds the evaluation of {tmp_path}/v/{relative}, and {relative} is called" in str(caught.value)


def test_prediction_continues_where_it_stopped(run, tmp_path, monkeypatch):
    unlabelled = tmp_path / "in.jsonl"
    unlabelled.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "answer"}) + "\n" for row in ROWS))
    whole, pieces = tmp_path / "whole.jsonl", tmp_path / "pieces.jsonl"
    monkeypatch.setattr(evaluating, "CHUNK", 10)
    assert evaluating.predict(run, unlabelled, whole, say=lambda line: None) == 48

    def stop(done, total):
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluating.predict(run, unlabelled, pieces, progress=stop, say=lambda line: None)
    partial = pieces.with_name("pieces.jsonl.partial")
    with partial.open("a") as file:
        file.write('{"half a row')
    said = []
    evaluating.predict(run, unlabelled, pieces, say=said.append)
    assert any("continuing after 20 of 48" in line for line in said)
    assert pieces.read_text() == whole.read_text()
    assert not partial.exists()
    row = json.loads(whole.read_text().splitlines()[0])
    assert (row["label"], row["correct"], row["abstained"]) == (None, None, False)


def test_predictions_never_go_where_they_would_destroy_or_mix(run, questions, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="is the file of questions itself"):
        evaluating.predict(run, source, source, say=lambda line: None)
    with pytest.raises(UserError, match="a folder, expected a file"):
        evaluating.predict(run, source, tmp_path, say=lambda line: None)
    with (tmp_path / "out.jsonl.partial").open("w") as file:
        hold(file, tmp_path)
        with pytest.raises(UserError, match=r"out\.jsonl: in use by another process"):
            evaluating.predict(run, source, tmp_path / "out.jsonl", say=lambda line: None)


def test_a_mistake_in_questions_leaves_the_rule_and_the_folder_as_they_were(run, questions, tmp_path):
    rule, source = AbstainRule(0.9), tmp_path / "long.jsonl"
    long = {"question": "Which?", "choices": ["ice", "iron"], "answer": "A", "context": "word " * 9000}
    source.write_text(json.dumps(long) + "\n", encoding="utf-8")
    before = sorted(path.name for path in run.folder.rglob("*"))
    with pytest.raises(UserError, match="the model's context holds"):
        evaluating.predict(run, source, tmp_path / "out.jsonl", rule=rule, say=lambda line: None)
    for sources in ([str(source)], ["absent.jsonl"]):
        with pytest.raises(UserError, match=r"the model's context holds|no such file"):
            evaluating.evaluate(run, [str(questions), *sources], rule=rule, say=lambda line: None)
    assert sorted(path.name for path in run.folder.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["long.jsonl"]


def test_a_single_question_is_read_as_a_file_s_rows_are(model):
    plain = model.predict("Which is number 3?", ["red", "green"], "A passage.")
    assert model.predict("  Which is number 3?\r\n", ["red ", "\tgreen"], " A passage. \n") == plain
    assert model.predict("Which?", ["1", "2"]) == model.predict("Which?", [1, 2])
    blind = replace(model, encoder=Encoder(model.encoder.tokenizer, PromptConfig(pack="moe_peft")))
    with pytest.warns(Note, match="moe_peft does not show the context"):
        blind.predict("Which is number 3?", ["red", "green"], "A passage.")
    with pytest.raises(UserError, match="question is empty\nchoice A is empty"):
        model.predict(" ", ["", "green"])
    with pytest.raises(UserError, match="1 choice, expected 2 to 26"):
        model.predict("Which?", ["red"])


def test_prediction_and_evaluation_say_what_they_read_and_never_leave_rows_out(questions, tmp_path):
    config = config_of(questions, tmp_path / "run", "zero_shot")
    config = config.model_copy(update={"data": config.data.model_copy(update={"skip_bad_rows": True})})
    run = fitting.train(config, say=lambda line: None)
    source, output, said = tmp_path / "in.jsonl", tmp_path / "out.jsonl", []
    good = json.dumps({"question": "Which?", "choices": ["ice", "iron"], "comment": "x"}) + "\n"
    source.write_text(2 * good)
    assert evaluating.predict(run, source, output, say=said.append) == 2
    assert f"note: {source}: 1 row with the question and choices of an earlier one" in said
    source.write_text(good + json.dumps({"question": "Which?", "choices": ["ice"]}) + "\n")
    with pytest.raises(UserError, match=r"in\.jsonl:2: 1 choice, expected 2 to 26"):
        evaluating.predict(run, source, tmp_path / "other.jsonl", say=said.append)
    assert not (tmp_path / "other.jsonl").exists()
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps({"question": f"{n}?", "choices": ["a", "b"], "answer": "A"}) + "\n" for n in "12"))
    assert evaluating.evaluate(run, [str(test)], say=said.append)[0]["n"] == 2
    test.write_text(test.read_text() + json.dumps({"question": "3?", "choices": ["a", "b"], "answer": "Z"}) + "\n")
    with pytest.raises(UserError, match=r"test\.jsonl:3: answer 'Z'"):
        evaluating.evaluate(run, [str(test)], say=said.append)


def test_the_abstain_rule_is_saved_and_applied(questions, tmp_path, capsys):
    run = fitting.train(config_of(questions, tmp_path / "run", "zero_shot"), say=lambda line: None)
    (result,) = evaluating.evaluate(run, [str(questions)], rule=AbstainRule(threshold=1.0), say=lambda line: None)
    assert result["answered"]["coverage"] == 0
    assert UQModel.load(run).predict("Which melts first?", ["ice", "iron"]).abstained
    with pytest.raises(UserError, match="are too few"):
        evaluating.target_accuracy_rule(run, 0.9)


def test_a_rule_says_what_it_keeps_also_where_an_earlier_call_saved_it(questions, tmp_path, capsys):
    run = fitting.train(config_of(questions, tmp_path / "run", "zero_shot"), say=lambda line: None)
    asked = ["evaluate", str(run.folder), "--data", str(questions)]
    assert cli.invoke(asked) == 0
    captured = capsys.readouterr()
    assert "kept" not in captured.out
    assert "abstain" not in captured.err
    (path,) = run.folder.glob("evaluations/*/predictions.jsonl")
    (row, *_) = rows = predictions.read_own(path)
    kept = [other["correct"] for other in rows if other["confidence"] >= row["confidence"]]
    assert cli.invoke([*asked, "--abstain-below", repr(row["confidence"])]) == 0
    share, right = 100 * len(kept) / len(rows), 100 * sum(kept) / len(kept)
    line = f": {len(kept)} of {len(rows)} answers kept ({share:.1f} %), {right:.1f} % of these right"
    assert capsys.readouterr().out.splitlines()[-1].endswith(line)
    output = tmp_path / "answers.jsonl"
    assert cli.invoke(["predict", str(run.folder), str(questions), "-o", str(output)]) == 0
    said = capsys.readouterr().err
    assert f"the abstain rule saved with the run applies: abstains below confidence {row['confidence']:g}" in said
    assert f"{output}: {len(kept)} of {len(rows)} answers kept, the others abstain" in said
    assert cli.invoke([*asked, "--abstain-below", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(": 0 of 48 answers kept (0.0 %)")


def test_standard_output_is_json_alone(run, questions, capsys):
    assert cli.invoke(["evaluate", str(run.folder), "--data", str(questions), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"run", "results"}
    assert {
        "task",
        "split",
        "n",
        "accuracy",
        "ece",
        "nll",
        "brier",
        "auroc",
        "confidence",
        "feu",
        "feu_auroc",
        "letter_mass",
    } <= set(printed["results"][0])


def test_the_demo_prints_its_tables_and_writes_its_report_and_continues(tmp_path, monkeypatch, capsys):
    from uq4ct import demo

    monkeypatch.setattr(demo, "METHODS", ("zero_shot", "uq4ct"))
    monkeypatch.setattr(demo, "TASKS", ("tiny-far",))
    monkeypatch.setattr(demo, "TRAIN", {"max_steps": 1})
    demo.run(tmp_path / "demo", say=lambda line: None)
    first = capsys.readouterr().out
    assert "trainable parameters" in first
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000
    before = (tmp_path / "demo" / "uq4ct" / "adapter_model.safetensors").stat().st_mtime_ns
    demo.run(tmp_path / "demo", say=lambda line: None)
    assert capsys.readouterr().out == first
    assert (tmp_path / "demo" / "uq4ct" / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_the_digest_of_the_code_covers_a_methods_own_files_and_not_those_of_others():
    from uq4ct import runs

    digests = [runs.code_digest(label) for label in ("lora", "mixlora", "lora+temperature", None)]
    assert len(set(digests)) == 4
    own = {file.name for file in runs._imported(runs.Path(runs.__file__).parent / "methods" / "lora.py")}
    assert own == {"base.py", "__init__.py"}


def test_predictions_that_two_processes_want_at_once_are_made_once(tmp_path):
    made: list[int] = []

    def predict() -> Prediction:
        made.append(1)
        time.sleep(0.3)
        return Prediction(("a",), np.log([[[0.75, 0.25]]]), np.array([[True, True]]))

    def want(_: int) -> Prediction:
        return evaluating.shelved(tmp_path / "store" / "x.npz", ["a"], predict)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(want, range(4)))
    assert len(made) == 1
    assert all(np.array_equal(each.logits, found[0].logits) for each in found)
