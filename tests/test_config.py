"""A configuration is merged from preset, file and flags; every mistake is reported at once, with its place."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from uq4ct import cli, methods, template
from uq4ct import config as configuration
from uq4ct.config import PRESETS, Layer, preset_layers, read_settings, read_yaml, resolve
from uq4ct.errors import UserError


def problems_of(text, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        resolve([read_yaml(path)])
    return [problem.replace(str(tmp_path) + "/", "") for problem in caught.value.problems]


def test_later_layers_win():
    layers = [
        Layer.of({"output": {"seed": 1}, "train": {"learning_rate": 1e-3}}, "file"),
        Layer.of({"output": {"seed": 7}}, "flag"),
    ]
    resolved = resolve(layers)
    assert (resolved.output.seed, resolved.train.learning_rate) == (7, 1e-3)


@pytest.mark.parametrize("settings", [["data.columns.context=passage"], ["data.columns={context: passage}"]])
def test_a_later_layer_leaves_the_entries_of_a_mapping_that_it_does_not_name(settings, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data:\n  columns: {answer: gold, context: text}\n  splits: {train: dev}\n", encoding="utf-8")
    layers = [read_yaml(path), read_settings([*settings, "data.splits.test=held"])]
    data = resolve(layers).data
    assert data.columns.given() == {"answer": "gold", "context": "passage"}
    assert data.splits == {"train": "dev", "test": "held"}
    assert layers[0].values["data"]["columns"]["context"] == "text"
    assert resolve([*layers, read_settings(["data.columns.answer=null"])]).data.columns.answer is None


def test_all_problems_of_all_sections_come_at_once_with_their_lines(tmp_path):
    text = "model:\n  nmae: tiny\nmethod:\n  name: uq4ct\n  top_k: many\n  ranks: 8\ntrain:\n  learing_rate: 1\nevall: {}\n"
    assert problems_of(text, tmp_path) == [
        "run.yaml:9: 'evall' is not a section. Did you mean 'eval'? Sections: model, data, prompt, method, train, eval, output",
        "run.yaml:2: model: 'nmae' is not an option of model. Did you mean 'name'?",
        "run.yaml:5: method.top_k: expected a whole number, got 'many'",
        "run.yaml:6: method: 'ranks' is not an option of method uq4ct. Did you mean 'rank'?",
        "run.yaml:8: train: 'learing_rate' is not a field of transformers.TrainingArguments. Did you mean 'learning_rate'?",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "method: {name: uq4tc}",
            "run.yaml:1: method 'uq4tc' is not known. Did you mean 'uq4ct'? Methods: ",
        ),
        ("method: uq4ct", "run.yaml:1: section 'method' must hold options, got 'uq4ct'"),
        ("train:\n  seed: 3", "run.yaml:2: train: 'seed' is set by uq4ct itself; use output.seed"),
        (
            "train:\n  label_smoothing_factor: 0.1",
            "run.yaml:2: train: 'label_smoothing_factor' is set by uq4ct itself; use method label_smoothing",
        ),
        (
            "train:\n  max_steps: -5",
            "run.yaml:2: train.max_steps: expected 1 or more steps, or -1 for as many as num_train_epochs take, got -5",
        ),
        (
            "train:\n  max_steps: 0",
            "run.yaml:2: train.max_steps: expected 1 or more steps, or -1 for as many as num_train_epochs take, got 0",
        ),
        (
            "train:\n  learning_rate: fast",
            "run.yaml:2: train.learning_rate: expected a number, got 'fast'",
        ),
        ("output:\n  seed: -1", "run.yaml:2: output.seed: expected greater than or equal to 0, got -1"),
        (
            "data:\n  choices: [no, yes]",
            'run.yaml:2: data.choices: YAML reads unquoted no/yes/off/on/false/true as booleans: got [False, True]. Quote them: ["no", "yes"]',
        ),
        ("output:\n  seed: 1\n  seed: 2", "run.yaml:3: 'output.seed' appears twice; first at run.yaml:2"),
        ("a: &x 1\nb: *x", "run.yaml: YAML aliases (*name) are not supported; write the value out"),
        ("model: [", "run.yaml:1: not valid YAML: expected the node content, but found '<stream end>'"),
        (
            "just words",
            "run.yaml:1: expected sections (model, data, prompt, method, train, eval, output), each with options, got 'just words'",
        ),
        (
            "method:\n  routing: everywhere",
            "run.yaml:2: method.routing: expected 'ffn_block' or 'per_linear', got 'everywhere'",
        ),
        (
            "prompt:\n  scoring: letter",
            "run.yaml:2: prompt.scoring: expected 'letters' or 'options', got 'letter'",
        ),
        (
            "!!python/object/apply:os.system ['true']",
            "run.yaml:1: expected sections (model, data, prompt, method, train, eval, output)",
        ),
        (
            "data:\n  choice_delimiter: !foo x",
            "run.yaml:2: not valid YAML: could not determine a constructor for the tag '!foo'; if it is meant as text, put",
        ),
        ("data:\n  limit: 0b_", "run.yaml:2: not valid YAML: '0b_' is no int; if it is meant as text, put it in quotes"),
        ("data:\n  limit: !!bool x", "run.yaml:2: not valid YAML: 'x' is no bool; if it is meant as text"),
        ("data:\n  limit: !!timestamp x", "run.yaml:2: not valid YAML: 'x' is no timestamp; if it is meant as text"),
        ("data:\n  ? [a]\n  : x", "run.yaml:2: not valid YAML: found unhashable key; if it is meant as text"),
        (
            "1: {a: b}",
            "run.yaml:1: expected the name of a section or option, got a YAML int; put it in quotes",
        ),
        (
            "data:\n  splits:\n    no: dev",
            "run.yaml:3: expected the name of a section or option, got a YAML bool; put it in quotes",
        ),
        ("data:\n  columns: x", "run.yaml:2: data.columns: expected a mapping, got 'x'"),
    ],
)
def test_a_mistake_is_named_with_its_place(text, message, tmp_path):
    (problem,) = problems_of(text, tmp_path)
    assert problem.startswith(message)


def test_numbers_written_as_2e_4_are_numbers():
    assert resolve([read_settings(["train.learning_rate=2e-4"])]).train.learning_rate == 2e-4


def test_what_only_yaml_takes_for_a_date_or_a_sign_is_text(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data:\n  revision: 2024-13-45\n  choice_delimiter: =\n  subset: <<\n", encoding="utf-8")
    data = resolve([read_yaml(path)]).data
    assert (data.revision, data.choice_delimiter, data.subset) == ("2024-13-45", "=", "<<")
    assert resolve([read_settings(["data.revision=2024-01-31"])]).data.revision == "2024-01-31"


@pytest.mark.parametrize("text", ["|", ">", "#", "-", "?", "!", ":", "|-", "---", " | ", " ", "=", "or #", "! or"])
def test_a_setting_of_signs_is_the_text_that_it_is(text):
    assert resolve([read_settings([f"data.choice_delimiter={text}"])]).data.choice_delimiter == text


def test_a_setting_is_else_what_it_is_in_a_file():
    written = {"'#'": "#", '"a #b"': "a #b", " q ": "q", "~": None, "null": None, "": None, "{}": {}, "[]": [], "-1": -1}
    assert [read_settings([f"data.limit={text}"]).values["data"]["limit"] for text in written] == [*written.values()]


@pytest.mark.parametrize("setting", ["learning_rate=1", "train..learning_rate=1", "train.=1"])
def test_a_setting_without_section_or_option_is_refused(setting):
    with pytest.raises(UserError, match=rf"--set {setting}: expected section\.key=value"):
        read_settings([setting])


def test_a_setting_below_a_plain_value_of_another_is_refused():
    message = r"^--set data\.columns\.id=q: another --set makes 'columns' 'x'; leave one of the two out$"
    with pytest.raises(UserError, match=message):
        read_settings(["data.columns=x", "data.columns.id=q"])


@pytest.mark.parametrize("text", ["0b_", "!!bool x", "!foo x"])
def test_a_setting_that_is_no_value_of_its_yaml_kind_is_refused_as_text(text):
    with pytest.raises(UserError, match=f"--set: data.limit: expected a whole number, got '{text}'"):
        resolve([read_settings([f"data.limit={text}"])])


def test_the_written_configuration_reads_back_equal(tmp_path):
    before = resolve(
        [Layer.of({"method": {"name": "mixlora", "num_experts": [4, 2]}, "data": {"choices": ["neg", "pos"]}}, "x")]
    )
    (tmp_path / "config.yaml").write_text(before.to_yaml(), encoding="utf-8")
    after = resolve([read_yaml(tmp_path / "config.yaml")])
    assert after == before
    assert after.fit_hash == before.fit_hash


def test_the_fit_hash_depends_on_the_fit_alone():
    base = resolve([])
    assert (
        resolve([Layer.of({"eval": {"bins": 10}, "output": {"folder": "x"}, "train": {"save_steps": 7}}, "x")]).fit_hash
        == base.fit_hash
    )
    assert resolve([Layer.of({"output": {"seed": 2}}, "x")]).fit_hash != base.fit_hash
    assert resolve([Layer.of({"method": {"top_k": 3}}, "x")]).fit_hash != base.fit_hash


def test_one_file_named_in_two_ways_is_one_fit(tmp_path, monkeypatch):
    (tmp_path / "train.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    ways = ("train.jsonl", "./train.jsonl", str(tmp_path / "train.jsonl"))
    assert len({resolve([Layer.of({"data": {"source": way}}, "x")]).fit_hash for way in ways}) == 1


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", methods.names())
def test_every_preset_fits_every_method(preset, method):
    layers = [Layer.of(PRESETS[preset], f"preset {preset}"), Layer.of({"method": {"name": method}}, "--method")]
    assert resolve(layers).method.name == method


@pytest.mark.parametrize(
    ("method", "larger"), [("lora", False), ("uq4ct", True), ("mixlora+temperature", True), ("confidence_loss", True)]
)
def test_a_mixture_trains_with_larger_steps_than_a_lora_unless_told_otherwise(method, larger):
    named = Layer.of({"method": {"name": method}}, "--method")
    assert resolve([*preset_layers("encoder"), named]).train.learning_rate == (1e-3 if larger else 3e-4)
    assert resolve([*preset_layers("encoder"), named]).train.num_train_epochs == 3
    told = Layer.of({"train": {"learning_rate": 3e-5}}, "run.yaml:3")
    assert resolve([*preset_layers("encoder"), told, named]).train.learning_rate == 3e-5
    assert resolve([*preset_layers("product"), named]).train.learning_rate == (5e-4 if larger else 2e-4)
    assert resolve([*preset_layers("paper"), named]).train.learning_rate == 2e-4


def test_the_recommended_method_is_the_one_that_is_not_named():
    for preset in ("product", "encoder"):
        assert resolve(preset_layers(preset)).method.label == configuration.RECOMMENDED
        lora = resolve([*preset_layers(preset), Layer.of({"method": {"name": "lora"}}, "--method")]).method
        assert (lora.label, lora.posthoc) == ("lora", None)
        assert configuration.RECOMMENDED in get_args(cli.MethodName)[1].help
    assert resolve(preset_layers("paper")).method.label == "uq4ct"  # the paper calibrates nothing afterwards


def test_the_paper_preset_is_appendix_a4():
    resolved = resolve([Layer.of(PRESETS["paper"], "preset paper")])
    assert (resolved.method.num_experts, resolved.method.top_k, resolved.method.rank, resolved.method.alpha) == (
        8,
        2,
        16,
        32,
    )
    assert (resolved.train.learning_rate, resolved.train.per_device_train_batch_size) == (2e-4, 16)
    assert (resolved.method.balance_weight, resolved.method.calibration_weight, resolved.prompt.max_length) == (
        0.01,
        1.0,
        512,
    )


def test_the_paper_preset_trains_on_climateqa_with_larger_steps_and_more_dropout_unless_told_otherwise():
    climate = preset_layers("paper", "climaqa")
    resolved, other = resolve(climate), resolve(preset_layers("paper", "openbookqa"))
    assert (resolved.train.learning_rate, resolved.method.dropout) == (5e-4, 0.1)
    assert (other.train.learning_rate, other.method.dropout) == (2e-4, 0.05)
    assert resolve([*climate, Layer.of({"train": {"learning_rate": 1e-3}}, "--set")]).train.learning_rate == 1e-3
    assert resolve([*climate, Layer.of({"method": {"name": "zero_shot"}}, "--method")]).method.name == "zero_shot"


@pytest.mark.parametrize("method", methods.names())
def test_the_commented_configuration_is_the_default_one(method, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        template.commented_config(task="tiny", model="tiny", method=method, folder="runs/a"), encoding="utf-8"
    )
    named = Layer.of({"method": {"name": method}, "output": {"folder": "runs/a"}}, "x")
    expected = resolve([*preset_layers("product"), named])
    assert resolve([read_yaml(path)]) == expected


def test_a_commented_configuration_keeps_the_suffix_of_its_method(tmp_path):
    text = template.commented_config(task="tiny", model="tiny", method="uq4ct+familiarity", folder="runs/a")
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    assert resolve([read_yaml(tmp_path / "run.yaml")]).method.label == "uq4ct+familiarity"


def test_the_json_schema_describes_every_method():
    schema = json.loads(json.dumps(configuration.json_schema()))
    assert [kind["properties"]["name"]["const"] for kind in schema["properties"]["method"]["oneOf"]] == methods.names()
