"""Encoders from a hub folder to a run and back: both heads, the command line, resuming, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from encoder_toys import CLASSES, save, settings, tokenizer

from uq4ct import backbone, cli, data, fitting, methods, predictions
from uq4ct.answering import UQModel
from uq4ct.backbone import ModelConfig
from uq4ct.config import Layer, resolve
from uq4ct.encoders import head_modules, new_modules, weights_of
from uq4ct.errors import UserError

ROWS = [
    {
        "id": f"q{number}",
        "question": f"Which is number {number}?",
        "choices": ["red", "green", "blue", "a hot day"][: 3 + number % 2],
        "answer": "ABC"[number % 3],
        **({"context": "It is a very hot day."} if number % 2 else {}),
    }
    for number in range(48)
]
TEXTS = [
    {"id": f"t{number}", "question": f"the film number {number} is {CLASSES[number % 3]}", "answer": CLASSES[number % 3]}
    for number in range(48)
]

READ_AGAIN = """
import json, sys
import torch
torch.set_num_threads(1)
from uq4ct import data
from uq4ct.answering import UQModel

found = {}
for folder, source in zip(sys.argv[1::2], sys.argv[2::2]):
    model = UQModel.load(folder)
    calibration = set(json.load(open(f"{folder}/splits.json"))["calibration"])
    asked = data.read_file(source, config=model.config.data).questions
    questions = [question for question in asked if question.id in calibration]
    found[folder] = {row["id"]: row["probabilities"] for row in model.rows(questions, model.predict_questions(questions))}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    for name, rows in (("pairs.jsonl", ROWS), ("texts.jsonl", TEXTS)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for family in ("bert", "roberta", "deberta-v2"):
        save(family, folder / family)
    return folder


def options(place, family, kind, name="uq4ct", folder="run", **changes):
    small = {"rank": 2, "num_experts": 4} if name == "uq4ct" else {"rank": 2}
    given = {
        "model": {"name": str(place / family), "device": "cpu"},
        "data": {"source": str(place / "pairs.jsonl"), "calibration_fraction": 0.2},
        "method": {"name": name, **small},
        "train": {"max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_steps": 5},
        "output": {"folder": str(folder)},
    }
    if kind == "classification":
        given["data"] |= {"source": str(place / "texts.jsonl"), "choices": list(CLASSES)}
    for section, values in changes.items():
        given[section] = {**given[section], **values} if section in given else values
    return given


def config(*args, **changes):
    return resolve([Layer.of(options(*args, **changes), "test")])


@pytest.fixture(scope="module")
def runs(place):
    every = [("bert", "multiple_choice", "uq4ct"), ("bert", "classification", "uq4ct"), ("roberta", "classification", "lora"),
             ("deberta-v2", "multiple_choice", "lora")]  # fmt: skip
    made = {}
    for family, kind, method in every:
        folder = place / "runs" / f"{family}-{kind}-{method}"
        made[family, kind, method] = fitting.train(config(place, family, kind, method, folder), say=lambda line: None)
    return made


def test_a_run_answers_the_same_in_another_process(runs, place):
    arguments = []
    for (_, kind, _), run in runs.items():
        arguments += [str(run.folder), str(place / ("texts.jsonl" if kind == "classification" else "pairs.jsonl"))]
    other = subprocess.run([sys.executable, "-c", READ_AGAIN, *arguments], capture_output=True, text=True, check=False)
    assert other.returncode == 0, other.stderr[-2000:]
    found = json.loads(other.stdout.splitlines()[-1])
    for run in runs.values():
        saved = {row["id"]: row["probabilities"] for row in predictions.read(run.folder / "calibration.jsonl")}
        assert len(saved) >= 8
        assert found[str(run.folder)] == saved, run.folder.name


def test_the_new_head_was_trained_and_is_in_the_adapter_s_file_bit_for_bit(runs):
    from safetensors.torch import load_file

    for (_, kind, _), run in runs.items():
        base = backbone.load(run.config.model, CLASSES if kind == "classification" else ())
        head, saved = weights_of(base.model, head_modules(base.model)), load_file(run.folder / "adapter_model.safetensors")
        loaded = UQModel.load(run).model.state_dict()
        for name in head:
            path, _, leaf = name.rpartition(".")
            weight = saved[f"base_model.model.{name}"]
            inner = next(found for found in loaded if found.startswith("base_model.model.") and ".modules_to_save.default" in found
                         and found.replace(".modules_to_save.default", "") == f"base_model.model.{path}.{leaf}")  # fmt: skip
            assert torch.equal(loaded[inner], weight)
            assert not torch.equal(base.model.get_parameter(name), weight), name


def test_a_run_records_what_the_base_was_taken_for(runs):
    run = runs["bert", "classification", "uq4ct"]
    assert (run.facts["base"]["kind"], run.facts["base"]["classes"]) == ("classification", list(CLASSES))
    assert run.facts["prompt"]["pack"] == "text"
    assert any("its head tells bad, good, not apart" in note for note in run.facts["notes"])
    run = runs["deberta-v2", "multiple_choice", "lora"]
    assert (run.facts["base"]["kind"], run.facts["base"]["classes"]) == ("multiple_choice", [])
    assert any("scores every pair of question and choice" in note for note in run.facts["notes"])


def test_a_classifier_answers_in_any_order_of_its_classes_and_nothing_else(runs):
    model = UQModel.load(runs["bert", "classification", "uq4ct"])
    first = model.predict("the film is good", list(CLASSES))
    turned = model.predict("the film is good", list(CLASSES[::-1]))
    assert first.choice == turned.choice
    by_choice = dict(zip(CLASSES, first.probabilities.values(), strict=True))
    assert dict(zip(CLASSES[::-1], turned.probabilities.values(), strict=True)) == pytest.approx(by_choice)
    with pytest.raises(UserError, match="choices good, bad, but a classifier's are the same for every question"):
        model.predict("the film is good", ["good", "bad"])


def test_a_choice_s_score_does_not_depend_on_the_others(runs):
    model = UQModel.load(runs["bert", "multiple_choice", "uq4ct"])
    whole = model.predict("Which is number 3?", ["red", "green", "blue"]).probabilities
    turned = model.predict("Which is number 3?", ["blue", "red", "green"]).probabilities
    assert turned["A"] == pytest.approx(whole["C"], abs=1e-6)
    assert turned["B"] == pytest.approx(whole["A"], abs=1e-6)


def test_a_resumed_run_continues_bit_for_bit(place, tmp_path):
    def interrupted(trainer):
        import signal

        signal.raise_signal(signal.SIGTERM)

    from training_runs import At

    from uq4ct import training

    whole = fitting.train(config(place, "bert", "multiple_choice", "lora", tmp_path / "whole"), say=lambda line: None)
    cut, original = tmp_path / "cut", training.CalibratedTrainer.__init__

    def stopping(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(At(7, interrupted))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.CalibratedTrainer, "__init__", stopping)
        with pytest.raises(SystemExit):
            fitting.train(config(place, "bert", "multiple_choice", "lora", cut), say=lambda line: None)
    assert list(cut.glob("checkpoint-*"))
    again = fitting.train(config(place, "bert", "multiple_choice", "lora", cut), resume=True, say=lambda line: None)
    files = [(run.folder / "adapter_model.safetensors").read_bytes() for run in (whole, again)]
    assert files[0] == files[1]


def test_the_seed_draws_the_new_head(place, tmp_path):
    from safetensors.torch import load_file

    heads = []
    for seed in (1, 2):
        changes = {"output": {"seed": seed}, "train": {"learning_rate": 1e-9, "weight_decay": 0.0}}
        made = config(place, "bert", "multiple_choice", "lora", tmp_path / str(seed), **changes)
        run = fitting.train(made, say=lambda line: None)
        heads.append(load_file(run.folder / "adapter_model.safetensors")["base_model.model.classifier.weight"])
    assert (heads[0] - heads[1]).abs().max() > 0.1


# ---- which kind, and which head


def test_the_kind_follows_the_architecture_and_the_choices(place, tmp_path):
    assert backbone.kind(ModelConfig()) == "causal"
    headless = ModelConfig(name=str(place / "bert"))
    assert backbone.kind(headless) == "multiple_choice"
    assert backbone.kind(headless, fixed_choices=True) == "classification"
    assert backbone.kind(headless.model_copy(update={"kind": "multiple_choice"}), fixed_choices=True) == "multiple_choice"
    saved = ModelConfig(name=str(save("bert", tmp_path / "c", "ForSequenceClassification")))
    assert backbone.kind(saved) == "classification"
    assert backbone.kind(ModelConfig(name=str(save("bert", tmp_path / "m", "ForMultipleChoice")))) == "multiple_choice"


@pytest.mark.parametrize(
    ("kind", "family", "message"),
    [
        ("causal", "bert", r"a bert model \(BertModel\): not a causal language model; leave model.kind out"),
        ("classification", None, "a causal language model answers by its next token; set model.kind: causal"),
        ("multiple_choice", "deberta", "transformers has no multiple_choice head for it"),
    ],
)
def test_a_kind_that_a_model_cannot_be_is_refused(kind, family, message, tmp_path):
    name = str(save(family, tmp_path)) if family else "tiny"
    with pytest.raises(UserError, match=message):
        backbone.load(ModelConfig(name=name, kind=kind))


def test_an_encoder_of_another_family_is_refused_with_the_known_ones(tmp_path):
    import transformers as tf

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "embedding_size": 8}
    tf.AlbertModel(tf.AlbertConfig(vocab_size=90, **sizes)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"a albert model .*: neither a causal .* or an encoder \(bert, roberta, xlm-rob"):
        backbone.load(ModelConfig(name=str(tmp_path)))


