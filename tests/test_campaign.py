"""A campaign: what is planned, what is run, and what is kept."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from uq4ct import campaign, cli, comparing, concluding, fitting, protocols
from uq4ct.campaign import cluster, planning
from uq4ct.campaign.cells import Cell, alone, trainings_done
from uq4ct.campaign.estimate import START
from uq4ct.campaign.specs import parse_methods
from uq4ct.config import Layer, preset_layers, resolve
from uq4ct.data import NoData
from uq4ct.errors import UserError
from uq4ct.interruption import StopSignal
from uq4ct.manifest import write_manifest

ESTIMATE = importlib.import_module("uq4ct.campaign.estimate")  # the package's function of that name hides it
QUICK = Layer.of({"train": {"max_steps": 2, "per_device_train_batch_size": 4}, "eval": {"resamples": 100}}, "test")


def write_questions(path: Path, numbers: range) -> None:
    rows = [
        {
            "id": f"q{i}",
            "question": f"What is number {i} called?",
            "choices": ["red", "green", "blue", "grey"][: 3 + i % 2],
            "answer": "ABC"[i % 3],
        }
        for i in numbers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    write_questions(folder / "train.jsonl", range(40))
    write_questions(folder / "test.jsonl", range(40, 60))
    return folder / "train.jsonl"


def plan(questions: Path, output: Path, methods: str = "zero_shot,lora[rank=2]", seeds=(1, 2), **options):
    specs = campaign.parse_methods(methods)
    evaluate = options.pop("evaluate", [(str(questions.with_name("test.jsonl")), None)])
    return campaign.plan(specs, str(questions), seeds, evaluate, output=output, layers=[QUICK], **options)


def command(questions: Path, output: Path, methods: str, seeds: str = "1,2", steps: int = 2) -> list[str]:
    flags = ["--model", "tiny", "--methods", methods, "--data", str(questions), "--seeds", seeds]
    small = ["train.per_device_train_batch_size=4", "eval.resamples=100", "train.save_steps=5"]
    plain = ["--no-temperature", "--output", str(output), "--max-steps", str(steps)]
    return ["compare", *flags, *plain, "--set", *small]


# ---- naming methods


def test_a_method_carries_its_options_and_its_calibration():
    specs = campaign.parse_methods("lora, uq4ct[top_k=3;target_modules=[q_proj,v_proj]],mixlora[rank=2]+temperature")
    assert [spec.label for spec in specs] == [
        "lora",
        "uq4ct[top_k=3;target_modules=[q_proj,v_proj]]",
        "mixlora[rank=2]+temperature",
    ]
    assert specs[1].layer.values["method"] == {"top_k": 3, "target_modules": ["q_proj", "v_proj"], "name": "uq4ct"}
    assert specs[2].layer.values["method"] == {"rank": 2, "name": "mixlora", "posthoc": "temperature"}
    other = campaign.parse_methods("lora[train.learning_rate=1e-4]")[0].layer.values
    assert other == {"train": {"learning_rate": 1e-4}, "method": {"name": "lora"}}


def test_all_means_every_method():
    from uq4ct import methods

    assert [spec.label for spec in campaign.parse_methods("all")] == methods.names()
    without = [spec.label for spec in campaign.parse_methods("all", calibration=False)]
    assert without == [name for name in methods.names() if name != "early_stopping"]


def test_every_mistake_in_the_methods_comes_at_once():
    with pytest.raises(UserError) as caught:
        campaign.parse_methods("loar,uq4ct[topk=3],lora+temprature,mixlora[rank],mixlora,mixlora,,lora]")
    text = str(caught.value)
    for expected in (
        "'loar': no method is called 'loar'. Did you mean 'lora'?",
        "'topk' is not an option of method uq4ct. Did you mean 'top_k'?",
        "Did you mean 'temperature'?",
        "'mixlora[rank]': expected option=value, got 'rank'",
        "'mixlora' is named 2 times",
        "a name is missing between two commas",
        "'lora]': expected name[option=value;option=value]+suffix",
    ):
        assert expected in text
    assert len(caught.value.problems) == 7


def test_an_option_that_all_methods_have_in_common_is_refused_for_one_and_its_flag_named():
    options = "eval.bins=5;data.source=tiny;data.root=x;output.seed=5;output.folder=x;data.choices=[a,b];name=mixlora"
    with pytest.raises(UserError) as caught:
        campaign.parse_methods(f"lora[{options};posthoc=vector]")
    same = "is the same for all methods of a comparison; use"
    assert [problem.partition("vector]': ")[2] for problem in caught.value.problems] == [
        f"'eval.bins' {same} --set eval.bins=5",
        f"'data.source' {same} --data",
        f"'data.root' {same} --data-root",
        f"'output.seed' {same} --seeds",
        f"'output.folder' {same} --output",
        f"'data.choices' {same} --set data.choices=[a,b]",
        "a method has one name, 'lora'; name the other one by itself",
        "a post-hoc calibration is written behind the method: lora+vector",
    ]
    campaign.parse_methods("lora[model.dtype=float32;prompt.pack=moe_peft;data.calibration_fraction=0.2]")


# ---- planning


def test_a_cell_is_known_by_everything_that_its_numbers_depend_on_and_by_nothing_else(questions, tmp_path):
    def digests(**options) -> set[str]:
        return {cell.digest for cell in plan(questions, tmp_path, **{"methods": "lora", "seeds": [1], **options}).cells}

    first = digests()
    assert first == {cell.digest for cell in plan(questions, tmp_path / "elsewhere", "lora", [1]).cells}
    others = [digests(seeds=[2]), digests(methods="lora[rank=3]"), digests(methods="lora[train.learning_rate=1e-3]")]
    others.append(digests(evaluate=[("tiny-far", None)]))
    renamed = Path(shutil.copy(questions.with_name("test.jsonl"), tmp_path / "exam.jsonl"))
    others.append(digests(evaluate=[(str(renamed), None)]))
    test = questions.with_name("test.jsonl")
    before = test.read_text()
    test.write_text(before.replace("number 41", "number forty-one"))
    others.append(digests())
    test.write_text(before)
    assert len(set.union(first, *others)) == 7


def test_options_that_no_number_depends_on_leave_a_finished_cell_finished(questions, tmp_path):
    def only(methods: str) -> Cell:
        return plan(questions, tmp_path, methods, [1]).cells[0]

    kept = only("lora[train.save_steps=6;train.logging_steps=1;train.save_total_limit=3]")
    assert kept.digest == only("lora").digest
    assert kept.training == only("lora").training
    assert only("lora[train.warmup_steps=3]").digest != kept.digest


def test_a_run_too_short_for_the_members_of_a_checkpoint_ensemble_is_remarked(questions, tmp_path):
    (note,) = plan(questions, tmp_path, "lora,checkpoint_ensemble", [1, 2]).notes  # two steps
    assert note.startswith("checkpoint_ensemble: only 1 of the 3 members differ: a training of 2 steps has no more")
    assert plan(questions, tmp_path, "checkpoint_ensemble[spacing=0.3;train.max_steps=10]", [1]).notes == ()
    (note,) = plan(questions, tmp_path, "checkpoint_ensemble[train.max_steps=5]", [1]).notes
    assert "only 2 of the 3 members differ" in note


def test_a_calibration_split_of_few_rows_for_want_of_different_questions_is_remarked(tmp_path):
    path = tmp_path / "train.jsonl"
    write_questions(path, range(5))
    same = {"question": "Which is the same?", "choices": ["red", "green"]}
    rows = [{**same, "answer": "AB"[n % 2], "id": f"same-{n}"} for n in range(95)]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    specs, asked = campaign.parse_methods("zero_shot"), [("tiny-far", None)]
    layers = [QUICK, Layer.of({"data": {"calibration_fraction": 0.3}}, "test")]
    made = campaign.plan(specs, str(path), [1, 2], asked, output=tmp_path / "out", layers=layers)
    (note,) = [note for note in made.notes if note.startswith("data.calibration_fraction")]
    assert "5 of 100 rows are kept for calibration, where 30 were asked for" in note
    assert note in fitting.prepare(made.cells[0].config).notes


def test_a_cell_survives_the_way_to_another_process(questions, tmp_path):
    for cell in plan(questions, tmp_path, "uq4ct[rank=2],lora").cells:
        assert Cell.from_json(cell.to_json()) == cell


def test_a_task_without_data_is_absent_but_nothing_can_be_trained_on_it(questions, tmp_path):
    root = Layer.of({"data": {"root": str(tmp_path)}}, "--data-root")
    specs = campaign.parse_methods("zero_shot")
    here = str(questions.with_name("test.jsonl"))
    made = campaign.plan(
        specs, str(questions), [1], [(here, None), ("climaqa", None)], output=tmp_path / "out", layers=[root]
    )
    assert list(made.absent) == ["climaqa"]
    assert "UCSD-GENIE/ClimaQA" in made.absent["climaqa"]
    assert [source for source, _ in made.cells[0].evaluate] == [here]
    with pytest.raises(NoData, match="task 'climaqa' has no data for split 'train'"):
        campaign.plan(specs, "climaqa", [1], [(here, None)], output=tmp_path / "out", layers=[root])


def test_two_names_of_one_method_are_refused(questions, tmp_path):
    with pytest.raises(UserError, match=r"'lora' and 'lora\[dropout=0.05\]' are the same method"):
        plan(questions, tmp_path, "lora,lora[dropout=0.05]")


def test_questions_that_were_trained_on_are_counted(questions, tmp_path):
    made = plan(questions, tmp_path, "zero_shot", [1], evaluate=[(str(questions), None)])
    assert "40 of the 40 questions" in made.notes[0]


def test_cells_that_share_a_training_are_known_by_their_options(questions, tmp_path):
    def keys(methods: str) -> int:
        return len({cell.training for cell in plan(questions, tmp_path, methods, [1]).cells})

    assert keys("lora,lora+temperature,mc_dropout") == 1
    assert keys("lora,lora[rank=3],mixlora,uq4ct,label_smoothing,blob") == 6


def test_a_training_is_kept_at_the_points_that_methods_sharing_it_need(questions, tmp_path):
    from uq4ct.campaign.job import snapshots_of

    cells = plan(questions, tmp_path, "lora,checkpoint_ensemble,mixlora", [1]).cells
    wanted = snapshots_of(cells)
    assert wanted[cells[0].name] == wanted[cells[1].name] == (0.8, 0.9)
    assert wanted[cells[2].name] == ()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "lora,urq"], "no method is called 'urq'"),
        (["--methods", "lora[rank=0]"], "method.rank: expected greater than or equal to 1"),
        (["--seeds", "1,x"], "--seeds: expected whole numbers from 0 with commas between, as in 1,2,3, got 'x'"),
        (["--seeds", "1,1"], "a seed is named twice"),
        (["--eval-data", "openbokqa"], "Did you mean 'openbookqa'?"),
        (["--eval-data", "tiny-far", "tiny-far", "absent.jsonl"], "absent.jsonl: no such file"),
        (["--protocol", "paperr"], "--protocol: 'paperr' is not one of sound, paper. Did you mean 'paper'?"),
        (
            ["--protocol", "paper", "--methods", "lora+temperature"],
            "'lora+temperature': needs a calibration split, but none is kept",
        ),
        (["--baseline", "zero_shoot"], "--baseline: 'zero_shoot' is not one of the methods. Did you mean 'zero_shot'?"),
        (["--engine", "slurm"], "--engine: 'slurm' is not one of local, ray"),
        (["--engine", "slurm", "--dry-run"], "--engine: 'slurm' is not one of local, ray"),
        (["--data", ""], "data: expected a task, a file or a hub id, got ''"),
        (["--eval-data", ""], "data: expected a task, a file or a hub id, got ''"),
        (["--output", "/proc/uq4ct", "--dry-run"], "--output: /proc: no folder can be made there"),
        (["--output", __file__ + "/sub", "--dry-run"], "test_campaign.py is a file, expected a folder"),
        (["--model", "./nowhere"], "model.name: no such folder: ./nowhere"),
        (["--methods", "uq4ct[top_k=9]"], "top_k: 9 is larger than the 8 experts"),
    ],
)
def test_a_mistake_is_found_before_anything_runs(flags, message, questions, tmp_path, capsys):
    output = tmp_path / "out"
    assert cli.invoke([*command(questions, output, "zero_shot", "1"), *flags]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
    assert not output.exists()


def test_a_file_with_options_that_not_every_method_has_is_refused_in_one_sentence(questions, tmp_path, capsys):
    file, output = tmp_path / "run.yaml", tmp_path / "out"
    assert cli.invoke(["init", "-o", str(file)]) == 0
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if text.startswith("  num_experts"))
    capsys.readouterr()
    asked = [*command(questions, output, "lora,mixlora", "1"), "--config", str(file), "--dry-run"]
    assert cli.invoke(asked) == 2
    (problem,) = capsys.readouterr().err.splitlines()
    assert problem.startswith(f"error: {file}:{line}: method: no option of lora, mixlora: num_experts, top_k, ")
    assert problem.endswith("leave `method` out and write a method's own options in brackets, as in uq4ct[top_k=3]")
    assert cli.invoke([*asked, "--methods", "uq4ct"]) == 0


def test_what_no_calibration_split_can_serve_is_found_before_anything_runs_all_at_once(questions, tmp_path):
    methods = "lora+feu,lora[rank=3]+vector,laplace[prior=grid;data.calibration_fraction=0],early_stopping+temperature"
    with pytest.raises(UserError) as caught:
        plan(questions, tmp_path, methods, [1, 2])
    feu, vector, grid = caught.value.problems
    assert feu.startswith("--methods: 'lora+feu': calibration by FEU needs a method with a router")
    assert "'lora[rank=3]+vector': vector scaling needs at least 200 calibration questions" in vector
    assert vector.endswith("got 4; keep more for calibration, or use temperature")
    assert "data.calibration_fraction=0]': needs a calibration split, but none is kept" in grid
    assert len(plan(questions, tmp_path, "uq4ct+feu,laplace[prior=grid],laplace", [1]).cells) == 3


def test_a_foreign_folder_is_never_written_to(questions, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    assert cli.invoke(command(questions, tmp_path, "zero_shot", "1")) == 2
    assert "is not empty and holds no comparison" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_evaluated_on_the_one_beside_it(questions, tmp_path):
    assert comparing.evaluation_of(str(questions)) == str(questions.with_name("test.jsonl"))
    assert comparing.evaluation_of("openbookqa") == "openbookqa"
    assert comparing.evaluation_of("openbookqa:train@abc") == "openbookqa@abc"
    with pytest.raises(UserError, match="name the questions to evaluate on; tiny:test is trained on"):
        comparing.evaluation_of("tiny:test")
    alone = tmp_path / "alone.jsonl"
    write_questions(alone, range(3))
    with pytest.raises(UserError, match="name the questions to evaluate on"):
        comparing.evaluation_of(str(alone))


def test_methods_that_a_preset_trains_otherwise_are_told():
    """Those that the user trains otherwise are named so already."""

    def notes(text: str) -> list[str]:
        specs = parse_methods(text)
        fixed = [*preset_layers("encoder"), Layer.of({"data": {"source": "tiny"}}, "--data")]
        configs = {spec.label: resolve([*fixed, spec.layer]) for spec in specs}
        return list(planning._trained_differently(specs, configs))

    assert notes("lora,lora+temperature,uq4ct,mixlora[top_k=3],uq4ct[train.learning_rate=5]") == [
        "train.learning_rate is not the same for all methods: 0.0003 for lora; 0.001 for uq4ct, mixlora"
    ]
    (note,) = notes("lora,uq4ct[train.num_train_epochs=4]")
    assert note.endswith("0.0003 for lora; 0.001 for uq4ct")
    assert not notes("lora,lora[train.learning_rate=5]")
    assert not notes("mixlora,uq4ct")


def test_the_papers_protocol_reads_validation_where_the_paper_does():
    held = protocols.protocol("paper")
    assert [protocols.split_of(name, held) for name in ("openbookqa", "mmlu-law", "tiny", "x.jsonl")] == [
        "validation",
        "test",
        "test",
        None,
    ]
    assert protocols.split_of("openbookqa", protocols.protocol("sound")) is None


def test_bad_rows_of_a_test_file_are_never_set_aside(questions, tmp_path):
    training, test = tmp_path / "train.jsonl", tmp_path / "bad.jsonl"
    for file in (training, test):
        file.write_text(questions.read_text(encoding="utf-8") + "{broken\n", encoding="utf-8")
    layers = [QUICK, Layer.of({"data": {"skip_bad_rows": True}}, "--set")]

    def planned_on(source: Path) -> campaign.Plan:
        specs = campaign.parse_methods("zero_shot")
        return campaign.plan(specs, str(training), [1], [(str(source), None)], output=tmp_path / "out", layers=layers)

    assert "1 row of 41 bad and set aside" in " ".join(planned_on(questions.with_name("test.jsonl")).notes)
    with pytest.raises(UserError, match=r"bad\.jsonl:41: "):
        planned_on(test)


def test_a_plan_reads_a_test_file_as_its_cells_will(tmp_path):
    asked = [{"question": f"{n}?", "choices": list("wxyz"), "answer": n % 4 + 1} for n in range(8)]
    training, test, desk = tmp_path / "train.jsonl", tmp_path / "test.jsonl", planning.Desk()
    training.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    test.write_text("".join(json.dumps(row | {"answer": 1}) + "\n" for row in asked[:2]), encoding="utf-8")
    plan(training, tmp_path / "out", "zero_shot", [1], evaluate=[(str(test), None)], desk=desk)
    (read,) = (found for key, found in desk._questions.items() if key[0] == str(test))
    assert (read.counted, [question.gold for question in read.questions]) == ("position", ["A", "A"])


def test_a_dry_run_prints_the_cells_and_writes_nothing(questions, tmp_path, capsys):
    output = tmp_path / "out"
    asked = [*command(questions, output, "zero_shot,lora[rank=2]"), "--dry-run"]
    assert cli.invoke([*asked, "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [(cell["method"], cell["seed"], cell["status"], cell["passes"]) for cell in cells] == [
        ("zero_shot", 1, "planned", 1),
        ("lora[rank=2]", 1, "planned", 1),
        ("zero_shot", 2, "planned", 1),
        ("lora[rank=2]", 2, "planned", 1),
    ]
    assert all(cell["seconds"] > 0 for cell in cells)
    assert cli.invoke(asked) == 0
    assert "4 of 4 cells to run" in capsys.readouterr().out
    assert not output.exists()


def test_the_results_state_the_preset_and_the_calibration_share_that_were_used(questions, tmp_path):
    held = protocols.protocol("paper")
    made = plan(questions, tmp_path, "zero_shot,lora[data.calibration_fraction=0.25]", [1])
    outcomes = [campaign.state(cell) for cell in made.cells]
    found = concluding.write_results(made, outcomes, held, tmp_path, preset="bayesian-lora")
    kept = "10 % or 25 % of train kept for calibration, by method"
    assert found["protocol"]["preset"] == "bayesian-lora"
    assert f"Protocol paper: validation where the paper evaluates on it, {kept}, preset bayesian-lora. That" in found["notes"][0]
    found = concluding.write_results(made, outcomes, held, tmp_path, preset="paper")
    assert found["protocol"]["preset"] == "paper"


def planned(questions: Path, output: Path, flags: list[str], capsys) -> list[dict]:
    """Return the cells that a comparison of this command would have."""
    small = ["train.per_device_train_batch_size=4", "eval.resamples=100"]
    asked = ["compare", "--model", "tiny", "--data", str(questions), "--output", str(output), "--max-steps", "2"]
    assert cli.invoke([*asked, *flags, "--set", *small, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["cells"]


def test_under_sound_every_method_gets_a_temperature_and_five_seeds(questions, tmp_path, capsys):
    flags = ["--methods", "lora[rank=2],uq4ct+feu,mixlora,mixlora+temperature"]
    cells = planned(questions, tmp_path / "out", flags, capsys)
    assert list(dict.fromkeys(cell["method"] for cell in cells)) == [
        "lora[rank=2]",
        "lora[rank=2]+temperature",
        "uq4ct+feu",
        "mixlora",
        "mixlora+temperature",
    ]
    assert sorted({cell["seed"] for cell in cells}) == [1, 2, 3, 4, 5]
    cells = planned(questions, tmp_path / "out", ["--methods", "zero_shot", "--no-temperature"], capsys)
    assert [cell["method"] for cell in cells] == ["zero_shot"] * 5


def test_without_a_calibration_split_nothing_is_scaled(questions, tmp_path, capsys):
    cells = planned(questions, tmp_path / "out", ["--methods", "zero_shot", "--protocol", "paper"], capsys)
    assert [(cell["method"], cell["seed"]) for cell in cells] == [("zero_shot", 1), ("zero_shot", 2), ("zero_shot", 3)]
    flags = ["--methods", "lora[rank=2;data.calibration_fraction=0],zero_shot", "--seeds", "1"]
    cells = planned(questions, tmp_path / "out", flags, capsys)
    assert [cell["method"] for cell in cells] == [
        "lora[rank=2;data.calibration_fraction=0]",
        "zero_shot",
        "zero_shot+temperature",
    ]


def test_a_scaled_row_is_estimated_to_cost_no_second_training_and_no_second_answers(questions, tmp_path, monkeypatch):
    monkeypatch.setattr(ESTIMATE, "flops_per_second", lambda hidden: 1e9)
    made = plan(questions, tmp_path, "mc_dropout[samples=50],mc_dropout[samples=50]+temperature", [1])
    raw, scaled = campaign.estimate(made, [campaign.state(cell) for cell in made.cells]).values()
    size = next(iter(made.sizes.values()))
    assert 0 < size.calibration < size.answers
    assert scaled.seconds - START < (raw.seconds - START) / 2


def test_a_training_that_another_plan_has_made_is_not_estimated_again(questions, tmp_path, monkeypatch):
    """With one more test set every cell is another one, but what it trains is in the store; not so with other code."""
    monkeypatch.setattr(ESTIMATE, "flops_per_second", lambda hidden: 1e9)
    test, long = str(questions.with_name("test.jsonl")), "[train.max_steps=200]"

    def planned(methods: str, *further: str) -> tuple[Cell, float, float]:
        """Return the first cell, and the seconds and bytes of all."""
        methods = ",".join(name + long for name in methods.split(","))
        made = plan(questions, tmp_path, methods, [1], evaluate=[(source, None) for source in (test, *further)])
        found = campaign.estimate(made, [campaign.state(cell) for cell in made.cells])
        return made.cells[0], sum(one.seconds for one in found.values()), ESTIMATE.disk_bytes(made, made.cells)

    cell, alone, space = planned("lora")
    training = alone - planned("zero_shot")[1]
    assert planned("lora,mc_dropout")[2] < 1.1 * space  # one adapter
    _, three, _ = planned("deep_ensemble")
    both = planned("lora,deep_ensemble")[1]
    assert both - alone > 1.8 * training  # two more trainings: the first member is the LoRA
    anew = planned("lora", str(questions))
    assert anew[0].folder != cell.folder
    stopped = planned("lora,early_stopping", str(questions))

    cell.folder.mkdir(parents=True)
    receipt = {"digest": "another", "training": cell.training, "trainings": 1}
    (cell.folder / "cell.json").write_text(json.dumps(receipt))
    found = planned("lora", str(questions))
    assert anew[1] - found[1] > 0.8 * training
    assert found[2] < anew[2] / 2
    assert planned("deep_ensemble", str(questions))[1] > three - 1.2 * training  # but for the first member
    assert planned("lora,early_stopping", str(questions))[1:] == stopped[1:]  # its states on the way are gone
    monkeypatch.setattr("uq4ct.campaign.cells.code_digest", lambda label=None: f"other code of {label}")
    assert planned("lora", str(questions))[1:] == anew[1:]


def test_what_a_method_computes_besides_passes_is_in_its_estimate(questions, tmp_path, monkeypatch):
    monkeypatch.setattr(ESTIMATE, "flops_per_second", lambda hidden: 1e9)
    made = plan(questions, tmp_path, "lora,laplace[curvature_questions=10],early_stopping", [1])
    lora, laplace, early = (found.seconds for found in campaign.estimate(made, [campaign.state(c) for c in made.cells]).values())
    size = next(iter(made.sizes.values()))
    assert (size.questions, size.calibration, size.answers, size.choices) == (36, 4, 24, pytest.approx(3.5, abs=0.1))
    token = 2 * (size.parameters + size.trainable) / 1e9
    answers = size.answer_tokens * token + 0.001 * 24
    question = size.question_tokens * token + 0.001
    backward = 1 + 2 * size.choices
    assert laplace == pytest.approx(3 + backward * (answers + 10 * question), abs=0.06)  # the training is lora's
    assert early == pytest.approx(3 + answers + 10 * 4 * question, abs=0.06)
    assert lora > 3 + answers


def test_members_of_an_ensemble_share_no_seed_with_any_other_run():
    from uq4ct.methods.deep_ensemble import member_seed

    members = [member_seed(seed, number) for seed in range(1, 51) for number in range(10)]
    assert len(set(members)) == len(members)
    assert [member_seed(seed, 0) for seed in range(1, 51)] == list(range(1, 51))


# ---- running

DIVERGES = "lora[rank=2;train.learning_rate=1e30;train.max_grad_norm=0]"


@pytest.fixture(scope="module")
def compared(questions, tmp_path_factory):
    """A comparison of which one method diverges: its folder, the command, and what it printed."""
    output = tmp_path_factory.mktemp("compared") / "out"
    asked = [*command(questions, output, f"zero_shot,lora[rank=2],{DIVERGES}", steps=3), "--json"]
    done = subprocess.run([sys.executable, "-m", "uq4ct", *asked], capture_output=True, text=True, check=False)
    return output, asked, done


def test_a_diverged_cell_is_reported_never_averaged_in_and_stops_nothing(compared):
    output, _, done = compared
    assert done.returncode == 1, done.stderr
    printed = json.loads(done.stdout)
    told = {"cells", "results", "baseline", "differences", "verdicts", "shift_detection", "feu_usefulness"}
    assert set(printed) == told
    statuses = [(cell["method"], cell["status"]) for cell in printed["cells"]]
    assert statuses == [("zero_shot", "complete"), ("lora[rank=2]", "complete"), (DIVERGES, "diverged")] * 2
    assert [(row["method"], row["seeds"], row["n"]) for row in printed["results"]] == [
        ("zero_shot", [1, 2], 20),
        ("lora[rank=2]", [1, 2], 20),
    ]
    assert f"error: {DIVERGES} on" in done.stderr
    (failed, _) = sorted(output.glob("cells/*/failed.json"))
    assert "Lower the learning rate" in json.loads(failed.read_text())["message"]


def test_a_cell_is_an_ordinary_run(compared):
    from uq4ct.runs import Run

    output, _, done = compared
    for cell in json.loads(done.stdout)["cells"]:
        if cell["status"] == "complete":
            run = Run.open(cell["folder"])
            assert (run.folder.parent, run.facts["seed"]) == (output / "cells", cell["seed"])


def test_a_finished_comparison_is_printed_again_and_nothing_else_is_done(compared):
    output, asked, done = compared
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    again = subprocess.run([sys.executable, "-m", "uq4ct", *asked], capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (1, done.stdout)
    assert "started" not in again.stderr
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before


def test_the_tables_tell_the_protocol_and_every_number(compared):
    output, _, done = compared
    results = json.loads(done.stdout)["results"]
    found = json.loads((output / "results.json").read_text())
    assert found["results"] == results
    assert (found["protocol"]["name"], len(found["code_sha256"])) == ("sound", 64)
    assert "Protocol sound: the labelled test split" in (output / "table.md").read_text()
    lines = (output / "table.csv").read_text().splitlines()
    assert f"{results[1]['nll']}" in next(line for line in lines if line.split(",")[2:4] == ["lora[rank=2]", "nll"])
    assert r"\begin{tabular}" in (output / "table.tex").read_text()
    assert found["baseline"] == "zero_shot"
    assert {(row["method"], row["baseline"]) for row in found["differences"]} == {("lora[rank=2]", "zero_shot")}
    assert len((output / "differences.csv").read_text().splitlines()) == 1 + len(found["differences"])
    assert "2 paired seeds, where protocol sound asks for 5 or more" in (output / "table.md").read_text()
    assert [row["passes"] for row in found["costs"]] == [1, 1]


def test_the_tables_of_a_folder_are_made_anew_from_its_files_alone(compared, tmp_path, capsys):
    output, _, done = compared
    copy = tmp_path / "moved"
    shutil.copytree(output, copy, ignore=shutil.ignore_patterns("store"))
    results = json.loads(done.stdout)["results"]
    assert cli.invoke(["compare", "--output", str(copy), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["results"], again["baseline"]) == (results, "zero_shot")
    assert {Path(cell["folder"]).parents[1] for cell in again["cells"]} == {copy}
    assert cli.invoke(["compare", "--output", str(copy), "--baseline", "lora[rank=2]", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {(row["method"], row["baseline"]) for row in again["differences"]} == {("zero_shot", "lora[rank=2]")}
    (copy / "results.json").unlink()
    assert cli.invoke(["compare", "--output", str(copy), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert sorted(row["method"] for row in again["results"]) == sorted(row["method"] for row in results)
    changed = next(copy.glob("cells/lora*/evaluations/*/predictions.jsonl"))
    changed.write_text(changed.read_text().replace("0.", "0.0", 1))
    assert cli.invoke(["compare", "--output", str(copy)]) == 2
    assert "predictions.jsonl" in capsys.readouterr().err
    assert cli.invoke(["compare", "--output", str(tmp_path / "empty")]) == 2
    assert "holds no comparison with a finished cell" in capsys.readouterr().err
    assert cli.invoke(["compare", "--output", str(copy), "--data", "tiny", "--dry-run"]) == 2
    assert "and --data, --dry-run would change nothing" in capsys.readouterr().err


def test_a_comparison_without_a_finished_cell_never_takes_those_of_another(tmp_path, capsys):
    (tmp_path / "cells" / "zero_shot-1").mkdir(parents=True)
    receipt = {"method": "zero_shot", "task": "colours", "seed": 1, "evaluations": []}
    (tmp_path / "cells" / "zero_shot-1" / "cell.json").write_text(json.dumps(receipt))
    cells = [{"method": "lora", "seed": seed, "status": "diverged", "folder": f"cells/lora-{seed}"} for seed in (1, 2)]
    (tmp_path / "results.json").write_text(json.dumps({"cells": cells}))
    assert cli.invoke(["compare", "--output", str(tmp_path)]) == 2
    error = f"error: {tmp_path}: no cell of its last comparison is finished (lora diverged); compare other --methods"
    assert capsys.readouterr().err.strip() == error


def test_a_cell_that_another_comparison_works_on_is_waited_for(questions, tmp_path):
    (cell,) = plan(questions, tmp_path, "zero_shot", [1]).cells
    said: list[str] = []
    holding, release = threading.Event(), threading.Event()

    def other() -> None:
        with alone(cell) as mine:
            assert mine
            holding.set()
            release.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    holding.wait()

    def say(line: str) -> None:
        said.append(line)
        if "another process works on it" in line:
            release.set()

    (outcome,) = campaign.run_cells([cell], tmp_path, say=say)
    thread.join()
    assert release.is_set()
    assert outcome.status == "complete"
    assert trainings_done(cell.folder.parent) == {cell.training: 0}  # zero_shot trains nothing
    assert trainings_done(cell.folder.parent, [cell.name]) == {}
    assert sum("started" in line for line in said) == 1


def test_results_stand_under_the_present_names_of_swapped_files_and_are_neither_trained_nor_answered_again(questions, tmp_path):
    easy, hard = tmp_path / "d" / "easy.jsonl", tmp_path / "d" / "hard.jsonl"
    easy.parent.mkdir()
    write_questions(easy, range(40, 52))
    write_questions(hard, range(60, 68))

    def run(*files: Path) -> tuple[dict[str, int], dict, dict]:
        evaluate = [(str(file), None) for file in files]
        (outcome,) = campaign.run_cells(plan(questions, tmp_path, "lora[rank=2]", [1], evaluate=evaluate).cells, tmp_path)
        receipt = json.loads((outcome.cell.folder / "cell.json").read_text())
        kept = {path: path.stat().st_mtime_ns for kind in ("npz", "safetensors") for path in tmp_path.glob(f"store/**/*.{kind}")}
        return {result["task"]: result["n"] for result in outcome.results}, receipt, kept

    before, _, kept = run(hard, easy)
    assert before == {"d-hard": 8, "d-easy": 12}
    for path, name in ((easy, "x"), (hard, "easy.jsonl"), (easy.with_name("x"), "hard.jsonl")):
        path.rename(path.with_name(name))
    after, receipt, still = run(easy, hard)  # the same questions in the same order
    assert after == {"d-easy": 8, "d-hard": 12}
    assert still == kept
    assert len(kept) >= 3  # an adapter, and the answers on two files
    assert receipt["evaluation_seconds"] is None  # no time is told for answers that were found


def test_a_finished_cell_is_whole_only_with_every_byte_but_the_weights_which_are_known_by_size(questions, tmp_path):
    (cell,) = plan(questions, tmp_path, "zero_shot", [1]).cells
    cell.folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (cell.folder / name).write_text("abc")
    write_manifest(cell.folder, ["adapter_config.json", "adapter_model.safetensors"])
    (cell.folder / "cell.json").write_text(json.dumps({"digest": cell.digest, "seconds": 1.0, "evaluations": []}))
    assert campaign.state(cell).status == "complete"
    (cell.folder / "adapter_model.safetensors").write_text("abd")
    assert campaign.state(cell).status == "complete"
    (cell.folder / "adapter_config.json").write_text("abd")
    assert campaign.state(cell).status != "complete"


@pytest.mark.slow
def test_a_method_added_to_a_finished_comparison_leaves_the_finished_runs_whole(questions, tmp_path, monkeypatch):
    from uq4ct.runs import Run

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for number, methods in enumerate(["lora", "lora,checkpoint_ensemble[spacing=0.4]", "lora,early_stopping"]):
        monkeypatch.setenv("PYTHONHASHSEED", str(number))  # sets have another order in another process
        made = plan(questions, tmp_path, methods, [1])
        outcomes = campaign.run_cells(made.cells, tmp_path)
        assert [outcome.status for outcome in outcomes] == ["complete"] * len(made.cells)
    for folder in tmp_path.glob("cells/*/"):
        Run.open(folder)


# ---- what goes wrong


@pytest.mark.parametrize(("devices", "gpus", "tasks"), [(4, 0.5, 8), (1, 0.25, 4), (4, 2.0, 4), (4, 1.0, 4)])
def test_cells_of_less_than_a_gpu_are_as_many_ray_tasks_as_share_one(devices, gpus, tasks, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    job = SimpleNamespace(workers=None)
    assert cluster._cpus(job, gpus) == tasks
    assert cluster._cpus(SimpleNamespace(workers=3), gpus) == 3
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster._cpus(job, gpus) is None


def test_ray_is_an_extra_that_is_named_where_it_is_missing(questions, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    made = plan(questions, tmp_path / "out", "zero_shot", [1])
    with pytest.raises(UserError, match=r"Ray is not installed; pip install 'ray>=2.54'"):
        campaign.run_cells(made.cells, tmp_path / "out", engine="ray")
    assert not (tmp_path / "out").exists()


def test_a_signal_promises_no_checkpoint_where_no_update_has_begun(capfd):
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
    assert "stopping: an update that has begun is finished and saved first" in capfd.readouterr().err


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "uq4ct", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def workers_of(process: subprocess.Popen) -> list[int]:
    """Return the worker processes of a comparison."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            words = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == process.pid and b"uq4ct.campaign.worker" in words:
            found.append(int(stat.parent.name))
    return found


