"""The command line: what it lists, what it refuses, and that it answers at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from uq4ct import cli


def outcome(arguments, capsys):
    code = cli.invoke(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_needs_no_model_library():
    code = "import sys; from uq4ct import cli; cli.invoke(['--help']); cli.invoke(['ls', 'methods']); cli.invoke(['ls', 'tasks']); print(sorted({'torch', 'transformers', 'peft', 'datasets', 'matplotlib', 'pandas'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_help_answers_within_half_a_second():
    subprocess.run([sys.executable, "-m", "uq4ct", "--help"], capture_output=True, check=True)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "uq4ct", "--help"], capture_output=True, check=True)
    assert time.perf_counter() - began < 0.5


def test_methods_are_listed_as_json(capsys):
    code, out, _ = outcome(["ls", "methods", "--json"], capsys)
    assert code == 0
    assert {"lora", "mixlora", "uq4ct", "zero_shot"} <= {row["name"] for row in json.loads(out)}
    assert all({"name", "passes", "summary"} <= set(row) for row in json.loads(out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--method", "uq4tc", "--output", "x"],
            "error: --method: method 'uq4tc' is not known. Did you mean 'uq4ct'?",
        ),
        (["train", "--data", "tiny"], "error: output.folder: name the folder of the run with --output DIR"),
        (
            ["train", "--data", "openbokqa", "--output", "x"],
            "error: 'openbokqa' is not a task, a file or a hub id (owner/name). Did you mean 'openbookqa'?",
        ),
        (["train", "--data", "none.jsonl", "--output", "x"], "error: none.jsonl: no such file"),
        (
            ["compare", "--methods", "lora", "--data", "tiny", "--eval-data", "tiny,tiny-near", "--output", "x"],
            "error: 'tiny,tiny-near' is one name to this option; where it takes several, put spaces between: tiny tiny-near",
        ),
        (["train", "--model", "./nowhere", "--output", "x"], "error: model.name: no such folder: ./nowhere"),
        (
            ["train", "--preset", "papr", "--output", "x"],
            "error: --preset: 'papr' is not one of product, paper, bayesian-lora",
        ),
        (
            ["train", "--set", "rank=3", "--output", "x"],
            "error: --set rank=3: expected section.key=value, for example train.num_train_epochs=3",
        ),
        (
            ["train", "--set", "method.rank=3", "train.learing_rate=1", "--output", "x"],
            "error: --set: train: 'learing_rate' is not a field of transformers.TrainingArguments. Did you mean 'learning_rate'?",
        ),
        (
            ["train", "--config", "absent.yaml", "--output", "x"],
            "error: absent.yaml: no such configuration file; `uq4ct init -o absent.yaml` writes one",
        ),
        (
            ["train", "--data", "openbookqa", "--data-root", ".", "--output", "x"],
            "error: task 'openbookqa' has no data for split 'train': no file openbookqa/train.jsonl.",
        ),
        (
            ["train", "--set", "method.top_k=9", "--output", "x", "--max-steps", "1"],
            "error: top_k: 9 is larger than the 8 experts to choose from; use 1 to 8",
        ),
        (
            ["evaluate", "absent", "--data", "tiny"],
            "error: absent: no such run folder; `uq4ct train ... --output absent` makes one",
        ),
        (
            ["compare", "-o", "x", "--baseline", "lora", "--json", "--protocol", "sound", "--no-temperature"],
            "without it the tables of x are made anew from its files, and --protocol, --no-temperature would change nothing",
        ),
        (
            ["compare", "-o", "x", "--data-root", "hub", "--engine", "local", "--workers", "2", "--gpus-per-cell", "1"],
            "made anew from its files, and --data-root, --engine, --workers, --gpus-per-cell would change nothing",
        ),
        (["compare", "-o", "x", "--baseline", "lora"], "error: x: holds no comparison with a finished cell"),
        (["evaluate", "."], "Missing option '--data'"),
        (["predict", ".", "in.jsonl", "-o", "out.jsonl"], "error: .: not a run folder, it has no config.yaml"),
        (
            ["ask", ".", "-q", "Which?", "-c", "a", "-c", "a "],
            "error: --choice: expected texts that differ, got ['a', 'a']",
        ),
        (["ask", ".", "-q", "  ", "-c", "a", "-c", ""], "error: question is empty\nerror: choice B is empty"),
        (["ask", ".", "-q", "Which?", "-c", "a"], "error: 1 choice, expected 2 to 26"),
        (["metrics", "absent.jsonl"], "error: absent.jsonl: no such file"),
        (["ls", "task"], "error: ls: 'task' is not one of tasks, methods, metrics, runs. Did you mean 'tasks'?"),
        (["init", "-o", "absent/run.yaml"], "error: absent/run.yaml: the folder absent does not exist"),
        (["init", "-o", "/dev/null/run.yaml"], "error: /dev/null/run.yaml: the folder /dev/null does not exist"),
        (
            ["train", "--method", "zero_shot", "--output", "/dev/null/run"],
            "error: /dev/null/run: Not a directory; nothing can be written or read there",
        ),
        (["trian"], "No such command 'trian'"),
    ],
)
def test_a_mistake_gets_one_sentence_and_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = outcome(arguments, capsys)
    assert code == 2
    assert message in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--data", "climaqa"],
        ["--set", "data.source=climaqa"],
        ["--config", "climate.yaml"],
        ["--config", "other.yaml", "--data", "climaqa"],
        ["--data", "openbookqa", "--set", "data.source=climaqa"],
    ],
)
def test_the_options_of_a_task_are_taken_however_the_task_is_named(flags, tmp_path, monkeypatch):
    from uq4ct import preflight

    monkeypatch.chdir(tmp_path)
    for name, task in {"climate": "climaqa", "other": "openbookqa"}.items():
        (tmp_path / f"{name}.yaml").write_text(f"data: {{source: {task}}}\n")
    resolved = []
    monkeypatch.setattr(preflight, "run", lambda config, say: resolved.append(config()))
    assert cli.invoke(["validate", "--preset", "paper", *flags]) == 0
    (config,) = resolved
    assert (config.data.source, config.train.learning_rate, config.method.dropout) == ("climaqa", 5e-4, 0.1)


def test_runs_are_listed_whatever_their_state(capsys, tmp_path):
    states = {"damaged": ("config.yaml", "manifest.json", "uq4ct.json"), "unfinished": ("config.yaml",)}
    for name, files in states.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("{")
    code, out, _ = outcome(["ls", "runs", str(tmp_path), "--json"], capsys)
    assert code == 0
    assert [row["summary"].split()[0] for row in json.loads(out)] == ["damaged:", "unfinished;"]


def test_init_writes_a_configuration_that_is_never_overwritten(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert outcome(["init", "--task", "openbookqa"], capsys)[0] == 0
    code, _, err = outcome(["init"], capsys)
    assert (code, "exists already" in err) == (2, True)
    assert json.loads(outcome(["init", "--schema"], capsys)[1])["title"] == "uq4ct run"


def test_a_fault_of_ours_is_code_1_with_a_traceback(capsys, monkeypatch):
    from uq4ct import catalogue

    monkeypatch.setitem(catalogue.KINDS, "tasks", lambda folder: 1 / 0)
    code, _, err = outcome(["ls", "tasks"], capsys)
    assert (code, "ZeroDivisionError" in err, "please report it" in err) == (1, True, True)


def test_flags_take_several_values():
    assert cli._spread(["evaluate", "r", "--data", "a", "b", "--json"]) == [
        "evaluate",
        "r",
        "--data",
        "a",
        "--data",
        "b",
        "--json",
    ]
    assert cli._spread(["train", "--set", "a.b=1", "c.d=-2"]) == ["train", "--set", "a.b=1", "--set", "c.d=-2"]
    assert cli._spread(["predict", "r", "-o", "x"]) == ["predict", "r", "-o", "x"]


def test_a_note_is_shown_as_a_line_and_other_warnings_as_ever():
    code = (
        "import warnings; from uq4ct import cli, errors; cli.invoke(['--help']); "
        "warnings.warn('read on another device', errors.Note); warnings.warn('odd', UserWarning)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, *_ = printed.stderr.splitlines()
    assert first == "note: read on another device"
    assert second.endswith("UserWarning: odd")
