"""Public data sets: each layout on rows written here, and every row of the real files where they are present."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from uq4ct import data, tasks
from uq4ct.errors import UserError
from uq4ct.protocols import PROTOCOLS, split_of
from uq4ct.types import Question


def write(root: Path, path: str, *rows: dict[str, Any]) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def one(root: Path, row: dict[str, Any], **options: Any) -> Question:
    """Read a one-row file by its columns alone."""
    return data.load(write(root, "anyone/rows.jsonl", row), **options).questions[0]


def test_the_folder_is_the_registry():
    assert tasks.names() == (
        "arc_challenge",
        "arc_easy",
        "boolq",
        "climaqa",
        "mmlu-cs",
        "mmlu-eng",
        "mmlu-health",
        "mmlu-law",
        "openbookqa",
        "sciq",
        "tiny",
        "tiny-far",
        "tiny-near",
        "tiny-relation",
        "tiny-unanswerable",
        "tiny-wording",
    )
    rows = tasks.list_tasks()
    assert json.loads(json.dumps(rows)) == rows
    assert {row["name"]: row["evaluation_split"] for row in rows if row["evaluation_split"] != "test"} == {
        "boolq": "validation"
    }
    assert {row["name"] for row in rows if row["paper_split"] == "validation"} == {
        "arc_challenge",
        "arc_easy",
        "boolq",
        "openbookqa",
        "sciq",
    }
    assert all(row["summary"] and row["source"] for row in rows)


def test_an_unknown_task_gets_the_nearest_name():
    with pytest.raises(
        UserError, match=r"^no task is called 'mmlu_law'\. Did you mean 'mmlu-law'\? Tasks: arc_challenge, "
    ):
        tasks.get("mmlu_law")


def test_openbookqa(tmp_path):
    row = {
        "id": "7-980",
        "question_stem": "The sun is responsible for",
        "choices": {"text": ["puppies", "plants"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    question = one(tmp_path, row)
    assert (question.id, question.question, question.gold) == ("7-980", "The sun is responsible for", "B")
    original = {
        "id": "7-980",
        "question": {
            "stem": row["question_stem"],
            "choices": [{"text": "puppies", "label": "A"}, {"text": "plants", "label": "B"}],
        },
        "answerKey": "B",
    }
    assert one(tmp_path, original) == question
    del row["answerKey"]
    assert one(tmp_path, row, need_answers=False).answer is None


def test_arc_rows_keep_their_own_labels(tmp_path):
    def row(key: str, labels: str) -> dict[str, Any]:
        texts = ["dry palms", "wet palms", "oiled palms", "soaped palms", "gloves"]
        choices = {"text": texts[: len(labels)], "label": list(labels)}
        return {"id": f"{labels}-{key}", "question": "Which warms?", "choices": choices, "answerKey": key}

    rows = [row("A", "ABCD"), row("4", "1234"), row("E", "ABCDE"), row("C", "ABC")]
    found = data.load(write(tmp_path, "arc/test.jsonl", *rows)).questions
    assert [question.gold for question in found] == ["A", "4", "E", "C"]
    assert [question.answer for question in found] == [0, 3, 4, 2]
    bad = write(tmp_path, "arc/bad.jsonl", *rows, row("E", "1234"))
    with pytest.raises(UserError) as caught:
        data.load(bad)
    assert caught.value.problems[0] == f"{bad}:5: answerKey 'E' is not one of the labels 1, 2, 3, 4"


def test_boolq_is_labelled_by_the_booleans_and_has_its_passage_as_context(tmp_path):
    row = {"question": "is water wet", "answer": True, "passage": "Water is wet."}
    question = one(tmp_path, row)
    assert question.choices == ("no", "yes")
    assert question.labels == ("false", "true")
    assert (question.gold, question.context) == ("true", "Water is wet.")
    assert one(tmp_path, {**row, "answer": False}).gold == "false"
    glue = {"question": "is water wet", "passage": "Water is wet.", "idx": 0, "label": 0}
    assert one(tmp_path, glue).gold == "false"


def test_mmlu_answers_are_positions_counted_from_zero_even_in_a_file_without_a_zero(tmp_path):
    row = {"question": "Which nerve?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 3}
    question = one(tmp_path, row)
    assert (question.gold, question.group) == ("D", "anatomy")
    assert one(tmp_path, {**row, "answer": 1}).gold == "B"


@pytest.mark.parametrize("column", ["subject", "answerKey"])
def test_a_file_of_ones_own_may_have_a_column_of_a_public_data_set_and_loses_nothing(tmp_path, column):
    row = {"question": "Which melts?", "choices": ["ice", "iron"], "labels": ["1", "2"], "context": "Ice does."}
    rows = [{**row, "answer": n, "group": "solids", "source": "x", column: n} for n in (1, 2)]
    found = data.load(write(tmp_path, "own/rows.jsonl", *rows))
    assert [(q.gold, q.context, q.group) for q in found.questions] == [
        ("1", "Ice does.", "solids"),
        ("2", "Ice does.", "solids"),
    ]
    unread = "'source'" if column == "subject" else "'answer', 'source'"
    assert found.notes[0].endswith(f"rows.jsonl: columns not read: {unread}")


def test_only_a_task_vouches_for_what_its_numbers_count_from(tmp_path):
    row = {"question": "Which?", "choices": ["a", "b", "c", "d"], "subject": "electrical_engineering"}
    path = "mmlu/electrical_engineering/test.jsonl"
    file = write(tmp_path, path, *({**row, "answer": n} for n in (1, 2, 3)))
    counted = "answer is read as positions counted from 0; no row says whether they are counted from 0 or from 1"
    assert data.load(file).notes[0] == f"{file}: {counted}"
    assert not any("counted from" in note for note in data.load("mmlu-eng", root=tmp_path).notes)
    write(tmp_path, path, *({**row, "answer": n} for n in (1, 2, 4)))
    assert [question.gold for question in data.load(file).questions] == ["A", "B", "D"]
    with pytest.raises(UserError, match="answer 4 is not a position from 0 to 3"):
        data.load("mmlu-eng", root=tmp_path)


SCIQ = {"question": "q", "correct_answer": "a", "distractor1": "b", "distractor2": "c", "distractor3": "d"}


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({**SCIQ, "support": "It is a."}, "'labels'"),
        ({"Question": "q", "Options": "a) x\nb) y", "Answer": "b", "Validation": True, "Level": 1}, "'Level'"),
        ({"question_stem": "q", "choices": ["a", "b"], "answerKey": "1", "fact1": "x", "more": 2}, "'more'"),
        ({"question": "q", "answer": True, "passage": "It is.", "title": "It"}, "'context', 'labels'"),
        ({"question": "q", "A": "x", "B": "y", "answer": "B"}, "'labels'"),
    ],
)
def test_a_recognised_file_keeps_its_context_and_names_what_it_does_not_read(tmp_path, row, unread):
    own = {"context": "Read me.", "group": "g"} | ({} if "Options" in row else {"labels": ["1", "2"]})
    found = data.load(write(tmp_path, "anyone/rows.jsonl", {**row, **own}))
    (question,) = found.questions
    assert (question.context, question.group) == (row.get("passage", "Read me."), "g")
    assert [note.partition(": columns not read: ")[2] for note in found.notes] == [unread]


def test_an_mmlu_group_joins_its_subjects(tmp_path):
    row = {"question": "Which law?", "choices": ["a", "b", "c", "d"], "answer": 1}
    for subject in ("international_law", "jurisprudence", "professional_law"):
        write(tmp_path, f"mmlu/{subject}/test.jsonl", *[{**row, "subject": subject}] * 2)
    found = data.load("mmlu-law", root=tmp_path)
    assert (len(found), found.name, found.split) == (6, "mmlu-law", "test")
    assert {question.group for question in found.questions} == {
        "international_law",
        "jurisprudence",
        "professional_law",
    }
    assert len({question.id for question in found.questions}) == 6
    assert found.questions[0].id.startswith("international_law-")
    assert found.path == str(tmp_path / "mmlu")
    (tmp_path / "mmlu/jurisprudence/test.jsonl").unlink()
    with pytest.raises(data.NoData, match=r"no file .*mmlu/jurisprudence/test\.jsonl\. It comes from the hub data set"):
        data.load("mmlu-law", root=tmp_path)


def test_sciq_choices_are_shuffled_by_content_so_that_the_gold_one_is_not_always_first(tmp_path):
    rows = [
        {
            "question": f"Which acid is number {n}?",
            "distractor3": "c",
            "distractor1": "a",
            "distractor2": "b",
            "correct_answer": "amino",
            "support": "It is amino.",
        }
        for n in range(200)
    ]
    found = data.load(write(tmp_path, "sciq/validation.jsonl", *rows)).questions
    assert all(question.choices[question.answer or 0] == "amino" for question in found)
    assert all(35 <= sum(question.answer == place for question in found) <= 65 for place in range(4))
    assert data.load(tmp_path / "sciq/validation.jsonl").questions == found
    assert all(question.context == "" for question in found)
    broken = {**rows[0], "distractor2": None}
    with pytest.raises(UserError, match=r"distractor2 is null"):
        one(tmp_path, broken)


CLIMA = {
    "Question": "Which clouds?",
    "Options": "a) Cirrus\n--------------------\nb) Stratus\n--------------------\nc) Nimbus",
    "Answer": "b",
}


def test_climaqa_options_are_one_delimited_string(tmp_path):
    question = one(tmp_path, CLIMA)
    assert question.choices == ("Cirrus", "Stratus", "Nimbus")
    assert (question.labels, question.gold) == (("a", "b", "c"), "b")


def test_climaqa_gold_leaves_out_what_its_authors_did_not_validate(tmp_path):
    rows = [{**CLIMA, "Validation": True}, {**CLIMA, "Validation": False}, {**CLIMA, "Validation": "False"}]
    found = data.load(write(tmp_path, "gold/mcq.jsonl", *rows))
    assert len(found) == 1
    assert "2 rows left out that the data set's authors did not validate" in found.notes[0]
    table = (
        'Question,Options,Answer,Validation\nWhich?,"a) x\n-----\nb) y",a,True\nWhich?,"a) x\n-----\nb) y",a,False\n'
    )
    (tmp_path / "mcq_benchmark.csv").write_text(table)
    assert len(data.load(tmp_path / "mcq_benchmark.csv")) == 1


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("TriviaQA", {"question": "Which vegetable?", "answer": {"value": "Onion", "aliases": ["Onions"]}}),
        ("GSM8K", {"question": "How many eggs?", "answer": "16 - 7 = 9\n#### 9"}),
        ("NQ-open", {"question": "when was the moon", "answer": ["December 1972"]}),
        ("CoQA", {"story": "Once", "questions": ["Who?"], "answers": {"input_text": ["She"]}}),
    ],
)
def test_free_form_data_sets_are_refused_by_name(tmp_path, name, row):
    with pytest.raises(
        UserError, match=rf"this looks like {name}: its answers are free-form text, not multiple choice"
    ):
        one(tmp_path, row)


def test_the_bundled_benchmark_reads_with_its_known_probabilities():
    test = data.load("tiny")
    assert (len(test), test.split) == (2000, "test")
    for name in ("tiny-near", "tiny-relation", "tiny-wording", "tiny-far", "tiny-unanswerable"):
        assert len(data.load(name, root="elsewhere")) == 1000
    assert all(len(q.true_probabilities or ()) == len(q.choices) and q.stratum for q in test.questions)
    train = data.load("tiny", training=True)
    fit, calibration = data.calibration_split(train, config=data.DataConfig(), seed=1)
    assert fit == train.questions
    assert calibration == data.load("tiny", split="calibration").questions
    assert data.calibration_split(train, config=data.DataConfig(calibration_fraction=0), seed=1) == (fit, ())


@pytest.fixture
def hub(monkeypatch) -> list[tuple[Any, ...]]:
    """Record what would be asked of the hub, and answer with one row of the task's layout."""
    from uq4ct.data import sources
    from uq4ct.data.files import RawRow

    asked: list[tuple[Any, ...]] = []
    row = {
        "id": "1",
        "question_stem": "Which?",
        "question": "Which?",
        "choices": ["a", "b"],
        "answer": True,
        "answerKey": "A",
        "subject": "law",
        "passage": "It is.",
        **CLIMA,
        **dict.fromkeys(("correct_answer", "distractor1", "distractor2", "distractor3"), "x"),
    }

    def read(name: str, subset: str | None, split: str, revision: str | None) -> tuple[list[RawRow], str]:
        asked.append((name, subset, split, revision))
        values = {**row, "answer": 1} if name == "cais/mmlu" else row
        return [RawRow(f"{name}[{split}]:row 1", values)], revision or "c0ffee"

    monkeypatch.setattr(sources, "read_hub", read)
    return asked


