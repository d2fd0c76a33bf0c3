"""What the study reads beside FEU: what the head sees of a question, distances of it, and the length of a question."""

from __future__ import annotations

import json

import numpy as np
import pytest
from encoder_toys import save
from sklearn.covariance import LedoitWolf

from benchmarks.study.features import features, log_lengths, nearness, place_of, read, write_nearness
from uq4ct import data, fitting
from uq4ct.answering import UQModel
from uq4ct.config import Layer, resolve
from uq4ct.errors import UserError
from uq4ct.forward import base_of
from uq4ct.types import Question

ROWS = [
    {"question": f"Which is number {number}?", "choices": ["red", "green", "a hot day"][: 2 + number % 2], "answer": "AB"[number % 2]}
    for number in range(30)
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One finished cell of a campaign: a LoRA on an encoder that scores pairs."""
    place = tmp_path_factory.mktemp("campaign")
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    save("bert", place / "bert")
    given = {
        "model": {"name": str(place / "bert"), "device": "cpu"},
        "data": {"source": str(place / "pairs.jsonl"), "calibration_fraction": 0.2},
        "method": {"name": "lora", "rank": 2},
        "train": {"max_steps": 2, "per_device_train_batch_size": 4},
        "output": {"folder": str(place / "cells" / "lora-1")},
    }
    fitting.train(resolve([Layer.of(given, "test")]), say=lambda line: None)
    return place / "cells" / "lora-1"


def test_the_features_are_what_the_head_reads(run):
    """Question and choice by question and choice: the head turns them into the answers' own logits."""
    model = UQModel.load(run)
    questions = [
        Question(str(number), row["question"], tuple(row["choices"]), tuple("ABC"[: len(row["choices"])]))
        for number, row in enumerate(ROWS)
    ]
    rows = features(model, questions)
    assert [len(each) for each in rows] == [len(question.choices) for question in questions]
    head = base_of(model.model).get_submodule("classifier")
    weight, bias = (dict(head.named_parameters())[f"modules_to_save.default.{name}"] for name in ("weight", "bias"))
    predicted = model.predict_raw(questions).logits[:, 0]
    for each, logits in zip(rows, predicted, strict=True):
        own = each @ weight.detach().numpy()[0] + bias.item()
        np.testing.assert_allclose(own, logits[: len(own)], atol=1e-5)


def test_nearness_by_hand():
    generator = np.random.default_rng(1)
    known = [generator.normal(size=(2, 3)) for _ in range(20)]
    asked = generator.normal(size=(3, 3))
    near = nearness(known)
    rows = np.concatenate(known)
    inverse = np.linalg.inv(LedoitWolf().fit(rows).covariance_)
    apart = [row - rows.mean(axis=0) for row in asked]
    assert near["mahalanobis"](asked) == pytest.approx(-np.mean([np.sqrt(row @ inverse @ row) for row in apart]))

    def unit(row):
        return row / np.sqrt((row**2).sum())

    tenth = [sorted(np.sqrt(((unit(row) - unit(other)) ** 2).sum()) for other in rows)[9] for row in asked]
    assert near["nearest"](asked) == pytest.approx(-np.mean(tenth))


def test_a_cell_keeps_what_its_scores_need(run):
    write_nearness(run, [])
    assert set(read(place_of(run))) == {"length", "seen"}
    write_nearness(run, [], with_features=["calibration"])  # what is there does not have all that is asked for
    found = read(place_of(run))
    assert place_of(run) == run.parents[1] / "features" / "lora-1.json"
    kept = set(json.loads((run / "splits.json").read_text())["calibration"])
    assert len(kept) == 6
    assert {kind: set(parts["calibration"]) for kind, parts in found.items()} == dict.fromkeys(
        ("length", "seen", "mahalanobis", "nearest"), kept
    )
    before = place_of(run).stat().st_mtime_ns
    write_nearness(run, [])
    assert place_of(run).stat().st_mtime_ns == before
    assert read(run / "absent.json") == {}


def test_length_is_the_mean_over_the_texts_that_a_model_sees(run):
    model = UQModel.load(run)
    question = Question("1", "Which is number 1?", ("red", "a hot day"), ("A", "B"))
    (example,) = model.encoder.encode_all([question])
    seen = [len(example["input_ids"]) + len(option) for option in example["option_ids"]]
    assert log_lengths([example]) == [pytest.approx(np.log(np.mean(seen)))]


def test_seen_are_the_tokens_that_the_questions_to_fit_have_and_not_those_kept_for_calibration(run):
    model, parts = UQModel.load(run), json.loads((run / "splits.json").read_text())
    training = data.load(str(model.config.data.source), config=model.config.data, training=True).questions
    used = set()
    for example in model.encoder.encode_all([q for q in training if q.id not in parts["calibration"]]):
        used |= {*example["input_ids"], *(token for option in example["option_ids"] for token in option)}
    write_nearness(run, [])
    found = read(place_of(run))["seen"]["calibration"]
    for question in training:
        if question.id in parts["calibration"]:
            (example,) = model.encoder.encode_all([question])
            texts = [[*example["input_ids"], *option] for option in example["option_ids"]]
            known = [token in used for text in texts for token in text]
            assert found[question.id] == pytest.approx(np.mean(known))
    assert 0.5 < min(found.values()) < 1  # the number of a question kept is in no other


def test_features_of_a_model_without_pairs_are_refused(tmp_path):
    given = {
        "method": {"name": "lora"},
        "train": {"max_steps": 1},
        "data": {"limit": 16, "source": "tiny"},
        "model": {"name": "tiny", "device": "cpu"},
        "output": {"folder": str(tmp_path / "cells" / "tiny-1")},
    }
    fitting.train(resolve([Layer.of(given, "test")]), say=lambda line: None)
    with pytest.raises(UserError, match="features are what an encoder's head on pairs"):
        write_nearness(tmp_path / "cells" / "tiny-1", ["tiny-near"], with_features=["tiny-near"])
    write_nearness(tmp_path / "cells" / "tiny-1", ["tiny-near"])
    assert set(read(tmp_path / "features" / "tiny-1.json")) == {"length", "seen"}