def test_a_classifier_needs_classes(place):
    with pytest.raises(UserError, match=r"a classifier needs the choices that every question has; set data.choices"):
        backbone.load(ModelConfig(name=str(place / "bert"), kind="classification"))


def test_an_encoder_that_lacks_a_weight_of_its_layers_is_refused(place, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save("bert", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.0.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of the model's weights, among them bert.encoder.layer.0.output.dense"):
        backbone.load(ModelConfig(name=str(folder)))


def test_the_base_with_its_new_head_is_the_same_every_time(place):
    first, second = (backbone.load(ModelConfig(name=str(place / "bert"))).model for _ in range(2))
    assert new_modules(first) == ("classifier",)  # the toy was saved with a pooler, which is kept
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))


def classifier(folder, labels):
    names = dict(enumerate(labels))
    numbers = {name: row for row, name in names.items()}
    return ModelConfig(name=str(save("bert", folder, "ForSequenceClassification", id2label=names, label2id=numbers)))


def test_a_head_that_was_trained_for_the_same_classes_is_kept_in_its_own_order(tmp_path):
    from safetensors.torch import load_file

    saved = classifier(tmp_path, ["NOT", "Good", "bad"])
    loaded = backbone.load(saved, CLASSES)
    assert loaded.classes == ("not", "good", "bad")
    assert new_modules(loaded.model) == ()
    weights = load_file(tmp_path / "model.safetensors")
    assert torch.equal(loaded.model.classifier.weight, weights["classifier.weight"])
    methods.find("zero_shot")().check(loaded.model)  # such a head answers without training


