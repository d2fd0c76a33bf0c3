"""The paper's tables as experiments: their numbers, their layout, the settings of every cell, and a run end to end."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import transformers
from safetensors import safe_open

import uq4ct
from uq4ct import campaign, cli, experiments, fitting, tasks
from uq4ct.answering import UQModel
from uq4ct.config import Layer, preset_layers, resolve
from uq4ct.errors import UserError
from uq4ct.experiments.layout import Block, Cell, Entry, blocks, latex, markdown, tidy_csv
from uq4ct.experiments.page import page
from uq4ct.experiments.record import SMOKE, entries, record
from uq4ct.experiments.request import prepare


@pytest.mark.parametrize(("name", "numbers"), list(zip(experiments.names(), [60, 84, 20, 10, 60, 10], strict=True)))
def test_every_cell_of_the_paper_has_its_number(name, numbers):
    experiment = experiments.get(name)
    assert sum(len(row) for rows in experiment.paper.values() for row in rows.values()) == numbers
    for rows in experiment.paper.values():
        assert all(len(row) == len(experiment.columns) for row in rows.values())
        assert list(rows) == [row for row in experiment.methods if not experiment.is_ours(row)]


@pytest.mark.parametrize(
    ("name", "metric", "row", "column", "text"),
    [
        ("table1", "ACC", "LoRA", 0, "69.5_1.93"),
        ("table1", "ECE", "LA", 4, "12.6_1.9"),
        ("table1", "ECE", "UQ4CT", 0, "2.3_0.82"),
        ("table2", "ACC", "LoRA", 0, "72.1_1.87"),
        ("table2", "ECE", "MC Drop", 6, "25.9_2.27"),
        ("table2", "ECE", "UQ4CT", 3, "19.6_2.90"),
        ("table3", "ECE", "UQ4CT-Incremental", 2, "13.8_2.08"),
        ("table4", "ECE", "0.2", 0, "7.47_0.78"),
        ("table5", "ECE", "LA", 3, "6.41_3.22"),
        ("table5", "ACC", "UQ4CT", 2, "74.4_0.82"),
        ("table6", "ECE", "Top-5", 0, "6.29_0.61"),
    ],
)
def test_numbers_are_those_that_the_paper_prints(name, metric, row, column, text):
    assert experiments.get(name).paper[metric][row][column].text == text


def test_results_that_tables_share_agree_but_for_the_one_that_the_paper_prints_in_two_ways():
    one, two, three, four, six = (experiments.get(f"table{k}").paper for k in (1, 2, 3, 4, 6))
    for metric in ("ACC", "ECE"):
        for row in one[metric]:
            if (metric, row) != ("ACC", "LoRA"):  # 0.87 in Table 1, 1.87 in Table 2
                assert one[metric][row][3] == two[metric][row][0]
        assert one[metric]["UQ4CT"] == three[metric]["UQ4CT"]
        assert one[metric]["UQ4CT"][3] == four[metric]["1"][0] == six[metric]["Top-2"][0]
        assert one[metric]["MixLoRA"][3] == four[metric]["0"][0]


def test_every_column_is_a_known_task_with_the_splits_that_the_paper_uses():
    for name in experiments.names():
        for column in experiments.get(name).columns:
            assert "train" in tasks.get(column.train).splits
            assert tasks.get(column.test).paper_split == (
                "test" if column.test.startswith(("mmlu", "clima")) else "validation"
            )


def test_an_unknown_table_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"no experiment is called 'tabel1'\. Did you mean 'table1'\?"):
        experiments.get("tabel1")


def entries_of(experiment, states=()):
    """Row r, column c, seed s: accuracy 0.5 + r/100 + s/1000, ECE 0.2 - r/100 + s/1000, the same in every column."""
    found = {}
    for r, row in enumerate(experiment.methods):
        for column in experiment.columns:
            values = {
                "accuracy": tuple(0.5 + r / 100 + s / 1000 for s in range(3)),
                "ece": tuple(0.2 - r / 100 + s / 1000 for s in range(3)),
            }
            found[row, column.title] = Entry(values, 3)
    return found | dict(states)


def line_of(text, *starts):
    (line,) = [line for line in text.splitlines() if re.sub(r"[|\s]+", " ", line).strip().startswith(" ".join(starts))]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_has_accuracy_then_calibration_error_of_each_method_and_then_the_papers():
    experiment = experiments.get("table3")
    ours, paper = blocks(experiment, entries_of(experiment))
    assert ours.header == ("Metrics", "Methods", "BoolQ", "ARC-E", "ARC-C", "OBQA", "ClimateQA")
    assert [line[1].text for line in ours.lines] == ["UQ4CT", "UQ4CT-Incremental"] * 2
    assert [line[0].text for line in ours.lines] == ["ACC ↑", "", "ECE ↓", ""]
    # accuracy 0.500, 0.501, 0.502: mean 50.1 %, sample standard deviation 0.1
    assert ours.lines[0][2:] == (Cell("50.1_0.10"),) * 5
    assert ours.lines[1][2:] == (Cell("51.1_0.10", best=True),) * 5
    assert ours.lines[3][2:] == (Cell("19.10_0.10", best=True),) * 5
    assert (paper.title, paper.lines[2][2], paper.lines[3][4]) == (
        "paper, LLaMA-2-7B",
        Cell("2.3_0.82", best=True),
        Cell("13.8_2.08"),
    )


def test_one_task_has_ours_and_the_papers_numbers_in_one_row():
    experiment = experiments.get("table4")
    (block,) = blocks(experiment, entries_of(experiment))
    assert block.header == ("beta", "ACC ↑", "ECE ↓", "ACC ↑ (paper, LLaMA-2-7B)", "ECE ↓ (paper, LLaMA-2-7B)")
    assert line_of(markdown(block), "0.2") == ["0.2", "51.1_0.10", "19.10_0.10", "76.0_0.6", "7.47_0.78"]
    assert line_of(markdown(block), "1 ") == ["1", "**54.1_0.10**", "**16.10_0.10**", "**77.3_1.36**", "**5.0_1.15**"]


def test_cells_without_results_say_why_and_missing_seeds_are_counted_and_never_best():
    experiment = experiments.get("table3")
    one_seed_less = Entry({"accuracy": (0.9, 0.9), "ece": (0.0, 0.0)}, 3)
    states = {
        ("UQ4CT", "ClimateQA"): Entry({}, 3, "no data"),
        ("UQ4CT-Incremental", "ClimateQA"): Entry({}, 3, "no data"),
        ("UQ4CT", "BoolQ"): one_seed_less,
        ("UQ4CT", "ARC-E"): Entry({}, 3, "failed"),
    }
    ours, paper = blocks(experiment, entries_of(experiment, states))
    assert ours.lines[0][2:] == (
        Cell("90.0_0.00 (2/3)"),
        Cell("failed"),
        Cell("50.1_0.10"),
        Cell("50.1_0.10"),
        Cell("no data"),
    )
    assert not any(cell.best for line in ours.lines for cell in (line[2], line[3]))
    assert paper.lines[0][6].text == "63.3_1.74"


def test_ties_share_the_mark():
    experiment = experiments.get("table4")
    same = {(row, "OBQA"): Entry({"accuracy": (0.5,), "ece": (0.25,)}, 1) for row in experiment.methods}
    (block,) = blocks(experiment, same)
    assert [line[1] for line in block.lines] == [Cell("50.0", best=True)] * 5  # one seed has no deviation


def test_rows_of_ours_stand_apart_from_the_papers():
    experiment = experiments.get("table1")
    ours, paper = blocks(experiment, entries_of(experiment))
    assert [line[1].text for line in ours.lines][:2] == ["Zero-shot", "LoRA"]
    assert paper.lines[0][:2] == (Cell("ACC ↑"), Cell("LoRA"))
    assert len(paper.lines) == 12


def test_latex_carries_every_number_with_its_deviation_as_a_subscript():
    experiment = experiments.get("table2")
    text = latex("A & B", blocks(experiment, entries_of(experiment)), experiment.columns, "smoke")
    assert r"\caption{A \& B}" in text
    assert (
        r" &  & \multicolumn{1}{c}{ID} & \multicolumn{2}{c}{smaller shift} & \multicolumn{4}{c}{larger shift} \\"
        in text
    )
    assert text.count(r"$_{") == 7 * 2 * (7 + 6)
    assert r"\textbf{5.0$_{1.15}$}" in text
    ends = {len(re.findall(r"(?<!\\)&", line)) for line in text.splitlines() if "$_{" in line}
    assert ends == {8}


def test_csv_has_one_number_a_line():
    experiment = experiments.get("table6")
    found = entries_of(experiment, {("Top-3", "OBQA"): Entry({}, 3, "diverged")})
    rows = list(csv.DictReader(io.StringIO(tidy_csv(experiment, found))))
    assert len(rows) == 2 * 10
    by_key = {(row["source"], row["metric"], row["row"]): row for row in rows}
    ours = by_key["ours", "ECE", "Top-1"]
    assert (ours["mean"], ours["sd"], ours["seeds"], ours["state"]) == ("20.1", "0.1", "3", "complete")
    assert by_key["ours", "ACC", "Top-3"]["state"] == "diverged"
    assert by_key["paper, LLaMA-2-7B", "ECE", "Top-5"]["mean"] == "6.29"


def test_markdown_keeps_its_columns_whatever_a_title_holds():
    text = markdown(Block("", ("a|b", "x"), ((Cell("c"), Cell("1", best=True)),), labels=1))
    assert text.splitlines() == ["| a\\|b |     x |", "|:-----|------:|", "| c    | **1** |"]


# ------------------------------------------------------------------------------------------------ cells


def options_of(*texts):
    return {"text": list(texts), "label": ["A", "B", "C", "D"][: len(texts)]}


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_root(root, *, folders=("openbookqa", "arc_easy", "arc_challenge", "boolq", "mmlu"), train=20, rest=7):
    """Write a data root with a few questions per task, each file in the columns of its official release."""
    texts = ("red", "green", "blue", "white")
    for split, count in (("train", train), ("validation", rest)):
        common = [
            {"id": f"{split}-{n}", "choices": options_of(*texts), "answerKey": "ABCD"[n % 4]} for n in range(count)
        ]
        for task, question in (
            ("openbookqa", "question_stem"),
            ("arc_easy", "question"),
            ("arc_challenge", "question"),
        ):
            if task in folders:
                write_rows(
                    root / task / f"{split}.jsonl", [{**row, question: f"{task} {row['id']} ?"} for row in common]
                )
        if "boolq" in folders:
            rows = [{"question": f"is {split} {n} odd", "answer": n % 2 == 1, "passage": "Odd."} for n in range(count)]
            write_rows(root / "boolq" / f"{split}.jsonl", rows)
    if "mmlu" in folders:
        for task in ("mmlu-cs", "mmlu-eng", "mmlu-law", "mmlu-health"):
            for part in tasks.get(task).parts("test"):
                row = {"question": f"{part.group} ?", "subject": part.group, "choices": list(texts), "answer": 2}
                write_rows(root / part.path, [row, {**row, "question": "Which ?"}])
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("data"))


def prepared(table, root, output, **options):
    return prepare(table, model="tiny", output=output, root=str(root), **options)


def test_every_cell_of_table_1_has_the_settings_of_the_paper(root, tmp_path):
    request = prepared("table1", root, tmp_path / "out")
    plain = ("boolq", "arc_easy", "arc_challenge", "openbookqa")
    assert [(cell.task, cell.method, cell.seed) for cell in request.plan.cells] == [
        (task, method, seed)
        for seed in (1, 2, 3)
        for task in plain
        for method in request.methods.values()
        if method != "zero_shot" or seed == 1
    ]
    for cell in request.plan.cells:
        train, method = cell.config.train, cell.config.method
        assert (train.learning_rate, train.lr_scheduler_type, train.warmup_steps) == (2e-4, "constant", 0)
        assert (train.num_train_epochs, train.max_steps, train.weight_decay) == (2.0, -1, 0.01)
        assert train.per_device_train_batch_size * train.gradient_accumulation_steps == 16
        assert (cell.config.prompt.pack, cell.config.prompt.scoring, cell.config.prompt.max_length) == (
            "moe_peft",
            "letters",
            512,
        )
        assert (cell.config.data.calibration_fraction, cell.config.eval.bins) == (0.0, 15)
        assert cell.config.output.seed == cell.seed
        assert cell.evaluate == ((cell.task, "validation"),)
        assert method.posthoc is None
        if method.name == "zero_shot":
            continue
        assert (method.dropout, method.answer_loss, method.target_modules, method.rslora) == (
            0.05,
            "vocabulary",
            None,
            False,
        )
        if method.name in ("mixlora", "uq4ct"):
            assert (method.num_experts, method.top_k, method.rank, method.alpha) == (8, 2, 16, 32.0)
            assert (method.routing, method.balance_weight) == ("ffn_block", 0.01)
        else:
            assert (method.rank, method.alpha or 2 * method.rank) == (80, 160.0)
    by_name = {cell.config.method.name: cell.config.method for cell in request.plan.cells}
    assert by_name["mc_dropout"].samples == 10
    assert by_name["deep_ensemble"].members == 3
    assert (by_name["uq4ct"].calibration_weight, by_name["uq4ct"].calibration_schedule) == (1.0, "constant")
    assert (by_name["uq4ct"].feu_reduction, by_name["uq4ct"].feu_tokens) == ("mass", "prompt")


def test_climateqa_is_trained_with_its_own_learning_rate_and_dropout(tmp_path):
    root = write_root(tmp_path / "data", folders=("openbookqa",))
    rows = [
        {"Question": f"{n} ?", "Options": "a) ice\nb) iron\nc) salt\nd) sand", "Answer": "abcd"[n % 4]}
        for n in range(9)
    ]
    write_rows(root / "climaqa" / "train.jsonl", rows)
    write_rows(root / "climaqa" / "test.jsonl", [{**row, "Validation": n != 0} for n, row in enumerate(rows)])
    request = prepared("table3", root, tmp_path / "out")
    settings = {cell.task: (cell.config.train.learning_rate, cell.config.method.dropout) for cell in request.plan.cells}
    assert settings == {"openbookqa": (2e-4, 0.05), "climaqa": (5e-4, 0.1)}
    assert {cell.evaluate for cell in request.plan.cells} == {(("openbookqa", "validation"),), (("climaqa", "test"),)}
    climate = request.columns[-1]
    assert (climate.rows, len(climate.test)) == (9, 8)  # one row failed the experts' check
    assert any("ClimateQA: 8 of the 9 rows are scored" in line for line in request.deviations)


def test_questions_are_read_and_adapters_built_once_however_many_cells_have_them(root, tmp_path, monkeypatch):
    import peft

    from uq4ct import data

    read: list[tuple] = []
    built: list[object] = []

    def load(source, load=data.load, **options):
        read.append((source, options["split"], options["training"]))
        return load(source, **options)

    def build(model, config, build=peft.get_peft_model):
        built.append(config)
        return build(model, config)

    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(peft, "get_peft_model", build)
    request = prepared("table1", root, tmp_path / "out")
    assert len(read) == len(set(read)) > 1
    assert 0 < len(built) <= len({cell.method for cell in request.plan.cells})


def test_table_2_trains_once_per_method_and_seed_and_tests_on_seven_tasks(root, tmp_path):
    request = prepared("table2", root, tmp_path / "out")
    assert {cell.task for cell in request.plan.cells} == {"openbookqa"}
    assert len(request.plan.cells) == 3 * 6 + 1
    tested = ("openbookqa", "arc_challenge", "arc_easy")
    larger = ("mmlu-cs", "mmlu-eng", "mmlu-law", "mmlu-health")
    for cell in request.plan.cells:
        assert cell.evaluate == (*((task, "validation") for task in tested), *((task, "test") for task in larger))
    assert [each.rows for each in request.columns] == [7, 7, 7, 8, 2, 6, 14]  # two rows in each of A.6's subjects


def test_tables_3_4_and_6_vary_one_option_of_uq4ct(root, tmp_path):
    def varied(table, option):
        cells = prepared(table, root, tmp_path / "out", seeds="1").plan.cells
        return [getattr(cell.config.method, option, None) for cell in cells if cell.task == "openbookqa"]

    assert varied("table3", "calibration_schedule") == ["constant", "incremental"]
    assert varied("table4", "name") == ["mixlora", *["uq4ct"] * 4]
    assert varied("table4", "calibration_weight") == [None, 0.2, 0.5, 0.8, 1.0]
    assert varied("table6", "top_k") == [1, 2, 3, 4, 5]


def test_what_tables_share_is_the_same_cell(root, tmp_path):
    """One --output for several tables runs UQ4CT on OBQA once: Tables 1, 3, 4 (beta 1) and 6 (top-2) have it."""
    names = {
        next(
            cell.name
            for cell in prepared(table, root, tmp_path / "out", seeds="1").plan.cells
            if (cell.method, cell.task) == ("uq4ct", "openbookqa")
        )
        for table in ("table1", "table3", "table4", "table6")
    }
    assert len(names) == 1


def test_the_bayesian_preset_adapts_query_value_and_head_by_the_laplace_protocol(root, tmp_path):
    request = prepared("table1", root, tmp_path / "out", preset="bayesian-lora", seeds="1")
    cell = next(cell for cell in request.plan.cells if cell.method == "lora")
    train, method = cell.config.train, cell.config.method
    assert (method.rank, method.alpha, method.dropout, method.answer_loss) == (8, 16.0, 0.1, "choices")
    assert method.target_modules == ("q_proj", "v_proj", "lm_head")
    assert (train.learning_rate, train.lr_scheduler_type, train.warmup_steps) == (1e-4, "linear", 0.06)
    assert (train.max_steps, train.per_device_train_batch_size, train.weight_decay) == (5000, 4, 0.0)
    assert train.model_extra == {"adam_epsilon": 1e-6}
    assert (cell.config.prompt.pack, cell.config.prompt.max_length) == ("laplace_lora", 300)
    mixture = next(cell.config.method for cell in request.plan.cells if cell.method == "uq4ct")
    assert (mixture.rank, mixture.target_modules) == (8, None)
    assert any("not the paper's" in line for line in request.deviations)


def test_a_model_without_those_linears_is_adapted_elsewhere_and_the_table_says_so(tmp_path):
    """GPT-2 has one linear for query, key and value; PEFT alone would adapt the head and say nothing."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=2048, n_embd=16, n_layer=1, n_head=2, n_positions=512)
    )
    model.save_pretrained(tmp_path / "gpt2")
    transformers.AutoTokenizer.from_pretrained(Path(uq4ct.__file__).parent / "tiny" / "model").save_pretrained(
        tmp_path / "gpt2"
    )
    with pytest.raises(UserError, match=r"the model has no module q_proj, v_proj; expected names such as .*c_attn"):
        resolve([*preset_layers("bayesian-lora"), Layer.of({"method": {"name": "lora"}}, "x")]).method.check(model)
    root = write_root(tmp_path / "data", folders=("openbookqa",))
    options = {"output": tmp_path / "out", "root": str(root), "preset": "bayesian-lora", "seeds": "1"}
    request = prepare("table1", model=str(tmp_path / "gpt2"), **options)
    targets = {cell.method: getattr(cell.config.method, "target_modules", None) for cell in request.plan.cells}
    assert set(targets.values()) == {None}
    assert any("has no module q_proj, v_proj: LoRA adapts attention and FFN" in line for line in request.deviations)