def test_a_task_is_named_with_its_split():
    found = data.load("tiny:validation")
    assert (found.name, found.split, found.default_split) == ("tiny", "validation", False)
    assert found.sha256 == data.load("tiny", split="validation").sha256 != data.load("tiny").sha256
    assert data.load("tiny:test").default_split
    with pytest.raises(UserError, match=r"'tiny' has no split 'valid'\. Did you mean 'validation'\? Splits: train, cal"):
        data.load("tiny:valid")
    for source in ("tiny:", "tiny@", "tiny:@"):
        with pytest.raises(UserError, match=f"'{source}': a part is empty"):
            data.load(source)


def test_a_split_that_stands_in_for_one_that_is_not_there_keeps_its_own_name(tmp_path):
    """So that the same evaluation is called the same where the test split is at hand, and where it is not."""
    (tmp_path / "sciq").mkdir()
    row = {"question": "q", "correct_answer": "a", "distractor1": "b", "distractor2": "c", "distractor3": "d"}
    (tmp_path / "sciq" / "validation.jsonl").write_text(json.dumps(row) + "\n")
    found = data.load("sciq", root=tmp_path)
    assert (found.split, found.default_split) == ("validation", False)
    assert found.notes[0] == f"sciq: no test split in {tmp_path}, so validation is read"
    named = data.load("sciq:validation", root=tmp_path)
    assert (named.split, named.default_split, named.sha256) == ("validation", False, found.sha256)
    assert not any("is read" in note for note in named.notes)
    (tmp_path / "sciq" / "validation.jsonl").rename(tmp_path / "sciq" / "test.jsonl")
    assert data.load("sciq", root=tmp_path).default_split