def test_a_trained_classifier_answers_without_training_as_transformers_does(place, tmp_path):
    import transformers as tf

    folder = tmp_path / "model"
    classifier(folder, ["not", "good", "bad"])
    changes = {"model": {"name": str(folder)}, "method": {"name": "zero_shot"}}
    given = options(place, "bert", "classification", folder=tmp_path / "run", **changes)
    given["method"] = {"name": "zero_shot"}
    run = fitting.train(resolve([Layer.of(given, "test")]), say=lambda line: None)
    answer = UQModel.load(run).predict("the film is good", list(CLASSES))
    model, encode = tf.AutoModelForSequenceClassification.from_pretrained(folder).eval(), tokenizer()
    with torch.no_grad():
        found = model(**encode("the film is good", return_tensors="pt", return_token_type_ids=True)).logits[0].softmax(-1)
    expected = {model.config.id2label[row]: p.item() for row, p in enumerate(found)}
    assert dict(zip(CLASSES, answer.probabilities.values(), strict=True)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("labels", [["LABEL_0", "LABEL_1", "LABEL_2"], ["bad", "good"]])
def test_a_head_for_other_classes_is_replaced(labels, tmp_path):
    from safetensors.torch import load_file

    loaded = backbone.load(classifier(tmp_path, labels), CLASSES)
    assert loaded.classes == CLASSES
    assert new_modules(loaded.model) == ("classifier",)
    weights, found = load_file(tmp_path / "model.safetensors"), loaded.model.classifier.weight
    assert found.shape == (3, 16)
    assert weights["classifier.weight"].shape != found.shape or not torch.equal(found, weights["classifier.weight"])
    assert torch.equal(loaded.model.bert.pooler.dense.weight, weights["bert.pooler.dense.weight"])


def test_an_outline_has_the_shapes_of_the_loaded_model_and_knows_that_the_head_is_new(place, tmp_path):
    for kind, classes in (("multiple_choice", ()), ("classification", CLASSES)):
        named = ModelConfig(name=str(place / "roberta"), kind=kind)
        outline, loaded = backbone.outline(named, classes), backbone.load(named, classes)
        assert (outline.kind, outline.classes, outline.context_length) == (kind, classes, loaded.context_length)
        shapes = [{name: p.shape for name, p in base.model.named_parameters()} for base in (outline, loaded)]
        assert shapes[0] == shapes[1]
        assert new_modules(outline.model)
    assert new_modules(backbone.outline(classifier(tmp_path, CLASSES), CLASSES).model) == ()


# ---- what has no meaning


def refusal(*args, **changes):
    with pytest.raises(UserError) as caught:
        fitting.prepare(config(*args, **changes))
    return str(caught.value)


def test_methods_and_options_without_a_meaning_are_refused_with_the_reason(place):
    kind = "multiple_choice"
    for name in methods.names():
        model = backbone.outline(ModelConfig(name=str(place / "bert"))).model
        if name == "zero_shot":
            with pytest.raises(UserError, match="the head of this encoder is new"):
                methods.find(name)().check(model)
        else:
            methods.find(name)().check(model)
    vocabulary = {"method": {"answer_loss": "vocabulary", "feu_tokens": "last"}}
    message = refusal(place, "bert", kind, **vocabulary)
    assert "method.answer_loss: vocabulary is a softmax over all tokens" in message
    assert "method.feu_tokens: last is the token before the answer" in message
    assert "method.tokens: last" in refusal(place, "bert", kind, "laplace", method={"tokens": "last"})
    assert "prompt.scoring: options words a question" in refusal(place, "bert", kind, prompt={"scoring": "options"})
    assert "model.quantization" in refusal(place, "bert", kind, model={"quantization": "nf4"})


def test_rows_with_other_choices_are_refused_by_a_classifier(place):
    message = refusal(place, "bert", "multiple_choice", model={"kind": "classification"})
    assert "pairs.jsonl:2: choices red, green, blue, a hot day, but a classifier's are the same" in message


def test_questions_that_share_their_choices_need_no_list_of_classes(place, tmp_path):
    rows = [{"question": f"number {n}", "choices": ["bad", "good"], "answer": "AB"[n % 2]} for n in range(20)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = config(place, "bert", "multiple_choice", model={"kind": "classification"}, data={"source": str(source)})
    assert fitting.prepare(made).backbone.classes == ("bad", "good")


# ---- the command line


def run_cli(*arguments):
    return cli.invoke([str(argument) for argument in arguments])


def test_every_verb_works_on_an_encoder(place, tmp_path, capsys):
    pairs, folder = place / "pairs.jsonl", tmp_path / "run"
    common = ["--model", place / "bert", "--data", pairs]
    assert run_cli("validate", *common, "--method", "mixlora") == 0
    out = capsys.readouterr().out
    assert "none: the head scores every pair of question and choice" in out
    assert "| [CLS] which is number 0 ? [SEP] red [SEP]" in out
    small = ["--set", "method.rank=2", "method.num_experts=4", "data.limit=40"]
    assert run_cli("train", *common, "--method", "uq4ct+temperature", "--max-steps", "3", "--output", folder, *small) == 0
    assert "--preset encoder trains longer" in capsys.readouterr().err
    assert json.loads((folder / "uq4ct.json").read_text())["n"] == 36
    assert run_cli("evaluate", folder, "--data", pairs, "--json") == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["n"] == 48
    assert run_cli("predict", folder, pairs, "-o", tmp_path / "answers.jsonl", "--abstain-below", "0.4") == 0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 48
    assert run_cli("ask", folder, "-q", "Which is number 1?", "-c", "red", "-c", "green", "--json") == 0
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])["probabilities"]) == {"A", "B"}
    assert run_cli("report", folder, "-o", tmp_path / "report.html") == 0
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_a_comparison_runs_on_a_classifier_and_asks_for_its_classes_itself(place, tmp_path, capsys):
    settings_ = ["--set", f"data.choices=[{', '.join(CLASSES)}]", "train.learning_rate=1e-2"]
    made = ["--model", place / "bert", "--data", place / "texts.jsonl", "--eval-data", place / "texts.jsonl"]
    many = ["--methods", "lora,lora+temperature,mixlora", "--seeds", "1", "--max-steps", "3", "--output", tmp_path / "cmp"]
    assert run_cli("compare", *made, *many, *settings_, "method.rank=2", "--workers", "1") == 0
    results = json.loads((tmp_path / "cmp" / "results.json").read_text())
    assert {"lora", "lora+temperature", "mixlora"} <= {cell["method"] for cell in results["cells"]}
    cell = min((tmp_path / "cmp" / "cells").glob("mixlora-*"))
    capsys.readouterr()
    assert run_cli("ask", cell, "-q", "the film is good", "--json") == 0
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])["probabilities"]) == {"A", "B", "C"}
    assert run_cli("compare", *made, *many[2:], "--methods", "zero_shot", *settings_) == 2
    assert "the head of this encoder is new" in capsys.readouterr().err


def test_toys_have_the_model_types_they_stand_for():
    assert settings("deberta-v2").model_type == "deberta-v2"
    assert data.DataConfig(limit=3).limit == 3