def test_an_adapted_head_is_saved_without_the_base_models(root, tmp_path):
    layers = [*preset_layers("bayesian-lora"), Layer.of({"method": {"name": "lora"}}, "x")]
    own = {
        "train": {"max_steps": 2},
        "data": {"source": "openbookqa", "root": str(root)},
        "output": {"folder": str(tmp_path / "run")},
    }
    run = fitting.train(resolve([*layers, Layer.of(own, "x")]), say=lambda line: None)
    with safe_open(run.folder / "adapter_model.safetensors", "numpy") as file:
        names = list(file.keys())
        assert any(file.get_tensor(name).any() for name in names if "lm_head.lora_B" in name)
    assert all("lora_" in name for name in names)
    fingerprint = UQModel.load(run).fingerprint()
    assert fingerprint == run.facts["fingerprint"]


def test_smoke_is_short_and_still_tests_on_every_question(root, tmp_path):
    request = prepared("table2", root, tmp_path / "out", budget="smoke")
    assert request.seeds == (1, 2)
    assert {cell.config.train.max_steps for cell in request.plan.cells} == {8}
    assert request.methods["MC Drop"] == "mc_dropout[samples=2]"
    full = prepared("table2", root, tmp_path / "out", seeds="1,2")
    assert [cell.evaluate for cell in request.plan.cells] == [cell.evaluate for cell in full.plan.cells]
    assert not {cell.digest for cell in request.plan.cells} & {cell.digest for cell in full.plan.cells}


