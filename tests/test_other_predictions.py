"""Other people's predictions: every form of the same answers gives the same metrics, and no form is guessed at."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uq4ct import cli, predictions
from uq4ct.errors import UserError
from uq4ct.metrics import Answers, summarize
from uq4ct.metrics.confidences import REASON, Confidences
from uq4ct.predictions import Columns, read_any
from uq4ct.report.sources import read_sources

SAMPLES = Path(__file__).parent / "data" / "lm_eval"
DATE = "2026-11-25T10-10-13.657924"
LETTERS = "ABCDE"
UNDEFINED_WITHOUT_DISTRIBUTION = {"nll", "brier"}


def drawn_rows(n: int = 120) -> list[dict[str, Any]]:
    """Rows with three to five choices each."""
    generator = np.random.default_rng(3)
    rows = []
    for number in range(n):
        logits = generator.normal(size=generator.integers(3, 6)) * 2
        weights = np.exp(logits - logits.max())
        labels = LETTERS[: len(logits)]
        probabilities = (weights / weights.sum()).tolist()
        rows.append(
            {
                "id": f"q{number}",
                "logits": logits.tolist(),
                "probabilities": dict(zip(labels, probabilities, strict=True)),
                "choices": [f"text {k} of {number}" for k in range(len(logits))],
                "label": labels[generator.integers(len(logits))],
            }
        )
    return rows


def as_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_csv(path: Path, rows: Sequence[dict[str, Any]], delimiter: str = ",") -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def log_probabilities(row: dict[str, Any]) -> list[float]:
    return np.log(list(row["probabilities"].values())).tolist()


def position(row: dict[str, Any]) -> int:
    return LETTERS.index(row["label"])


def values(row: dict[str, Any]) -> list[float]:
    return list(row["probabilities"].values())


# What people have -> how to write it, from rows with probabilities by letter.
FORMS: dict[str, tuple[Callable[[Path, Any], Path], str, Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "object": (as_jsonl, "f.jsonl", lambda r: {"probabilities": r["probabilities"], "label": r["label"]}, ""),
    "list and letter": (as_jsonl, "f.jsonl", lambda r: {"probs": values(r), "gold": r["label"]}, ""),
    "list and position": (as_jsonl, "f.jsonl", lambda r: {"probabilities": values(r), "label": position(r)}, ""),
    "list and position from 1": (as_jsonl, "f.jsonl", lambda r: {"probs": values(r), "answer": position(r) + 1}, ""),
    "list and text": (
        as_jsonl,
        "f.jsonl",
        lambda r: {"probs": values(r), "choices": r["choices"], "answer": r["choices"][position(r)]},
        "",
    ),
    "by text": (
        as_jsonl,
        "f.jsonl",
        lambda r: {
            "probabilities": dict(zip(r["choices"], values(r), strict=True)),
            "label": r["choices"][position(r)],
        },
        "",
    ),
    "json in csv": (as_csv, "f.csv", lambda r: {"probabilities": json.dumps(values(r)), "label": position(r)}, ""),
    "p_A, p_B, ...": (
        as_csv,
        "f.csv",
        lambda r: {"answerKey": r["label"]} | {f"p_{a}": r["probabilities"].get(a, "") for a in LETTERS},
        "",
    ),
    "prob_0, prob_1, ...": (
        as_csv,
        "f.csv",
        lambda r: {f"prob_{k}": r["probabilities"].get(a, "") for k, a in enumerate(LETTERS)} | {"y_true": position(r)},
        "",
    ),
    "tsv of other names": (
        lambda path, rows: as_csv(path, rows, "\t"),
        "f.tsv",
        lambda r: {"is": r["label"]} | {a: r["probabilities"].get(a, "") for a in LETTERS},
        "label=is,probabilities=A,B,C,D,E",
    ),
    "logits": (as_jsonl, "f.jsonl", lambda r: {"logits": r["logits"], "label": r["label"]}, ""),
    "logits of another name": (as_jsonl, "f.jsonl", lambda r: {"z": r["logits"], "label": position(r)}, "logits=z"),
    "logit columns": (
        as_csv,
        "f.csv",
        lambda r: {f"logit_{a}": x for a, x in zip(LETTERS, r["logits"], strict=False)} | {"label": r["label"]},
        "",
    ),
    "log-probabilities": (as_jsonl, "f.jsonl", lambda r: {"logprobs": log_probabilities(r), "label": r["label"]}, ""),
    "log-probability columns": (
        as_csv,
        "f.csv",
        lambda r: {f"s.{a}": x for a, x in zip(LETTERS, log_probabilities(r), strict=False)} | {"label": r["label"]},
        "log_probabilities=s.*",
    ),
    "parquet list": (as_parquet, "f.parquet", lambda r: {"probabilities": values(r), "label": position(r)}, ""),
    "parquet columns": (
        as_parquet,
        "f.parquet",
        lambda r: {f"p_{a}": r["probabilities"].get(a) for a in LETTERS} | {"label": r["label"]},
        "",
    ),
}


def written(folder: Path, form: str, rows: Sequence[dict[str, Any]]) -> tuple[Path, Columns]:
    write, name, change, columns = FORMS[form]
    return write(folder / name, [{"id": row["id"], **change(row)} for row in rows]), Columns.parse(
        [columns] if columns else []
    )


def numbers(result: Any) -> Any:
    """Every number of a summary, nested ones too, as one flat mapping."""
    flat: dict[str, float] = {}

    def add(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                add(part, f"{name}.{key}")
        elif isinstance(value, list):
            for key, part in enumerate(value):
                add(part, f"{name}.{key}")
        elif isinstance(value, int | float):
            flat[name] = value

    add(result, "")
    return flat


def refused(path: Path, columns: str = "") -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        read_any(path, Columns.parse([columns] if columns else []))
    return tuple(problem.replace(f"{path}:", "").replace(f"{path}", "") for problem in caught.value.problems)


# -------------------------------------------------------------------------------------------------- the same everywhere


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_answers_gives_the_same_metrics(tmp_path: Path, form: str) -> None:
    rows = drawn_rows()
    expected = numbers(summarize(predictions.read(as_jsonl(tmp_path / "own.jsonl", rows)), resamples=50))
    path, columns = written(tmp_path, form, rows)
    found = numbers(summarize(read_any(path, columns).rows, resamples=50))
    assert found == pytest.approx(expected, abs=1e-12)
    assert {"." + name for name in UNDEFINED_WITHOUT_DISTRIBUTION} <= set(found)


def test_confidence_and_correctness_give_the_metrics_that_need_no_more(tmp_path: Path) -> None:
    rows = predictions.read(as_jsonl(tmp_path / "own.jsonl", drawn_rows()))
    full = summarize(rows, resamples=50)
    short = [{"confidence": row["confidence"], "correct": int(row["correct"])} for row in rows]
    for path in (as_jsonl(tmp_path / "f.jsonl", short), as_csv(tmp_path / "f.csv", short)):
        reading = read_any(path)
        found = summarize(reading.rows, resamples=50)
        for name in ("n", "accuracy", "ece", "smooth_ece", "signed_gap", "auroc", "aurc", "augrc", "ece_null", "bins"):
            assert found[name] == full[name], name
        for name in UNDEFINED_WITHOUT_DISTRIBUTION:
            assert found[name] is None
            assert found["reasons"][name] == REASON
        assert found["chance"] is None
        assert found["gold_letters"] is None
        assert "no probabilities: metrics that need them are null" in reading.how


def test_prediction_and_label_say_whether_an_answer_is_right(tmp_path: Path) -> None:
    path = as_csv(
        tmp_path / "f.csv",
        [
            {"confidence": 0.9, "prediction": "Paris", "label": "Paris"},
            {"confidence": 0.4, "prediction": "Rome", "label": "Paris"},
            {"confidence": 0.4, "prediction": "Rome", "label": ""},
        ],
    )
    rows = read_any(path).rows
    assert [row["correct"] for row in rows] == [True, False, None]
    result = summarize(rows, resamples=20)
    assert (result["n"], result["unlabelled"], result["accuracy"]) == (2, 1, 0.5)


SAME_ANSWERS = {
    "whole numbers and floats": [(1, "1.0", True), (0, 0.0, True), ("0", 1, False)],
    "truth values": [("true", True, True), ("False", False, True), (True, "false", False)],
    "capitals and space": [("b", "B ", True), ("PARIS", "Paris", True), ("b", "paris", False)],
    "no answer": [("a", math.nan, None), ("nan", "a", None), ("a", " ", None), ("a", "a", True)],
}


@pytest.mark.parametrize("form", SAME_ANSWERS)
def test_the_same_answer_written_in_two_ways_is_right(tmp_path: Path, form: str) -> None:
    rows = [{"confidence": 0.9, "prediction": given, "label": label} for given, label, _ in SAME_ANSWERS[form]]
    expected = [correct for _, _, correct in SAME_ANSWERS[form]]
    read = read_any(as_csv(tmp_path / "f.csv", rows)).rows
    assert [row["correct"] for row in read] == expected
    assert (read[0]["label"] is None) == (expected[0] is None)
    if form != "no answer":  # JSON has no NaN
        assert [row["correct"] for row in read_any(as_jsonl(tmp_path / "f.jsonl", rows)).rows] == expected


def test_predictions_and_labels_that_share_no_value_are_refused(tmp_path: Path) -> None:
    rows = [{"confidence": 0.9, "prediction": given, "label": k} for k, given in enumerate("ABCD")]
    assert refused(as_jsonl(tmp_path / "f.jsonl", rows)) == (
        " no prediction ('A', 'B', 'C', ...) is the label of any row ('0', '1', '2', ...), so that every answer would "
        "count as wrong; write both in the same way, or add 'correct' (true or false)",
    )
    said = as_jsonl(tmp_path / "said.jsonl", [row | {"correct": False} for row in rows])
    assert [row["correct"] for row in read_any(said).rows] == [False] * 4


def test_distributions_without_right_answers_are_read_as_confidences(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "f.jsonl", [{"probs": [0.2, 0.8], "correct": True}, {"probs": [0.7, 0.3], "correct": 0}])
    reading = read_any(path)
    assert [(row["confidence"], row["correct"], row["probabilities"]) for row in reading.rows] == [
        (0.8, True, None),
        (0.7, False, None),
    ]
    assert "the right answers are not given" in reading.how


def test_in_a_tie_the_files_own_prediction_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tied = {"probabilities": {"A": 0.45, "B": 0.45, "C": 0.1}, "prediction": "B", "label": "B", "correct": True}
    wrong = tied | {"label": "A", "correct": False}
    path = as_jsonl(tmp_path / "tie.jsonl", [tied | {"id": 1}, tied | {"id": 2}, tied | {"id": 3}, wrong | {"id": 4}])
    answers = Answers.of_rows(read_any(path).rows)
    assert answers.correct.tolist() == [1, 1, 1, 0]
    assert answers.confidence.tolist() == [0.45] * 4
    assert answers.take(np.array([3, 0])).correct.tolist() == [0, 1]
    assert cli.invoke(["metrics", str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["accuracy"], result["predicted_letters"]) == (0.75, {"A": 0, "B": 4, "C": 0})
    (series,) = read_sources([path]).series
    assert series.members[0].answers.correct.sum() == 3
    with pytest.raises(UserError, match="row '7': prediction 'y' is none of its choices A, B, C"):
        Answers.of_rows([tied | {"id": 7, "prediction": "y"}])


def test_the_probability_of_class_one_is_a_distribution_over_two(tmp_path: Path) -> None:
    path = as_csv(tmp_path / "f.csv", [{"y_score": 0.75, "y_true": 1}, {"y_score": 0.25, "y_true": 1}])
    rows = read_any(path, Columns.parse(["positive=y_score"])).rows
    assert [row["probabilities"] for row in rows] == [{"0": 0.25, "1": 0.75}, {"0": 0.75, "1": 0.25}]
    assert [row["correct"] for row in rows] == [True, False]
    assert "no probabilities" in refused(path)[0]


def test_a_file_is_parted_by_task_method_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"probs": "[0.6, 0.4]", "label": "A", "id": 1, "group": group, "method": method, "seed": seed, "task": task}
        for task in ("arc", "obqa")
        for method in ("lora", "ours")
        for seed in (1, 2)
        for group in ("x", "y")
    ]
    path = as_csv(tmp_path / "f.csv", rows)
    assert cli.invoke(["metrics", str(path), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(r["task"], r["method"], r["seed"], r["n"]) for r in results][:3] == [
        ("arc", "lora", 1, 2),
        ("arc", "lora", 2, 2),
        ("arc", "ours", 1, 2),
    ]
    assert len(results) == 8
    assert cli.invoke(["metrics", str(path), "--json", "--by-group"]) == 0
    assert {r["task"] for r in json.loads(capsys.readouterr().out)["results"]} == {
        "arc: x", "arc: y", "obqa: x", "obqa: y",
    }  # fmt: skip


def test_one_line_says_how_a_file_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"p_A": 0.6, "p_B": 0.4, "gold": 0, "note": "x"}, {"p_A": 0.1, "p_B": 0.9, "gold": 1, "note": ""}]
    path = as_csv(tmp_path / "f.csv", rows)
    assert cli.invoke(["metrics", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == (
        f"read 2 rows of {path}: probabilities from 2 columns (p_A, p_B); label from 'gold', read as positions counted "
        "from 0; row numbers as ids; not read: note\n"
    )
    assert captured.out.startswith("task")


def test_a_report_shows_files_of_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = predictions.read(as_jsonl(tmp_path / "own.jsonl", drawn_rows(40)))
    short = [{"confidence": row["confidence"], "correct": row["correct"], "method": "<b>short</b>"} for row in rows]
    as_csv(tmp_path / "short.csv", short)
    page = tmp_path / "page.html"
    sources = [str(tmp_path / "own.jsonl"), str(tmp_path / "short.csv"), str(SAMPLES)]
    assert cli.invoke(["report", *sources, "-o", str(page)]) == 0
    html = page.read_text()
    assert "&lt;b&gt;short&lt;/b&gt;" in html
    assert "<b>short" not in html
    assert "tiny_letters" in html
    assert capsys.readouterr().err.count("read ") == 6  # two files and the folder's four


# ---------------------------------------------------------------------------------------------------- nothing is guessed


def test_two_columns_that_could_be_the_same_are_refused(tmp_path: Path) -> None:
    row = {"probs": [0.6, 0.4], "proba": [0.5, 0.5], "gold": "A", "target": "B"}
    path = as_jsonl(tmp_path / "f.jsonl", [row])
    assert refused(path) == (
        " 'probs' and 'proba' could each be the probabilities; say which: --columns probabilities=probs",
        " 'gold' and 'target' could each be the label; say which: --columns label=gold",
    )
    read = read_any(path, Columns.parse(["label=target,probabilities=probs"]))
    assert read.rows[0]["label"] == "B"
    assert "not read: proba, gold" in read.how


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("labl=gold", "--columns: 'labl' is not one of probabilities, "),
        ("label=", "--columns: no column after 'label='"),
        ("gold", "--columns: expected field=column, got 'gold'"),
        ("label=a,b", "--columns: expected field=column, got 'b'"),
        ("label=a,label=b", "--columns: 'label' is given twice"),
    ],
)
def test_columns_that_cannot_be_meant_are_refused(columns: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Columns.parse([columns])
    assert caught.value.problems[0].startswith(message)


def test_a_named_column_must_be_there(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "f.jsonl", [{"probs": [0.6, 0.4], "gold": "A"}])
    assert refused(path, "label=golf,probabilities=q_*") == (
        " --columns: no column 'golf'; the file has probs, gold. Did you mean 'gold'?",
        " --columns: no column 'q_*'; the file has probs, gold.",
    )


BAD_ROWS = {
    "p_A,p_B,label\n0.7,0.7,A": "2: probabilities sum to 1.4, expected 1",
    "p_A,p_B,label\nnan,0.7,A": "2: probability of 'A' must lie in [0, 1], got nan",
    "p_A,p_B,label\n-0.1,1.1,A": "2: probability of 'A' must lie in [0, 1], got -0.1",
    "p_A,p_B,label\n,1.0,A": "2: expected 'probabilities' as an object {label: p} or a list, of two or more choices",
    "p_A,p_B,label\n0.3,0.7,C": "2: label 'C' is not one of the labels A, B",
    "prob_0,prob_1,label\n0.3,0.7,2": "2: label '2' is not one of the labels 0, 1",
    "logit_A,logit_B,label\n1,-inf,A": "2: 'logits' of 'B' must be a finite number, got -inf",
    "logit_A,logit_B,label\n1,x,A": "2: 'logits' of 'B' must be a finite number, got 'x'",
    "logp_A,logp_B,label\n-1,-2,A": "2: log-probabilities whose probabilities sum to 0.503215, expected 1",
    "logp_A,logp_B,label\n0.5,-2,A": "2: log-probability of 'A' is 0.5, expected at most 0",
    "logp_A,logp_B,label\n-inf,-inf,A": "2: 'log_probabilities' gives every choice probability 0",
    "confidence,correct\n90,1": "2: 'confidence' must be a number in [0, 1], got 90",
    "confidence,correct\n0.9,B": "2: 'correct' must be true or false, got 'B'; if it is the right answer, say so",
    "confidence,correct\n,1": "2: no 'confidence'",
    "confidence,prediction,label,correct\n0.9,a,b,1": "2: 'correct' is True, but prediction is 'a' and label 'b'",
    "confidence\n0.9": " 'confidence' alone says nothing; add 'correct'",
    "p_A,p_B,label,correct\n0.9,0.1,A,1\n0.9,0.1,,0": "3: 'correct' is False, but there is no label, as other rows have",
    "id,p_A,p_B,label\n7,0.5,0.5,A\n7,0.5,0.5,B": "3: id '7' stands twice, first at 2; one file holds one row",
}


@pytest.mark.parametrize("content", BAD_ROWS)
def test_what_is_wrong_with_a_row_is_said_with_its_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "f.csv"
    path.write_text(content + "\n")
    (problem,) = refused(path)
    assert problem.startswith(BAD_ROWS[content]), problem


def test_all_problems_come_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("p_A,p_B,label\n0.7,0.7,A\n0.5,0.5,A\n0.5\n0.5,0.5,Z\n2,0,A\n")
    assert [problem.partition(":")[0] for problem in refused(path)] == ["2", "4", "5", "6"]
    assert cli.invoke(["metrics", str(path)]) == 2


def test_impossible_choices_are_kept_as_such(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("logp_A,logp_B,label\n0,-inf,A\n0,-inf,B\n")
    rows = read_any(path).rows
    assert [row["probabilities"] for row in rows] == [{"A": 1.0, "B": 0.0}] * 2
    assert "gold answers have probability 0" in summarize(rows, resamples=20)["reasons"]["nll"]


def test_a_seed_that_is_a_list_is_refused(tmp_path: Path) -> None:
    row = {"probs": [0.5, 0.5], "label": "A", "group": ["x"]}
    assert read_any(as_jsonl(tmp_path / "f.jsonl", [row])).rows[0]["group"] == "['x']"
    assert refused(as_jsonl(tmp_path / "f.jsonl", [row | {"seed": [1]}]))[0].startswith("1: 'seed' must be a number")


def test_a_seed_that_is_not_a_number_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = as_csv(tmp_path / "f.csv", [{"p_A": 0.6, "p_B": 0.4, "label": label, "seed": math.nan} for label in "AB"])
    assert cli.invoke(["metrics", str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["n"], "seed" in result) == (2, False)
    path.write_text(path.read_text().replace("nan", "inf"))
    assert refused(path)[0] == "2: 'seed' must be a number or a name, got inf"


@pytest.mark.parametrize("choices", ["ice; iron", "['ice', 'iron']", "2"])
def test_choices_that_cannot_be_read_are_left_where_the_labels_are_known(tmp_path: Path, choices: str) -> None:
    rows = [{"p_A": 0.6, "p_B": 0.4, "label": label, "choices": choices} for label in "AB"]
    reading = read_any(as_csv(tmp_path / "f.csv", rows))
    assert [row["correct"] for row in reading.rows] == [True, False]
    got = "2" if choices == "2" else repr(choices)
    assert f"; choices of 2 rows not read (expected 'choices' as a list of 2 texts, got {got})" in reading.how
    rows = [{"probs": "[0.6, 0.4]", "label": "A", "choices": choices}]
    problem = f"2: expected 'choices' as a list of 2 texts, got {got}"
    assert refused(as_csv(tmp_path / "list.csv", rows)) == (problem,)


def test_more_classes_than_letters_are_counted_from_zero(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "f.jsonl", [{"probabilities": [1 / 77] * 77, "label": k} for k in (0, 76)])
    rows = read_any(path).rows
    assert [row["label"] for row in rows] == ["0", "76"]
    assert list(summarize(rows, resamples=20)["gold_letters"]) == [str(k) for k in range(77)]


@pytest.mark.parametrize("correct", [[1, 1], [0, 0], [1]])
def test_confidences_of_few_or_equal_answers_have_a_summary(correct: list[int]) -> None:
    rows = [{"confidence": 0.5, "correct": bool(c), "probabilities": None} for c in correct]
    result = summarize(rows, resamples=20)
    assert result["accuracy"] == np.mean(correct)
    assert result["auroc"] is None
    with pytest.raises(UserError, match="none of the 1 predictions says whether it is right"):
        Confidences.of_rows([{"confidence": 0.5, "correct": None}])


# ------------------------------------------------------------------------------------------------- samples of the harness


def samples(task: str) -> Path:
    return SAMPLES / f"samples_tiny_{task}_{DATE}.jsonl"


def documents(task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in samples(task).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("task", ["texts", "letters", "mutual_information", "contexts"])
def test_accuracy_is_the_harness_own(task: str) -> None:
    rows = read_any(samples(task)).rows
    assert [float(row["correct"]) for row in rows] == [document["acc"] for document in documents(task)]
    assert {(row["task"], row["method"]) for row in rows} == {(f"tiny_{task}", "uq4ct/tiny/model")}


@pytest.mark.parametrize("likelihood", ["acc", "acc_norm", "acc_bytes"])
def test_probabilities_are_the_softmax_of_log_likelihoods_by_the_named_length(likelihood: str) -> None:
    reading = read_any(samples("texts"), likelihood=likelihood)
    for row, document in zip(reading.rows, documents("texts"), strict=True):
        scores = []
        for choice, (response, _) in zip(document["doc"]["choices"], document["filtered_resps"], strict=True):
            length = {"acc": 1, "acc_norm": len(choice), "acc_bytes": len(choice.encode())}[likelihood]
            scores.append(math.exp(float(response) / length))
        assert list(row["probabilities"].values()) == pytest.approx([score / sum(scores) for score in scores])
        assert row["choices"] == document["doc"]["choices"]
        assert row["label"] == document["doc"]["answer"]
        assert float(row["correct"]) == document[likelihood]
        assert row["id"] == str(document["doc_id"])
    assert f"({likelihood})" in reading.how


def test_unconditional_likelihoods_are_no_choices() -> None:
    for row, other in zip(read_any(samples("mutual_information")).rows, read_any(samples("texts")).rows, strict=True):
        assert row["probabilities"] == other["probabilities"]


def test_a_results_folder_is_all_its_tasks_with_choices(capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (SAMPLES, SAMPLES.parent):
        reading = read_any(folder)
        tasks = {f"tiny_{task}" for task in ("texts", "letters", "mutual_information", "contexts")}
        assert {row["task"] for row in reading.rows} == tasks
        assert f"not read: {samples('generated').name}; generated texts have no probabilities" in reading.how
    assert cli.invoke(["metrics", str(samples("generated"))]) == 2
    assert "the task generates text" in capsys.readouterr().err


def test_arguments_and_responses_of_older_versions_are_read(tmp_path: Path) -> None:
    old = []
    for document in documents("letters"):
        arguments = [list(one.values()) for one in document["arguments"].values()]
        responses = [[float(x), greedy == "True"] for x, greedy in document["filtered_resps"]]
        old.append(document | {"arguments": arguments, "filtered_resps": responses})
    found = read_any(as_jsonl(tmp_path / "samples_tiny_letters.jsonl", old)).rows
    expected = [{k: v for k, v in row.items() if k != "method"} for row in read_any(samples("letters")).rows]
    assert found == expected


def changed(path: Path, task: str, **values: Any) -> Path:
    rows = documents(task)
    rows[1] |= values
    return as_jsonl(path / f"samples_tiny_{task}_{DATE}.jsonl", rows)


def test_samples_that_are_not_one_right_answer_among_choices_are_refused(tmp_path: Path) -> None:
    several = SAMPLES / "several_right" / f"samples_tiny_several_right_{DATE}.jsonl"
    assert refused(several)[0] == "1: target [1, 2] names several right answers; metrics need one"
    assert "the task was not scored as one right answer" in refused(changed(tmp_path, "texts", acc=0.37))[0]
    assert refused(changed(tmp_path, "texts", target="9"))[0].startswith("2: target '9' is not a position counted from 0")
    assert "2: 'filtered_resps' are not two or more pairs" in refused(changed(tmp_path, "texts", filtered_resps=["x"]))[0]
    half = documents("texts")[1]["filtered_resps"][:2]
    assert "arguments, but 2 responses" in refused(changed(tmp_path, "texts", filtered_resps=half))[0]
    with pytest.raises(UserError, match=r"'acc_nrm' is not one of .* Did you mean 'acc_norm'"):
        read_any(samples("texts"), likelihood="acc_nrm")
    with pytest.raises(UserError, match="the choices stand in the contexts; use --likelihood acc"):
        read_any(samples("contexts"), likelihood="acc_norm")


def test_a_target_that_could_be_a_position_or_a_text_is_settled_by_the_harness_own_accuracy(tmp_path: Path) -> None:
    rows = []
    written = [(["2", "1", "0"], "0"), (["1", "0", "2"], "1"), (["0", "1", "2"], "0")]  # the last fits both
    for number, (choices, target) in enumerate(written):
        likelihoods = [-1.0, -2.0, -3.0]
        rows.append(
            {
                "doc_id": number,
                "doc": {},
                "target": target,
                "arguments": {f"gen_args_{k}": {"arg_0": "Q", "arg_1": f" {c}"} for k, c in enumerate(choices)},
                "filtered_resps": [[str(x), "False"] for x in likelihoods],
                "acc": float(choices[0] == target),
            }
        )
    path = as_jsonl(tmp_path / "samples_digits.jsonl", rows)
    assert [row["label"] for row in read_any(path).rows] == ["C", "A", "A"]
    for row in rows:
        del row["acc"]
    assert "'acc' does not tell which" in refused(as_jsonl(path, rows))[0]


def test_two_evaluations_of_one_task_in_a_folder_are_refused(tmp_path: Path) -> None:
    for date in (DATE, "2026-11-26T00-00-00.0"):
        as_jsonl(tmp_path / f"samples_tiny_texts_{date}.jsonl", documents("texts"))
    with pytest.raises(UserError, match="2 sample files of task 'tiny_texts'"):
        read_any(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no samples_<task>_<date>"):
        read_any(tmp_path / "empty")