def test_training_on_the_split_that_is_measured_on_is_told():
    (note,) = data.load("tiny:test", training=True).notes
    assert note.startswith("tiny: its test split is trained on")
    assert not data.load("tiny", training=True).notes


def test_training_on_what_is_measured_on_for_want_of_a_test_split_is_told(tmp_path):
    (tmp_path / "arc_easy").mkdir()
    row = {"id": "1", "question": "Which?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}
    (tmp_path / "arc_easy" / "validation.jsonl").write_text(json.dumps(row))
    found = data.load("arc_easy:validation", root=tmp_path, training=True)
    assert found.notes[0].startswith("arc_easy: its validation split is trained on")


def test_a_split_that_is_named_twice_must_be_the_same():
    assert data.load("tiny:validation", split="validation").split == "validation"
    with pytest.raises(UserError, match="'tiny:validation' names the split validation, and test is asked for"):
        data.load("tiny:validation", split="test")
    assert split_of("openbookqa:test", PROTOCOLS["paper"]) is None
    assert split_of("openbookqa", PROTOCOLS["paper"]) == "validation"


def test_a_revision_is_refused_where_there_is_no_hub(tmp_path):
    for source, where in (("tiny@validation", "from the package"), ("arc_easy@validation", f"below {tmp_path}")):
        with pytest.raises(UserError) as raised:
            data.load(source, root=tmp_path)
        name = source.partition("@")[0]
        assert f"'@validation' is a revision on the hub, and {name} is read {where}" in str(raised.value)
        assert str(raised.value).endswith(f"a split is named as in {name}:validation")


def test_tasks_are_read_from_the_hub_by_id_subset_and_pinned_revision(hub):
    found = data.load("openbookqa")
    assert (found.path, found.revision, len(found.sha256)) == ("allenai/openbookqa", "c0ffee", 64)
    data.load("openbookqa@abc", split="validation")
    data.load("openbookqa:validation@abc")
    data.load("arc_easy", training=True, config=data.DataConfig(revision="abc"))
    data.load("arc_challenge", config=data.DataConfig(revision="of another data set"))
    data.load("boolq")
    data.load("mmlu-law")
    data.load("sciq")
    data.load("climaqa", training=True)
    data.load("climaqa")
    data.load("owner/name:part@abc", split="test")
    assert hub == [
        ("allenai/openbookqa", "main", "test", None),
        ("allenai/openbookqa", "main", "validation", "abc"),
        ("allenai/openbookqa", "main", "validation", "abc"),
        ("allenai/ai2_arc", "ARC-Easy", "train", "abc"),
        ("allenai/ai2_arc", "ARC-Challenge", "test", None),
        ("google/boolq", None, "validation", None),
        ("cais/mmlu", "international_law", "test", None),
        ("cais/mmlu", "jurisprudence", "test", None),
        ("cais/mmlu", "professional_law", "test", None),
        ("allenai/sciq", None, "test", None),
        ("UCSD-GENIE/ClimaQA", "Silver", "mcq", None),
        ("UCSD-GENIE/ClimaQA", "Gold", "mcq", None),
        ("owner/name", "part", "test", "abc"),
    ]


def test_subsets_of_a_hub_data_set_have_names_of_their_own(hub):
    assert data.load("owner/set:anatomy", split="test").name == "owner-set-anatomy"
    assert data.load("owner/set", split="test", config=data.DataConfig(subset="virology")).name == "owner-set-virology"
    assert data.load("owner/set", split="test").name == "owner-set"


# The real files

ROWS = {
    ("openbookqa", "train"): 4957,
    ("openbookqa", "validation"): 500,
    ("openbookqa", "test"): 500,
    ("arc_easy", "train"): 2251,
    ("arc_easy", "validation"): 570,
    ("arc_easy", "test"): 2376,
    ("arc_challenge", "train"): 1119,
    ("arc_challenge", "validation"): 299,
    ("arc_challenge", "test"): 1172,
    ("boolq", "train"): 9427,
    ("boolq", "validation"): 3270,
    ("mmlu-cs", "test"): 412,
    ("mmlu-eng", "test"): 145,
    ("mmlu-law", "test"): 1763,
    ("mmlu-health", "test"): 1540,
    ("sciq", "validation"): 1000,
}


@pytest.mark.parametrize(("task", "split"), ROWS)
def test_the_real_files_have_their_official_number_of_rows(real_data, task, split):
    found = data.load(task, split=split, root=real_data)
    assert len(found) == ROWS[task, split]
    assert len({question.id for question in found.questions}) == len(found)
    if split != "train":
        assert data.load(task, root=real_data).split == ("validation" if task in ("boolq", "sciq") else "test")


def test_real_arc_rows_are_labelled_by_letters_and_digits(real_data):
    easy = data.load("arc_easy", split="train", root=real_data).questions
    assert sum(question.labels[0] == "1" for question in easy) == 102
    assert (
        sum(
            question.labels[0] == "1"
            for question in data.load("arc_challenge", split="train", root=real_data).questions
        )
        == 23
    )
    found = data.load("arc_challenge", split="validation", root=real_data)
    assert found.choice_counts == {3: 3, 4: 295, 5: 1}


def test_real_boolq_answers(real_data):
    found = data.load("boolq", root=real_data)
    assert found.label_counts == {"false": 1237, "true": 2033}
    assert all(question.context for question in found.questions)


MMLU_ROWS = {
    "college_computer_science": 100,
    "computer_security": 100,
    "high_school_computer_science": 100,
    "machine_learning": 112,
    "electrical_engineering": 145,
    "international_law": 121,
    "jurisprudence": 108,
    "professional_law": 1534,
    "anatomy": 135,
    "clinical_knowledge": 265,
    "college_medicine": 173,
    "human_aging": 223,
    "nutrition": 306,
    "professional_medicine": 272,
    "virology": 166,
}


def test_all_real_mmlu_subjects(real_data):
    counts: dict[str, int] = {}
    for name in ("mmlu-cs", "mmlu-eng", "mmlu-law", "mmlu-health"):
        for question in data.load(name, root=real_data).questions:
            counts[question.group or ""] = counts.get(question.group or "", 0) + 1
    assert counts == MMLU_ROWS
    assert len(data.load("mmlu-cs", split="dev", root=real_data)) == 20


def test_the_real_law_row_whose_gold_text_stands_twice_warns_and_is_scored(real_data):
    found = data.load("mmlu-law", root=real_data)
    (note,) = [note for note in found.notes if "gold text stands at two letters" in note]
    assert note.endswith("international_law/test.jsonl:52)")
    file = real_data / "mmlu" / "international_law" / "test.jsonl"
    with pytest.raises(UserError, match=r"test\.jsonl:52: the gold text .* stands at"):
        data.load(file, training=True)


def test_real_climaqa_examples(real_data):
    found = data.load("climaqa", split="format_examples", root=real_data)
    assert [question.gold for question in found.questions] == list("accbdcd")
    assert all(len(question.choices) == 4 and not question.choices[0].startswith("a)") for question in found.questions)
    with pytest.raises(data.NoData, match="task 'climaqa' has no data for split 'test'"):
        data.load("climaqa", root=real_data)


@pytest.mark.parametrize(
    "path", ["trivia_qa/subset_3000", "gsm8k/test", "nq_open/validation", "nq_open/efficientqa_test"]
)
def test_real_free_form_files_are_refused(real_data, path):
    with pytest.raises(UserError, match="its answers are free-form text, not multiple choice"):
        data.load(real_data / f"{path}.jsonl")


def test_a_real_file_reads_as_its_task_does(real_data):
    by_name = data.load("openbookqa", root=real_data)
    by_path = data.load(real_data / "openbookqa" / "test.jsonl")
    assert by_path.questions == by_name.questions
    assert by_path.sha256 == by_name.sha256
    assert (by_path.name, by_name.name) == ("openbookqa-test", "openbookqa")


def test_real_training_and_test_questions_overlap_as_documented(real_data):
    train = data.load("openbookqa", split="train", root=real_data).questions
    test = data.load("openbookqa", root=real_data).questions
    assert len(data.overlap(train, test)) >= 23


def test_questions_seen_in_training_do_not_reach_the_calibration_split(real_data):
    train = data.load("openbookqa", training=True, root=real_data)
    fit, calibration = data.calibration_split(train, config=data.DataConfig(), seed=1)
    assert len(calibration) == 496
    assert data.overlap(fit, calibration) == ()