def test_every_mistake_is_told_at_once(tmp_path, capsys):
    arguments = ["reproduce", "tabel1", "--data-root", str(tmp_path / "none"), "--preset", "papr", "--seeds", "1,x"]
    assert cli.invoke([*arguments, "--budget", "smok", "--engine", "rays"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "error: reproduce: 'tabel1' is not one of table1, table2, table3, table4, table5, table6. Did you mean 'table1'?",
        "error: --model: name the base model, a hub id, a folder or tiny",
        "error: --output: name the folder for the table and its runs",
        f"error: --data-root: no folder {tmp_path / 'none'}; expected hub, or a folder laid out as <task>/<split>.jsonl",
        "error: --preset: 'papr' does not apply to tabel1; expected paper or bayesian-lora. Did you mean 'paper'?",
        "error: --budget: 'smok' is not one of full, smoke. Did you mean 'smoke'?",
        "error: --engine: 'rays' is not one of local, ray. Did you mean 'ray'?",
        "error: --seeds: expected whole numbers from 0 with commas between, as in 1,2,3, got 'x'",
    ]


def test_the_model_is_looked_for_before_anything_else_runs(root, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["reproduce", "table4", "--model", "./nowhere", "--data-root", str(root), "--output", str(out)]
    assert cli.invoke([*arguments, "--seeds", "1,1"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --seeds: 1,1: a seed is named twice; name each once",
        "error: model.name: no such folder: ./nowhere",
    ]
    assert not out.exists()


def test_the_bayesian_preset_is_refused_where_only_mixtures_are_compared(root, tmp_path):
    with pytest.raises(UserError, match="'bayesian-lora' does not apply to table4; expected paper"):
        prepared("table4", root, tmp_path / "out", preset="bayesian-lora")


def test_a_root_without_any_data_is_an_error_that_says_where_data_would_come_from(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError) as caught:
        prepared("table1", tmp_path / "data", tmp_path / "out")
    assert len(caught.value.problems) == 5
    assert "hub data set UCSD-GENIE/ClimaQA" in caught.value.problems[-1]


# ------------------------------------------------------------------------------------------------ results


def outcomes_of(request):
    """Give every cell a result: accuracy 0.51 for seed 1, 0.52 for seed 2, ..., and ECE 0.1."""
    machine = {"device": "cpu", "processor": "x86_64", "threads": 1, "platform": "Linux", "uq4ct": "0.1.0"}
    machine["packages"] = {"torch": "2", "transformers": "5", "peft": "0.21"}
    for cell in request.plan.cells:
        write_rows(cell.folder / "environment.json", [machine])
        results = [
            {
                "task": task,
                "split": split,
                "n": 7,
                "accuracy": 0.5 + cell.seed / 100,
                "ece": 0.1,
                "settings": {"bins": 15},
                "prompt": {"pack": "moe_peft", "hash": "0123456789abcdef"},
                "dtype": "float32",
            }
            for task, split in cell.evaluate
        ]
        yield campaign.Outcome(cell, "complete", 10.0, results)


def test_a_page_says_what_is_behind_its_numbers(tmp_path):
    root = write_root(tmp_path / "data", folders=("openbookqa", "arc_easy"))
    request = prepared("table3", root, tmp_path / "out", budget="smoke")
    outcomes = list(outcomes_of(request))
    outcomes[0] = campaign.Outcome(outcomes[0].cell, "diverged", message="loss is nan at step 3")
    facts = record(request, outcomes, 12.0)
    text = page(request.experiment, entries(request, outcomes), facts)
    first = outcomes[0].cell
    assert (first.method, first.task, first.seed) == ("uq4ct", "arc_easy", 1)
    assert text.startswith("# Table 3 of the UQ4CT paper, with tiny: UQ4CT with and without")
    assert "proves nothing about the methods)" in text.splitlines()[0]
    assert f"**{SMOKE}.**" in text
    ours, paper = text.split("**paper, LLaMA-2-7B**")
    assert line_of(ours, "ACC ↑") == ["ACC ↑", "UQ4CT", "no data", "52.0 (1/2)", "no data", "**51.5_0.71**", "no data"]
    assert line_of(paper, "ECE ↓")[2:] == [
        "**2.3_0.82**",
        "**6.0_0.2**",
        "**6.1_1.11**",
        "**5.0_1.15**",
        "**8.1_0.52**",
    ]
    assert line_of(text, "OBQA") == ["OBQA", "openbookqa", "openbookqa validation", "20", "8", "7", "7", "500"]
    assert line_of(text, "ClimateQA") == ["ClimateQA", "climaqa", "climaqa", "-", "-", "no data", "-", "-"]
    for said in (
        "seeds 1, 2",
        "ECE with 15 bins",
        "prompt pack moe_peft, hash 0123456789ab",
        "training on arc_easy, openbookqa: learning rate 0.0002 constant, warm-up 0, weight decay 0.01, dropout 0.05, batch 16, 8 steps",
        "all methods: alpha 32, answer_loss vocabulary,",
        "UQ4CT-Incremental: calibration_schedule incremental",
        "forward passes per answer: 1",
        "x86_64 CPU, 1 threads",
        "70 s in all cells, 12 s in this call",
        "hub data set UCSD-GENIE/ClimaQA",
        "uq4ct on arc_easy, seed 1: diverged: loss is nan at step 3",
        "The base model is tiny, not LLaMA-2-7B",
        "2 seeds; the paper has 3 runs.",
        "OBQA: 7 questions; the official split has 500.",
        "docs/decisions.md",
    ):
        assert said in text, said


def test_a_lost_question_is_told(root, tmp_path):
    request = prepared("table6", root, tmp_path / "out", seeds="1")
    outcomes = list(outcomes_of(request))
    assert record(request, outcomes, 1.0)["columns"][0]["n"] == [7]
    outcomes[2].results[0]["n"] = 6
    facts = record(request, outcomes, 1.0)
    assert "OBQA: 6 of 7 questions were scored." in facts["deviations"]
    assert "6, 7" in line_of(page(request.experiment, entries(request, outcomes), facts), "OBQA")


def test_a_record_holds_every_single_value_and_the_papers_number(root, tmp_path):
    request = prepared("table4", root, tmp_path / "out")
    facts = record(request, list(outcomes_of(request)), 1.0)
    cell = facts["rows"][0]["columns"]["OBQA"]
    assert cell["ours"] == {"ACC": [0.51, 0.52, 0.53], "ECE": [0.1, 0.1, 0.1]}
    assert (cell["paper"], cell["status"]) == ({"ACC": "75.5_2.91", "ECE": "12.9_1.99"}, "complete")
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert len(facts["cells"]) == 15


def test_a_dry_run_lists_every_cell_and_writes_nothing(tmp_path, capsys):
    root, out = write_root(tmp_path / "data", folders=("openbookqa",)), tmp_path / "out"
    arguments = ["reproduce", "table3", "--model", "tiny", "--data-root", str(root), "--output", str(out), "--dry-run"]
    assert cli.invoke([*arguments, "--json", "--seeds", "1,2"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert all({"method", "task", "seed", "status", "seconds", "passes"} <= set(cell) for cell in cells)
    assert [cell["status"] for cell in cells].count("planned") == 4
    assert {cell["task"] for cell in cells if cell["status"] == "no data"} == {
        "boolq",
        "arc_easy",
        "arc_challenge",
        "climaqa",
    }
    assert cli.invoke(arguments) == 0
    listing = capsys.readouterr().out
    assert "6 of 6 cells to run: about" in listing
    assert "no data: task 'boolq' has no data for split 'train'" in listing
    assert not out.exists()


def test_a_smoke_run_goes_from_questions_to_a_table_and_a_second_call_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiments, "smoke", lambda: {"train": {"max_steps": 2}, "methods": {}})
    root, out = write_root(tmp_path / "data", folders=("openbookqa",)), tmp_path / "out"
    arguments = ["reproduce", "table3", "--model", "tiny", "--data-root", str(root), "--output", str(out)]
    arguments += ["--budget", "smoke", "--seeds", "1", "--workers", "1"]
    assert cli.invoke(arguments) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "table3.md").read_text(encoding="utf-8") + "\n"
    assert line_of(printed, "OBQA") == ["OBQA", "openbookqa", "openbookqa validation", "20", "2", "7", "7", "500"]
    assert sorted(path.name for path in out.glob("table3.*")) == [
        "table3.csv",
        "table3.json",
        "table3.md",
        "table3.tex",
    ]
    values = [row["columns"]["OBQA"]["ours"]["ACC"] for row in json.loads((out / "table3.json").read_text())["rows"]]
    assert [len(value) for value in values] == [1, 1]
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*") if path.is_file()}
    assert cli.invoke([*arguments, "--json"]) == 0
    assert [cell["status"] for cell in json.loads(capsys.readouterr().out)["cells"]] == ["complete"] * 2
    assert before == {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*") if path.is_file()}
