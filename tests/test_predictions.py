"""Prediction rows: what is written is read back to the last bit; problems of a file are named with their line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from uq4ct import predictions
from uq4ct.errors import UserError
from uq4ct.metrics import Answers, summarize
from uq4ct.types import Prediction, Question

QUESTIONS = [
    Question("a", "Which melts first?", ("ice", "iron", "salt"), ("1", "2", "3"), 0, group="heat", stratum="often"),
    Question("b", "Is <b>water</b> wet?", ("no", "yes"), ("false", "true"), None, true_probabilities=(0.25, 0.75)),
]
MASK = np.array([[True, True, True], [True, True, False]])


def one_pass() -> Prediction:
    logits = np.array([[[2.0, 1.0, -0.3]], [[0.1, 0.7, -np.inf]]])
    return Prediction(("a", "b"), logits, MASK, feu=np.array([0.6, 0.4]), letter_mass=np.array([0.99, 0.98]))


def three_passes() -> Prediction:
    generator = np.random.default_rng(0)
    logits = np.where(MASK[:, None], generator.normal(size=(2, 3, 3)), -np.inf)
    return Prediction(("a", "b"), logits, MASK)


def refused(path: Path, content: str) -> tuple[str, ...]:
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        predictions.read(path)
    return tuple(problem.replace(f"{path}:", "") for problem in caught.value.problems)


def test_a_row_has_the_documented_keys_in_the_rows_own_labels() -> None:
    first, second = predictions.rows(QUESTIONS, one_pass(), method="uq4ct", seed=1)
    documented = ["id", "question", "choices", "prediction", "confidence", "probabilities", "feu", "uncertainty"]
    assert list(first)[:11] == [*documented, "label", "correct", "abstained"]
    assert (first["prediction"], first["label"], first["correct"], first["abstained"]) == ("1", "1", True, False)
    assert list(first["probabilities"]) == ["1", "2", "3"]
    assert math.fsum(first["probabilities"].values()) == pytest.approx(1)
    assert first["confidence"] == first["probabilities"]["1"]
    assert first["uncertainty"]["epistemic"] == 0
    assert (second["prediction"], second["label"], second["correct"]) == ("true", None, None)
    assert second["true_probabilities"] == [0.25, 0.75]
    assert "group" not in second
    assert (first["method"], first["seed"], first["feu"], first["letter_mass"]) == ("uq4ct", 1, 0.6, 0.99)


def test_a_row_says_how_long_the_passage_was_and_a_length_counts_it(tmp_path: Path) -> None:
    passage = replace(QUESTIONS[0], context="It is hot.")
    made = predictions.rows([passage, *QUESTIONS[1:]], one_pass())
    assert made[0]["context_characters"] == 10
    assert "context_characters" not in made[1]
    bare = Answers.of_rows(predictions.rows(QUESTIONS, one_pass())).length
    predictions.write(tmp_path / "predictions.jsonl", made)
    read = predictions.read(tmp_path / "predictions.jsonl")
    assert (Answers.of_rows(read).length - bare).tolist() == [10.0]  # the second has no label
    made[0]["context_characters"] = 1.5
    (tmp_path / "odd.jsonl").write_text(predictions.to_line(made[0]), encoding="utf-8")
    with pytest.raises(UserError, match=r"'context_characters' must be a whole number from 0, got 1\.5"):
        predictions.read(tmp_path / "odd.jsonl")


def test_a_row_says_which_share_of_its_tokens_the_training_has(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    predictions.write(path, predictions.rows(QUESTIONS, one_pass(), seen=[0.75, 0.0]))
    assert [row["seen_tokens"] for row in predictions.read(path)] == [0.75, 0.0]
    assert "seen_tokens" not in predictions.rows(QUESTIONS, one_pass())[0]
    path.write_text(predictions.to_line(predictions.rows(QUESTIONS, one_pass(), seen=[1.5, 0.0])[0]), encoding="utf-8")
    with pytest.raises(UserError, match=r"'seen_tokens' must be .*1\.5"):
        predictions.read(path)


@pytest.mark.parametrize("prediction", [one_pass(), three_passes()], ids=["one pass", "three passes"])
def test_rows_written_and_read_again_are_the_same_to_the_last_bit(tmp_path: Path, prediction: Prediction) -> None:
    made = predictions.rows(QUESTIONS, prediction, method="lora")
    made[0]["question"] += " \u2028\x85\r\n?"
    predictions.write(tmp_path / "predictions.jsonl", made)
    read = predictions.read(tmp_path / "predictions.jsonl")
    assert read == made == predictions.read_own(tmp_path / "predictions.jsonl")
    again = predictions.to_prediction(read)
    assert (again.logits == prediction.logits).all()
    assert (again.mask == prediction.mask).all()
    assert (again.probabilities == prediction.probabilities).all()
    assert again.ids == prediction.ids


def test_logits_of_several_passes_are_those_of_their_mean_probability() -> None:
    prediction = three_passes()
    for row, expected in zip(predictions.rows(QUESTIONS, prediction), prediction.probabilities, strict=True):
        weights = np.exp(row["logits"])
        assert weights / weights.sum() == pytest.approx(expected[: len(weights)], abs=1e-12)
        assert len(row["samples"]) == 3
        assert row["uncertainty"]["epistemic"] > 0


def test_questions_and_predictions_in_another_order_are_refused() -> None:
    with pytest.raises(ValueError, match="ids or order"):
        predictions.rows(QUESTIONS[::-1], one_pass())


def test_probabilities_and_label_are_enough(tmp_path: Path) -> None:
    jsonl, table = tmp_path / "theirs.jsonl", tmp_path / "theirs.csv"
    jsonl.write_text(
        '{"probabilities": {"yes": 0.7, "no": 0.3}, "label": "no"}\n\n{"probabilities": [0.2, 0.8], "label": "B"}\n'
    )
    table.write_text('\ufeffprobabilities,label\n"{""yes"": 0.7, ""no"": 0.3}",no\n"[0.2, 0.8]",B\n')
    for path in (jsonl, table):
        first, second = predictions.read(path)
        assert (first["id"], first["prediction"], first["confidence"], first["correct"]) == ("1", "yes", 0.7, False)
        assert (second["prediction"], second["label"], second["correct"]) == ("B", "B", True)
        assert first["feu"] is None
        assert summarize([first, second])["accuracy"] == 0.5


def test_booleans_and_numbers_are_looked_up_among_the_rows_own_labels(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"probabilities": {"false": 0.4, "true": 0.6}, "label": true}\n'
        '{"probabilities": {"1": 0.4, "2": 0.6}, "label": 2}\n'
    )
    assert [row["label"] for row in predictions.read(path)] == ["true", "2"]


def test_every_problem_is_named_with_its_line(tmp_path: Path) -> None:
    good = {"probabilities": {"A": 0.5, "B": 0.5}, "label": "A"}
    lines = [
        good,
        good | {"probabilities": {"A": 2.0, "B": -1.0}},
        good | {"probabilities": {"A": 0.5, "B": 0.3}},
        good | {"label": "E"},
        good | {"probabilities": {"A": "0.5", "B": 0.5}},
        good | {"probabilities": None},
        good | {"probabilities": {"A": 0.6, "B": 0.4}, "prediction": "B"},
        good | {"correct": False},
        good | {"confidence": 0.9},
        good | {"logits": [0.0, 3.0]},
        good | {"logits": [0.0]},
        good | {"feu": "high"},
        good | {"true_probabilities": [0.5, 0.7]},
        good | {"choices": ["one"]},
        good | {"probabilities": [0.5, 0.5], "label": -1},
    ]
    content = "\n".join([*map(json.dumps, lines), "[1]", "{oops", '{"probabilities": {"A": NaN}}'])
    problems = refused(tmp_path / "p.jsonl", content)
    expected = [
        "2: probability of 'A' must lie in [0, 1], got 2.0; if these are logits, say so: --columns logits=",
        "3: probabilities sum to 0.8, expected 1",
        "4: label 'E' is not one of the labels A, B",
        "5: probability of 'A' must lie in [0, 1], got '0.5'",
        "6: no 'probabilities'; a prediction has them as an object {label: p} or a list",
        "7: prediction 'B' is not the most probable choice 'A'",
        "8: 'correct' is False, but",
        "9: 'confidence' is 0.9",
        "10: softmax of 'logits' differs from 'probabilities' by 0.453",
        "11: 'logits' must be a list of 2 numbers",
        "12: 'feu' must be a number in [0, 1], got 'high'",
        "13: 'true_probabilities' must be at least 0 and sum to 1",
        "14: 1 choice, expected 2 to 26",
        "15: label -1 is not one of the labels A, B",
        "16: expected a JSON object {...}, got a list",
        "17: not valid JSON",
        "18: NaN is not a value",
    ]
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start), problem


def test_the_first_twenty_problems_are_listed(tmp_path: Path) -> None:
    problems = refused(tmp_path / "p.jsonl", '{"probabilities": null}\n' * 50)
    assert len(problems) == 21
    assert problems[-1].endswith("... and 30 more problems")


def test_csv_problems_are_named_with_the_line_where_the_row_starts(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    assert "no probabilities; expected 'probabilities'" in refused(path, "p,label\n1,A\n")[0]
    content = 'question,probabilities,label\n"two\nlines","[0.5, 0.5]",A\nx,"{\'A\': 0.5}",A\nx,"[0.5, 0.5]"\n'
    wrong_quotes, short = refused(path, content)
    assert wrong_quotes.startswith("4: expected 'probabilities' as an object")
    assert short.startswith("5: 2 fields, but the header names 3")


def test_files_that_hold_no_predictions_are_refused(tmp_path: Path) -> None:
    assert "expected one prediction a row" in refused(tmp_path / "empty.jsonl", "\n")[0]
    (tmp_path / "p.txt").write_text("p")
    with pytest.raises(UserError, match=r"read from \.jsonl, .*\.parquet files, got '\.txt'"):
        predictions.read(tmp_path / "p.txt")
    with pytest.raises(UserError, match="no such file"):
        predictions.read(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(UserError, match="not UTF-8"):
        predictions.read(tmp_path / "latin.jsonl")


def test_an_id_may_repeat_only_for_another_method_or_seed(tmp_path: Path) -> None:
    row = '{"id": "7", "probabilities": [0.5, 0.5], "label": "A", "seed": %d}\n'
    assert refused(tmp_path / "p.jsonl", row % 1 + row % 1) == (
        "2: id '7' stands twice, first at 1; one file holds one row per question, task, method and seed",
    )
    (tmp_path / "p.jsonl").write_text(row % 1 + row % 2)
    assert len(predictions.read(tmp_path / "p.jsonl")) == 2


def test_rows_keep_confidences_on_bin_borders_where_they_were(tmp_path: Path) -> None:
    rows = [{"id": str(k), "probabilities": {"A": k / 15, "B": 1 - k / 15}, "label": "A"} for k in range(8, 16)]
    predictions.write(tmp_path / "p.jsonl", rows)
    confidence = Answers.of_rows(predictions.read(tmp_path / "p.jsonl")).confidence
    assert confidence.tolist() == [k / 15 for k in range(8, 16)]


def test_a_line_ends_once_and_refuses_nan() -> None:
    assert predictions.to_line({"id": "é\n"}) == '{"id": "é\\n"}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        predictions.to_line({"feu": math.nan})