def wait_for(condition, seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def adapters(output: Path) -> dict[str, bytes]:
    """Return every finished adapter of a comparison, by the name of its cell."""
    return {path.parent.name: path.read_bytes() for path in output.glob("cells/*/adapter_model.safetensors")}


METHODS, STEPS = "lora[rank=2],mixlora[rank=2]", 60


@pytest.fixture(scope="module")
def undisturbed(questions, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    process = start(command(questions, output, METHODS, steps=STEPS))
    out, err = process.communicate()
    assert process.returncode == 0, err
    return output, out


@pytest.mark.slow
def test_a_killed_worker_costs_only_its_cell_which_goes_on(questions, tmp_path, undisturbed):
    output = tmp_path / "out"
    process = start(command(questions, output, METHODS, steps=STEPS))
    wait_for(lambda: list(output.glob("store/*/checkpoint-1*/manifest.json")))
    (worker,) = workers_of(process)
    os.kill(worker, signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "its process ended by signal 9 (SIGKILL)" in err
    assert "continuing after step" in "".join(path.read_text() for path in output.glob("logs/*.log"))
    assert adapters(output) == adapters(undisturbed[0])


@pytest.mark.slow
def test_a_worker_that_is_always_killed_fails_its_cell_alone(questions, tmp_path):
    output = tmp_path / "out"
    process = start([*command(questions, output, f"zero_shot,{METHODS}", "1", steps=100_000), "--workers", "1"])
    wait_for(lambda: list(output.glob("cells/zero_shot-*/cell.json")))
    for _ in range(6):  # three times each for the two methods that never end
        wait_for(lambda: workers_of(process))
        (worker,) = workers_of(process)
        time.sleep(1.0)
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda gone=worker: gone not in workers_of(process))
    _, err = process.communicate()
    assert process.returncode == 1
    assert err.count("3 times") == 4  # said when it happens, and at the end
    found = json.loads((output / "results.json").read_text())
    assert [(cell["method"], cell["status"]) for cell in found["cells"]] == [
        ("zero_shot", "complete"),
        *((method, "failed") for method in METHODS.split(",")),
    ]
    assert [row["method"] for row in found["results"]] == ["zero_shot"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_and_the_same_command_continues(number, code, questions, tmp_path, undisturbed):
    output = tmp_path / "out"
    asked = command(questions, output, METHODS, steps=STEPS)
    process = start(asked)
    wait_for(lambda: list(output.glob("store/*/checkpoint-1*/manifest.json")))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "interrupted; the same command continues" in err
    assert not (output / "results.json").exists()
    again = start(asked)
    _, err = again.communicate()
    assert again.returncode == 0, err
    assert "continuing after step" in "".join(path.read_text() for path in output.glob("logs/*.log"))
    assert adapters(output) == adapters(undisturbed[0])


@pytest.mark.slow
def test_a_comparison_killed_at_any_moment_ends_with_the_same_table(questions, tmp_path, undisturbed):
    output = tmp_path / "out"
    asked = command(questions, output, METHODS, steps=STEPS)
    for seconds in np.random.default_rng(5).uniform(5, 20, size=5):
        process = start(asked)
        time.sleep(seconds)
        process.kill()
        process.communicate()
    done = start(asked)
    _, err = done.communicate()
    assert done.returncode == 0, err
    assert adapters(output) == adapters(undisturbed[0])
    for name in ("table.csv", "table.md", "table.tex"):
        assert (output / name).read_text() == (undisturbed[0] / name).read_text()


@pytest.mark.slow
def test_two_comparisons_share_one_folder_and_no_work(questions, tmp_path, undisturbed):
    output = tmp_path / "out"
    both = [start(command(questions, output, METHODS, steps=STEPS)) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert adapters(output) == adapters(undisturbed[0])
    assert (output / "table.csv").read_text() == (undisturbed[0] / "table.csv").read_text()
    logs = "".join(path.read_text() for path in output.glob("logs/*.log"))
    assert logs.count(f"step {STEPS} of {STEPS}") == 4


@pytest.mark.slow
def test_ray_loses_a_worker_and_nothing_else(questions, tmp_path, undisturbed):
    pytest.importorskip("ray")
    output = tmp_path / "out"
    process = start([*command(questions, output, METHODS, steps=STEPS), "--engine", "ray", "--workers", "1"])
    wait_for(lambda: list(output.glob("store/*/checkpoint-1*/manifest.json")))
    busy = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.read_bytes().startswith(b"ray::attend")
    ]
    assert len(busy) == 1
    os.kill(busy[0], signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert adapters(output) == adapters(undisturbed[0])
    assert (output / "table.csv").read_text() == (undisturbed[0] / "table.csv").read_text()
    logs = "".join(path.read_text() for path in output.glob("logs/*.log"))
    assert logs.count(f"step {STEPS} of {STEPS}") == 4
