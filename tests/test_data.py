"""Reading questions: every form people write them in, and the exact sentence for every way of getting it wrong."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uq4ct import data
from uq4ct.data.answers import answer_indices
from uq4ct.data.choices import Choices
from uq4ct.data.sources import safe_name
from uq4ct.errors import UserError
from uq4ct.types import Question


def line(**changes: Any) -> str:
    """One good row of our own schema with some values changed."""
    row = {"question": "Which melts?", "choices": ["ice", "iron"], "answer": "A", **changes}
    return json.dumps({key: value for key, value in row.items() if value is not ...}) + "\n"


GOOD = line()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a file into an empty folder that becomes the working directory, and return its name."""
    (tmp_path / "my").mkdir()
    monkeypatch.chdir(tmp_path / "my")

    def write_file(content: str | bytes, name: str = "q.jsonl") -> str:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return write_file


# Name, file, content, problems, (bad rows, rows) where rows are at fault, options of load. Users see these sentences.
MISSING = "answer is missing; only predict reads rows without answers"
UTF8 = "if it was saved as Windows-1252 or Latin-1, convert it: iconv -f WINDOWS-1252 -t UTF-8"
CHANGE = "use one form in a file"
BAD: list[tuple[str, str, str | bytes, list[str], tuple[int, int] | None, dict[str, Any]]] = [
    (
        "a line cut off inside a string",
        "q.jsonl",
        GOOD * 2 + GOOD[:20],
        ["q.jsonl:3: line ends inside a string (the file may be cut off; 2 rows read before it)"],
        (1, 3),
        {},
    ),
    (
        "a line cut off inside an object",
        "q.jsonl",
        GOOD + GOOD[:38],
        ["q.jsonl:2: line ends inside an object (the file may be cut off; 1 row read before it)"],
        (1, 2),
        {},
    ),
    (
        "no JSON",
        "q.jsonl",
        GOOD + "{question: 1}\n",
        ["q.jsonl:2: not valid JSON at column 2: Expecting property name enclosed in double quotes"],
        (1, 2),
        {},
    ),
    (
        "two objects on a line",
        "q.jsonl",
        GOOD.strip() + GOOD,
        ["q.jsonl:1: more than one JSON value on the line (the second starts at column 72); write one a line"],
        (1, 1),
        {},
    ),
    (
        "a JSON array",
        "q.jsonl",
        f"[{GOOD.strip()}, {GOOD.strip()}]",
        [
            "q.jsonl: the file is one JSON array, expected one object a line; convert it: "
            "jq -c '.[]' q.jsonl > q-lines.jsonl"
        ],
        None,
        {},
    ),
    ("a list", "q.jsonl", GOOD + "[1]\n", ["q.jsonl:2: expected a JSON object {...}, got a list"], (1, 2), {}),
    (
        "Latin-1",
        "q.jsonl",
        GOOD.encode() + '{"question": "café"}'.encode("latin-1"),
        [f"q.jsonl:2: not UTF-8: byte 0xe9 at byte offset {len(GOOD) + 17} of the file; {UTF8}"],
        (1, 2),
        {},
    ),
    (
        "UTF-16",
        "q.jsonl",
        GOOD.encode("utf-16"),
        ["q.jsonl: the file is UTF-16, expected UTF-8; convert it: iconv -f UTF-16 -t UTF-8 q.jsonl"],
        None,
        {},
    ),
    (
        "a NUL",
        "q.jsonl",
        GOOD + GOOD.replace("melts", "me\0lts"),
        ["q.jsonl:2: contains a NUL character; the file is damaged or not a text file"],
        (1, 2),
        {},
    ),
    (
        "an escaped NUL",
        "q.jsonl",
        GOOD + GOOD.replace("iron", "ir\\u0000on"),
        ["q.jsonl:2: choice B contains a NUL character; the file is damaged or not a text file"],
        (1, 2),
        {},
    ),
    (
        "a lone surrogate",
        "q.jsonl",
        GOOD + GOOD.replace("melts", "me\\ud800lts"),
        ["q.jsonl:2: question contains half of a surrogate pair, which is not a character; write the character itself"],
        (1, 2),
        {},
    ),
    (
        "a key given twice",
        "q.jsonl",
        GOOD + GOOD.replace('"choices"', '"question"', 1),
        ["q.jsonl:2: the key 'question' is given twice; keep one"],
        (1, 2),
        {},
    ),
    (
        "NaN",
        "q.jsonl",
        GOOD + GOOD.replace('"A"', "NaN"),
        ["q.jsonl:2: NaN is not a value; write null or a number"],
        (1, 2),
        {},
    ),
    (
        "a huge number",
        "q.jsonl",
        GOOD + GOOD.replace('"A"', "1" * 5000),
        ["q.jsonl:2: a number has too many digits"],
        (1, 2),
        {},
    ),
    (
        "nesting without end",
        "q.jsonl",
        GOOD + '{"question": ' + "[" * 100_000,
        ["q.jsonl:2: nested too deeply"],
        (1, 2),
        {},
    ),
    ("nothing", "q.jsonl", "", ["q.jsonl: the file is empty; expected one question a row"], None, {}),
    ("blank lines only", "q.jsonl", "\n\n \r\n", ["q.jsonl: the file is empty; expected one question a row"], None, {}),
    (
        "other column names",
        "q.jsonl",
        '{"query": "a", "options": ["x", "y"], "gold": "A"}',
        [
            "q.jsonl: no column 'question', 'choices', 'answer'; the columns are 'query', 'options', 'gold'. Say which "
            "they are: data.columns: {question: query, choices: options, answer: gold}; or give every row the same "
            "choices: data.choices: [first, second]"
        ],
        None,
        {},
    ),
    (
        "a misspelt column",
        "q.jsonl",
        '{"question": "a", "choises": ["x", "y"], "answer": "A"}',
        [
            "q.jsonl: no column 'choices'; the columns are 'question', 'choises', 'answer'. Say which they are: "
            "data.columns: {choices: choises}; or give every row the same choices: data.choices: [first, second]"
        ],
        None,
        {},
    ),
    (
        "no answers",
        "q.jsonl",
        line(answer=...),
        [
            "q.jsonl: no column 'answer'; the columns are 'question', 'choices'. Say which they are: "
            "data.columns: {answer: ...}. Only predict reads rows without answers"
        ],
        None,
        {},
    ),
    (
        "a mapping to a column that is not there",
        "q.jsonl",
        GOOD,
        [
            "q.jsonl: data.columns names 'qestion', but the columns are 'question', 'choices', 'answer'. The nearest "
            "to 'qestion' is 'question'."
        ],
        None,
        {"training": True, "config": data.DataConfig(columns=data.Columns(question="qestion"))},
    ),
    ("a row without a question", "q.jsonl", GOOD * 2 + line(question=...), ["q.jsonl:3: no 'question'"], (1, 3), {}),
    ("a row without choices", "q.jsonl", GOOD * 2 + line(choices=...), ["q.jsonl:3: no 'choices'"], (1, 3), {}),
    ("a null answer", "q.jsonl", GOOD + line(answer=None), [f"q.jsonl:2: {MISSING}"], (1, 2), {}),
    ("an empty answer", "q.jsonl", GOOD + line(answer=""), [f"q.jsonl:2: {MISSING}"], (1, 2), {}),
    (
        "a hidden answer",
        "q.jsonl",
        GOOD + line(answer=-1),
        ["q.jsonl:2: answer is -1, the mark of a hidden test label; only predict reads rows without answers"],
        (1, 2),
        {},
    ),
    (
        "a letter too far",
        "q.jsonl",
        GOOD * 3 + line(answer="E"),
        ["q.jsonl:4: answer 'E' is not one of the labels A, B"],
        (1, 4),
        {},
    ),
    (
        "a label that is not the row's own",
        "q.jsonl",
        line(choices={"text": ["a", "b"], "label": ["1", "2"]}, answer="2")
        + line(choices={"text": ["a", "b"], "label": ["1", "2"]}, answer="3"),
        ["q.jsonl:2: answer '3' is not one of the labels 1, 2"],
        (1, 2),
        {},
    ),
    (
        "a position too far",
        "q.jsonl",
        line(answer=0) * 2 + line(answer=5),
        ["q.jsonl:3: answer 5 is not a position from 0 to 1 (the file's answers are read as positions counted from 0)"],
        (1, 3),
        {},
    ),
    (
        "a text that is no choice",
        "q.jsonl",
        line(answer="ice") * 2 + line(answer="irom"),
        ["q.jsonl:3: answer 'irom' is not one of the choices 'ice', 'iron'. Did you mean 'iron'?"],
        (1, 3),
        {},
    ),
    (
        "letters and a text",
        "q.jsonl",
        GOOD * 2 + line(answer="iron"),
        [
            "q.jsonl:3: answer 'iron' is not one of the labels A, B (the file's answers are read as labels; here it "
            "could be the text of a choice)"
        ],
        (1, 3),
        {},
    ),
    (
        "letters and a number",
        "q.jsonl",
        GOOD * 2 + line(answer=1),
        [
            "q.jsonl:3: answer 1 is not one of the labels A, B (the file's answers are read as labels; here it could "
            "be a position counted from 0)"
        ],
        (1, 3),
        {},
    ),
    (
        "a boolean that means neither choice",
        "q.jsonl",
        GOOD * 2 + line(answer=True),
        ["q.jsonl:3: answer true is not one of the labels A, B"],
        (1, 3),
        {},
    ),
    (
        "a list of answers",
        "q.jsonl",
        GOOD * 2 + line(answer=["A"]),
        ["q.jsonl:3: answer is a list, expected one label"],
        (1, 3),
        {},
    ),
    (
        "an answer text that stands twice",
        "q.jsonl",
        line(answer="ice") * 2 + line(choices=["ice", "iron", "ice"], answer="ice"),
        ["q.jsonl:3: answer 'ice' is the text of two choices; write the letter of the right one"],
        (1, 3),
        {},
    ),
    ("one choice", "q.jsonl", GOOD + line(choices=["ice"]), ["q.jsonl:2: 1 choice, expected 2 to 26"], (1, 2), {}),
    ("no choices", "q.jsonl", GOOD + line(choices=[]), ["q.jsonl:2: 0 choices, expected 2 to 26"], (1, 2), {}),
    (
        "27 choices",
        "q.jsonl",
        GOOD + line(choices=[str(number) for number in range(27)]),
        ["q.jsonl:2: 27 choices, expected 2 to 26"],
        (1, 2),
        {},
    ),
    ("an empty choice", "q.jsonl", GOOD + line(choices=["ice", " "]), ["q.jsonl:2: choice B is empty"], (1, 2), {}),
    ("a null choice", "q.jsonl", GOOD + line(choices=["ice", None]), ["q.jsonl:2: choice B is null"], (1, 2), {}),
    (
        "a choice that is a list",
        "q.jsonl",
        GOOD + line(choices=["ice", ["iron"]]),
        ["q.jsonl:2: choice B is a list, expected text"],
        (1, 2),
        {},
    ),
    (
        "choices in one text",
        "q.jsonl",
        GOOD + line(choices="ice, iron"),
        [
            "q.jsonl:2: choices is one text, expected a list; if it holds several choices, name what separates them: "
            "data.choice_delimiter: '|'"
        ],
        (1, 2),
        {},
    ),
    (
        "choices that are a number",
        "q.jsonl",
        GOOD + line(choices=3),
        ["q.jsonl:2: choices is a number, expected a list of texts"],
        (1, 2),
        {},
    ),
    (
        "choices of two kinds",
        "q.jsonl",
        GOOD * 2 + line(choices="a) ice\nb) iron", answer="a"),
        [f"q.jsonl:3: choices are one delimited text, but a list at q.jsonl:1; {CHANGE}"],
        (1, 3),
        {},
    ),
    (
        "too few labels",
        "q.jsonl",
        GOOD + line(labels=["1"]),
        ["q.jsonl:2: labels: expected one for each of the 2 choices, got 1"],
        (1, 2),
        {},
    ),
    (
        "labels that repeat",
        "q.jsonl",
        GOOD + line(labels=["1", "1"]),
        ["q.jsonl:2: the labels 1, 1 repeat; every choice needs its own"],
        (1, 2),
        {},
    ),
    (
        "an id used twice",
        "q.jsonl",
        line(id="q7") + line(id="q8") + line(id="q7"),
        ["q.jsonl:3: id 'q7' is used twice (first at q.jsonl:1)"],
        (1, 3),
        {},
    ),
    (
        "a gold text at two letters, in training",
        "q.jsonl",
        GOOD + line(choices=["ice", "iron", "ice"]),
        [
            "q.jsonl:2: the gold text 'ice' stands at A and C: training would punish a right answer; "
            "make the choices distinct"
        ],
        (1, 2),
        {"training": True},
    ),
    ("an empty question", "q.jsonl", GOOD + line(question=" "), ["q.jsonl:2: question is empty"], (1, 2), {}),
    (
        "a question that is a number",
        "q.jsonl",
        GOOD + line(question=3),
        ["q.jsonl:2: question is a number, expected text"],
        (1, 2),
        {},
    ),
    (
        "a context that is a list",
        "q.jsonl",
        line(context="Hot.") + line(context=["Hot."]),
        ["q.jsonl:2: context is a list, expected text"],
        (1, 2),
        {},
    ),
    (
        "probabilities that do not sum to one",
        "q.jsonl",
        GOOD + line(true_probabilities=[0.5, 0.6]),
        ["q.jsonl:2: true_probabilities: expected 2 numbers from 0 to 1 with sum 1, got [0.5, 0.6]"],
        (1, 2),
        {},
    ),
    (
        "everything wrong in one row",
        "q.jsonl",
        GOOD + line(question="", choices=["a"]),
        ["q.jsonl:2: question is empty", "q.jsonl:2: 1 choice, expected 2 to 26"],
        (1, 2),
        {},
    ),
    (
        "free-form answers",
        "q.jsonl",
        '{"question": "How many?", "answer": "3 + 1 = 4\\n#### 4"}',
        [
            "q.jsonl: this looks like GSM8K: its answers are free-form text, not multiple choice. Give every question "
            "a list of choices in a column 'choices'"
        ],
        None,
        {},
    ),
    (
        "a comma too many",
        "q.csv",
        "question,A,B,answer\nWhich, really?,ice,iron,A\n",
        [
            "q.csv:2: 5 fields, but the header names 4; a field that contains a separator or a line break needs double "
            "quotes around it"
        ],
        (1, 1),
        {},
    ),
    (
        "a quote that is never closed",
        "q.csv",
        'question,A,B,answer\n"Which?,ice,iron,A\n',
        ["q.csv:2: not valid csv: a quoted field is never closed"],
        None,
        {},
    ),
    (
        "a column named twice",
        "q.csv",
        "question,A,A,answer\nWhich?,ice,iron,A\n",
        ["q.csv:1: the column 'A' is named twice in the header; rename one"],
        None,
        {},
    ),
    (
        "semicolons",
        "q.csv",
        "question;A;B;answer\nWhich?;ice;iron;A\n",
        ["q.csv:1: the columns seem to be separated by ';'; save it with commas"],
        None,
        {},
    ),
    ("a header alone", "q.csv", "question,A,B,answer\n", ["q.csv: no rows; expected one question a row"], None, {}),
    (
        "csv in Latin-1",
        "q.csv",
        "question,A,B,answer\nWhich?,café,iron,A\n".encode("latin-1"),
        [f"q.csv:2: not UTF-8: byte 0xe9 at byte offset 30 of the file; {UTF8}"],
        None,
        {},
    ),
    (
        "csv with a NUL",
        "q.csv",
        "question,A,B,answer\nWhich?,i\0ce,iron,A\n",
        ["q.csv:2: contains a NUL character; the file is damaged or not a text file"],
        None,
        {},
    ),
    (
        "a list printed by Python",
        "q.csv",
        "question,choices,answer\nWhich?,\"['ice', 'iron']\",A\n",
        [
            "q.csv:2: choices is text that starts like a list but is not JSON; write it with double quotes: "
            '["first", "second"]'
        ],
        (1, 1),
        {},
    ),
    ("a gap between choices", "q.csv", "question,A,B,C,answer\nW?,ice,,salt,A\n", ["q.csv:2: B is empty"], (1, 1), {}),
    (
        "numbers that could be texts or positions",
        "q.csv",
        "question,A,B,C,answer\nWhich?,1,2,3,2\n",
        [
            "q.csv: every answer could be the text of a choice or its position counted from 0; write the letters A, B, "
            "C, ... instead"
        ],
        None,
        {},
    ),
    (
        "no parquet",
        "q.parquet",
        b"PAR1 nonsense",
        [
            "q.parquet: not a readable parquet file (Could not open Parquet input source '<Buffer>': Parquet magic "
            "bytes not found in footer. Either the file is corrupted or this is not a parquet file.)"
        ],
        None,
        {},
    ),
    (
        "another kind of file",
        "q.xlsx",
        b"PK",
        ["q.xlsx: unknown kind of file '.xlsx'; expected .jsonl, .ndjson, .json, .csv, .tsv, .parquet"],
        None,
        {},
    ),
]


@pytest.mark.parametrize(("name", "file", "content", "problems", "rows", "options"), BAD, ids=[case[0] for case in BAD])
def test_a_bad_file_is_refused_with_this_sentence(write, name, file, content, problems, rows, options):
    with pytest.raises(UserError) as caught:
        data.load(write(content, file), **options)
    summary = []
    if rows:
        bad, total = rows
        summary = [
            f"{file}: {bad} bad row{'s' * (bad != 1)} of {total}, so nothing was read; correct the file (in "
            "training, --skip-bad-rows sets bad rows aside)"
        ]
    assert list(caught.value.problems) == problems + summary


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothere.jsonl", "nothere.jsonl: no such file. Did you mean 'there.jsonl'?"),
        ("./folder/x.csv", "./folder/x.csv: no such file; there is no folder folder either."),
        ("", "data: expected a task, a file or a hub id, got ''"),
        ("a\0b", "data: expected a task, a file or a hub id, got 'a\\x00b'"),
    ],
)
def test_a_source_that_is_not_there_is_refused(write, source, message):
    write(GOOD, "there.jsonl")
    with pytest.raises(UserError) as caught:
        data.load(source)
    assert str(caught.value) == message


def test_an_unknown_task_gets_the_nearest_name():
    with pytest.raises(
        UserError, match=r"^'openbokqa' is not a task, a file or a hub id .* Did you mean 'openbookqa'\?"
    ):
        data.load("openbokqa")


def test_a_hub_id_that_cannot_be_read_says_what_to_do():
    with pytest.raises(UserError) as caught:
        data.load("nobody/nothing-here@abc")
    assert str(caught.value).startswith("nobody/nothing-here, revision 'abc': the hub data set could not be read (")
    assert "go online, or save its rows as a jsonl file" in str(caught.value)


def test_a_task_without_data_at_the_root_says_where_it_would_come_from(tmp_path):
    with pytest.raises(data.NoData) as caught:
        data.load("climaqa", root=tmp_path)
    assert str(caught.value) == (
        f"task 'climaqa' has no data for split 'test': no file {tmp_path}/climaqa/test.jsonl. It comes from the hub "
        "data set UCSD-GENIE/ClimaQA (Gold mcq): use --data-root hub, or save it there as jsonl"
    )


def test_a_task_says_which_splits_it_has():
    with pytest.raises(UserError, match=r"^task 'boolq' has no split 'test'. Splits: train, validation$") as caught:
        data.load("boolq", split="test")
    assert not isinstance(caught.value, data.NoData)  # which would leave an evaluation out: here is a mistake


def test_all_bad_rows_are_listed_at_once_but_not_without_end(write):
    with pytest.raises(UserError) as caught:
        data.load(write(GOOD * 50 + line(answer="E") * 30))
    assert caught.value.problems[0] == "q.jsonl:51: answer 'E' is not one of the labels A, B"
    assert len(caught.value.problems) == 22
    assert caught.value.problems[-2] == "... and 10 more problems"
    assert caught.value.problems[-1].startswith("q.jsonl: 30 bad rows of 80, so nothing was read")


def test_bad_rows_are_set_aside_with_their_reasons_when_asked(write):
    found = data.load(write(GOOD + "{broken\n" + line(answer="E") + GOOD), config=data.DataConfig(skip_bad_rows=True))
    assert len(found) == 2
    assert [row.place for row in found.skipped] == ["q.jsonl:2", "q.jsonl:3"]
    rejected = [json.loads(row) for row in found.rejected_jsonl().splitlines()]
    assert rejected[1]["reasons"] == ["answer 'E' is not one of the labels A, B"]
    assert json.loads(rejected[1]["row"])["answer"] == "E"
    assert found.rejected_name == "my-q.rejected.jsonl"
    assert "q.jsonl: 2 rows of 4 bad and set aside" in found.notes


def test_a_file_without_any_good_row_is_refused_even_then(write):
    with pytest.raises(UserError, match=r"q\.jsonl: no good row is left$"):
        data.load(write(line(answer="E") * 2), config=data.DataConfig(skip_bad_rows=True))


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_are_accepted(write):
    found = data.load(write(b"\xef\xbb\xbf" + GOOD.strip().encode() + b"\r\n\r\n  \r\n" + line(answer="B").encode()))
    assert [question.gold for question in found.questions] == ["A", "B"]
    assert found.questions[1].place == "q.jsonl:4"


def read(write, rows: str | list[dict[str, Any]], **options: Any) -> tuple[Question, ...]:
    content = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    return data.load(write(content), **options).questions


def test_choices_are_read_in_every_form(write):
    forms: list[Any] = [
        ["ice", "iron", "salt"],
        {"text": ["ice", "iron", "salt"], "label": ["A", "B", "C"]},
        [{"text": "ice", "label": "A"}, {"text": "iron", "label": "B"}, {"text": "salt", "label": "C"}],
        {"A": "ice", "B": "iron", "C": "salt"},
        '["ice", "iron", "salt"]',
        "A) ice\n--------------------\nB) iron\n--------------------\nC) salt",
        "A. ice\nB. iron\nC. salt",
        "(A) ice\n(B) iron\n(C) salt",
    ]
    for form in forms:
        (question,) = read(write, [{"question": "Which?", "choices": form, "answer": "B"}])
        assert (question.choices, question.labels, question.gold) == (("ice", "iron", "salt"), ("A", "B", "C"), "B")


def test_a_delimiter_can_be_named(write):
    config = data.DataConfig(choice_delimiter="|")
    (question,) = read(write, [{"question": "Which?", "choices": "ice | iron", "answer": "iron"}], config=config)
    assert question.choices == ("ice", "iron")
    assert question.gold == "B"


def test_numbers_as_choices_become_text(write):
    (question,) = read(write, [{"question": "3 << 1?", "choices": [1, 3, 6.5, "16"], "answer": 3}])
    assert question.choices == ("1", "3", "6.5", "16")
    assert question.gold == "D"


def four(*labels: str) -> Choices:
    labelled = bool(labels)
    return Choices(("ice", "iron", "salt", "sand"), labels or ("A", "B", "C", "D"), labelled, "a list")


@pytest.mark.parametrize(
    ("answers", "choices", "expected"),
    [
        (["A", "D"], four(), (0, 3)),
        (["a", "d"], four(), (0, 3)),
        (["a)", "(B)", "C.", "D:"], four(), (0, 1, 2, 3)),
        (["1", "4"], four("1", "2", "3", "4"), (0, 3)),
        ([1, 4], four("1", "2", "3", "4"), (0, 3)),
        (["iron", " sand "], four(), (1, 3)),
        ([0, 3, 1], four(), (0, 3, 1)),
        ([1, 4, 2], four(), (0, 3, 1)),
        (["1", "4", "2"], four(), (0, 3, 1)),
        ([2.0, 0.0], four(), (2, 0)),
        ([0, 2], four("w", "x", "y", "z"), (0, 2)),
        ([True, False], Choices(("no", "yes"), ("A", "B"), False, "a list"), (1, 0)),
        (["True", "false"], Choices(("no", "yes"), ("false", "true"), True, "a list"), (1, 0)),
        ([1, 0], Choices(("neg", "pos"), ("neg", "pos"), True, "a list"), (1, 0)),
        ([2], Choices(("1", "2", "3"), ("A", "B", "C"), False, "a list"), (2,)),
        (["2"], Choices(("1", "2", "3"), ("A", "B", "C"), False, "a list"), (1,)),
    ],
)
def test_answers_are_looked_up_by_one_reading_for_the_whole_file(answers, choices, expected):
    assert answer_indices(answers, [choices] * len(answers)).results == expected


def test_rows_labelled_with_letters_and_digits_may_stand_in_one_file():
    found = answer_indices(
        ["C", "3", "B"], [four("A", "B", "C", "D"), four("1", "2", "3", "4"), four("A", "B", "C", "D")]
    )
    assert found.results == (2, 2, 1)


def test_zero_is_never_a_position_where_the_labels_are_digits():
    (result,) = answer_indices(["0"], [four("1", "2", "3", "4")]).results
    assert result == "answer '0' is not one of the labels 1, 2, 3, 4"


def test_a_reading_other_than_labels_is_reported(write):
    assert data.load(write(line(answer=0) + line(question="Which?", answer=1))).notes == (
        "q.jsonl: answer is read as positions counted from 0",
    )
    assert data.load(write(line(answer=1) + line(answer=2))).notes[0] == (
        "q.jsonl: answer is read as positions counted from 1"
    )
    assert data.load(write(line(choices=["a", "b", "c"], answer=1) * 2)).notes[0] == (
        "q.jsonl: answer is read as positions counted from 0; no row says whether they are counted from 0 or from 1"
    )


COUNTED = "no row says whether they are counted from 0 or from 1"


def test_what_numbers_count_from_can_be_said_where_no_row_says_it(write):
    file = write(line(choices=["a", "b", "c"], answer=1) * 2)
    found = data.load(file, training=True)
    assert (found.counted, found.questions[0].gold) == ("index", "B")
    assert found.notes[0].endswith(f"from 0; {COUNTED}: set data.answers to index or position if you know")
    found = data.load(file, training=True, config=data.DataConfig(answers="position"))
    assert (found.counted, found.questions[0].gold) == ("position", "A")
    assert found.notes[0] == "q.jsonl: answer is read as positions counted from 1"
    with pytest.raises(UserError, match="answer 0 is not a position from 1 to 2"):
        data.load(write(line(answer=0) + line(answer=1)), training=True, config=data.DataConfig(answers="position"))
    assert data.load(write(line(answer="A") * 2)).counted is None


def test_numbers_of_another_file_count_as_in_training_unless_its_rows_say_otherwise(write):
    config = data.DataConfig().for_others("position")
    found = data.load(write(line(choices=["a", "b", "c"], answer=1) * 2), config=config)
    assert (found.counted, found.questions[0].gold) == ("position", "A")
    assert f"from 1; {COUNTED}, so they are read as those trained on" in found.notes[0]
    found = data.load(write(line(answer=0) + line(question="Which?", answer=1)), config=config)
    assert [question.gold for question in found.questions] == ["A", "B"]
    assert found.notes == ("q.jsonl: answer is read as positions counted from 0",)


def test_texts_that_look_like_numbers_stay_texts_whatever_training_counted_from(write):
    rows = line(question="2+2?", choices=["3", "4", "5", "1"], answer="4")
    rows += line(question="1+2?", choices=["1", "4", "2", "3"], answer="3")
    for counted in ("position", "index", None):
        found = data.load(write(rows), config=data.DataConfig().for_others(counted))
        assert ([question.gold for question in found.questions], found.counted) == (["B", "D"], None)
    table = write("question,A,B,C,D,answer\n2+2?,3,4,2,1,4\n1+2?,1,4,2,3,3\n", "q.csv")
    with pytest.raises(UserError, match="text of a choice or its position counted from 1"):
        data.load(table, config=data.DataConfig().for_others("position"))


def test_said_to_be_numbers_answers_are_not_the_texts_of_choices_in_a_table(write):
    file = write("question,A,B,C,answer\nWhich?,2,1,0,1\nWhat?,1,2,0,2\n", "q.csv")
    with pytest.raises(UserError, match="every answer could be the text of a choice or its position counted from 0"):
        data.load(file, training=True)
    found = data.load(file, training=True, config=data.DataConfig(answers="index"))
    assert [question.gold for question in found.questions] == ["B", "C"]


def test_composed_and_decomposed_accents_are_the_same_answer(write):
    (question,) = read(write, [{"question": "Which?", "choices": ["cafe\u0301", "tea"], "answer": "caf\u00e9"}])
    assert question.gold == "A"


def test_a_csv_has_its_choices_in_columns_and_may_have_fewer_in_a_row(write):
    table = 'question,A,B,C,answer\n"Which, of two\nlines?",ice,iron,salt,C\nWhich?,yes,no,,B\n'
    found = data.load(write(table, "q.csv"))
    assert [len(question.choices) for question in found.questions] == [3, 2]
    assert [question.place for question in found.questions] == ["q.csv:2", "q.csv:4"]
    assert found.questions[0].question == "Which, of two\nlines?"
    assert found.choice_counts == {2: 1, 3: 1}


def test_lettered_choices_that_few_rows_have_are_read_too(write):
    three = {"question": "Which?", "A": "ice", "B": "iron", "C": "salt", "answer": "C"}
    found = data.load(write("".join(json.dumps(row) + "\n" for row in [three] * 4 + [{**three, "D": "sand"}])))
    assert [len(question.choices) for question in found.questions] == [3, 3, 3, 3, 4]
    assert found.questions[4].choices[3] == "sand"
    gap = {key: value for key, value in three.items() if key != "C"} | {"D": "sand", "answer": "A"}
    with pytest.raises(UserError, match=r"q\.jsonl:3: C is null"):
        data.load(write("".join(json.dumps(row) + "\n" for row in [three, three, gap])))


def test_a_csv_may_hold_json_lists_and_tabs(write):
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t").writerows([["question", "choices", "answer"], ["W?", '["ice", "iron"]', "1"]])
    (question,) = data.load(write(buffer.getvalue(), "q.tsv"), config=data.DataConfig()).questions
    assert question.choices == ("ice", "iron")


def test_parquet_reads_like_jsonl(write):
    rows = [json.loads(line(answer=letter, id=letter)) for letter in "AB"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "q.parquet")
    found = data.load("q.parquet")
    assert [question.gold for question in found.questions] == ["A", "B"]
    assert found.questions[1].place == "q.parquet:row 2"
    assert found.questions[0].choices == ("ice", "iron")


def test_columns_can_be_mapped_and_labels_shared(write):
    config = data.DataConfig(columns=data.Columns(question="text", answer="mood"), choices=("neg", "pos"))
    rows = [{"text": "Lovely.", "mood": "pos"}, {"text": "Awful.", "mood": "neg"}]
    questions = read(write, rows, config=config, training=True)
    assert [question.gold for question in questions] == ["pos", "neg"]
    assert questions[0].labels == ("neg", "pos")
    config = data.DataConfig(columns=data.Columns(question="q", choices=("x", "y"), answer="gold", context="p", id="n"))
    (question,) = read(write, [{"q": "W?", "x": "ice", "y": "iron", "gold": "B", "p": "Hot.", "n": 7}], config=config)
    assert (question.choices, question.gold, question.context, question.id) == (("ice", "iron"), "B", "Hot.", "7")


def test_a_mapping_is_for_the_file_that_was_trained_on(write):
    config = data.DataConfig(columns=data.Columns(question="text", choices="opts", answer="mood"), choices=None)
    assert read(write, GOOD, config=config)[0].gold == "A"
    labels = data.DataConfig(choices=("neg", "pos"))
    assert read(write, GOOD, config=labels)[0].choices == ("ice", "iron")


def test_a_mapping_of_the_answer_does_not_hinder_predicting(write):
    config = data.DataConfig(columns=data.Columns(question="q", answer="gold"))
    rows = [{"q": "Which?", "choices": ["ice", "iron"]}]
    (question,) = read(write, rows, config=config, need_answers=False)
    assert question.answer is None


def test_a_mapped_choices_column_is_never_read_as_a_public_data_set(write):
    rows = [{"question": "Which?", "opts": ["ice", "iron"], "correct_answer": "iron", "distractor1": "ice"}]
    config = data.DataConfig(columns=data.Columns(choices="opts", answer="correct_answer"))
    (question,) = read(write, rows, config=config, training=True)
    assert (question.choices, question.gold) == (("ice", "iron"), "B")


def test_answers_may_be_unknown_where_they_are_not_needed(write):
    questions = read(write, [{"question": "W?", "choices": ["a", "b"]}], need_answers=False)
    assert questions[0].answer is None
    questions = read(write, GOOD + line(answer=None) + line(answer=-1), need_answers=False)
    assert [question.gold for question in questions] == ["A", None, None]
    found = data.read_file(write(GOOD), require_answers=False)
    assert found.questions[0].gold == "A"


def test_hidden_and_blank_answers_are_known_in_tables_too(write):
    for answers, golds in (("0,-1,2, ", ["A", None, "C", None]), ("A, ,-1,B", ["A", None, None, "B"])):
        table = "question,A,B,C,answer\n" + "".join(f"Which?,ice,iron,salt,{word}\n" for word in answers.split(","))
        found = data.read_file(write(table, "q.csv"), require_answers=False)
        assert [question.gold for question in found.questions] == golds
    with pytest.raises(UserError) as caught:
        data.load(write("question,A,B,answer\nWhich?,ice,iron,-1\nWhich?,ice,iron, \n", "q.csv"))
    assert [problem.partition("; only predict")[0] for problem in caught.value.problems[:2]] == [
        "q.csv:2: answer is -1, the mark of a hidden test label",
        "q.csv:3: answer is missing",
    ]


def test_minus_one_is_an_answer_where_every_row_that_says_so_offers_it(write):
    def golds(*rows: dict[str, Any]) -> list[str | None]:
        questions = read(write, [{"question": "1 - 2?", **row} for row in rows], need_answers=False)
        return [None if q.answer is None else q.choices[q.answer] for q in questions]

    for minus_one in (-1, "-1", " -1 "):
        sums = {"choices": ["-1", "3", "0"], "answer": minus_one}
        assert golds(sums, {**sums, "answer": "3"}) == ["-1", "3"]
        assert golds(sums, {"choices": ["1", "3"], "answer": minus_one}) == [None, None]
    moods = data.DataConfig(choices=("-1", "0", "1"))
    rows = [{"question": "Lovely.", "answer": 1}, {"question": "Awful.", "answer": -1}]
    assert [question.gold for question in read(write, rows, config=moods, training=True)] == ["1", "-1"]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([False, True], 'Quote them: ["no", "yes"]'),
        (["a"], "expected 2 to 26 choices, got 1"),
        (["a", "a "], "the choices must be distinct"),
        (["a", " "], "a choice is empty"),
    ],
)
def test_shared_choices_are_checked(choices, message):
    with pytest.raises(ValueError, match="choices") as caught:
        data.DataConfig(choices=choices)
    assert message in str(caught.value)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="calibration_fracton"):
        data.DataConfig.model_validate({"calibration_fracton": 0.2})
    with pytest.raises(ValueError, match="less than 1"):
        data.DataConfig(calibration_fraction=1.0)


def test_columns_that_are_not_read_are_named(write):
    (note,) = data.load(write(line(article="Ice is cold.", source="x"))).notes
    assert note == "q.jsonl: columns not read: 'article', 'source' (a passage? data.columns: {context: ...})"
    config = data.DataConfig(columns=data.Columns(context="article"))
    found = data.load(write(line(article="Ice is cold.", source="x")), config=config)
    assert found.questions[0].context == "Ice is cold."
    assert found.notes == ("q.jsonl: columns not read: 'source'",)


def test_equal_choices_warn_and_are_counted_and_a_gold_text_at_two_letters_too(write):
    rows = GOOD + line(choices=["ice", "ice", "iron"], answer="C") + line(choices=["ice", "iron", "ice"])
    assert data.load(write(rows)).notes == (
        "q.jsonl: 2 rows with two equal choices (q.jsonl:2, 3)",
        "q.jsonl: 1 row whose gold text stands at two letters (q.jsonl:3)",
    )


def test_repeats_and_a_single_label_are_reported(write):
    assert data.load(write(GOOD * 3)).notes == (
        "q.jsonl: 2 rows with the question and choices of an earlier one",
        "q.jsonl: every answer is 'A'; AUROC and ECE say little on such data",
    )


def test_missing_ids_are_content_and_row_number(write):
    first, second = read(write, GOOD * 2)
    assert first.id.endswith("-1")
    assert second.id.endswith("-2")
    assert first.id[:-2] == second.id[:-2]
    assert read(write, line(question="Which melts now?"))[0].id[:-2] != first.id[:-2]
    assert read(write, line(id=None) + line(id=5))[1].id == "5"


def test_a_file_is_named_after_its_folder_and_carries_its_hash(write):
    name = write(GOOD, "exam.jsonl")
    found = data.load(name)
    assert (found.name, found.split, found.path, found.default_split) == ("my-exam", "all", "exam.jsonl", True)
    import hashlib

    assert found.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()
    assert data.load(write(GOOD, "test.jsonl"), split="test").split == "test"
    with pytest.raises(UserError, match="one file is one split, so there is no split 'test' in it"):
        data.load("exam.jsonl", split="test")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dir2-данные", "dir2-данные"),
        ("dir2-вопросы (v2)", "dir2-вопросы-v2"),
        ("问题集", "问题集"),
        ("cafe\u0301", "caf\u00e9"),
        ("हिन्दी", "हिन्दी"),
        ("my data/+exam=1*", "my-data-exam1"),
        ("../..", "data"),
        ("\udcff\u202e?", "data"),
        ("字" * 90, "字" * 66),
    ],
)
def test_a_name_keeps_the_letters_of_any_script(text, name):
    assert safe_name(text) == name


def test_a_folder_of_split_files_is_read_strictly(write):
    Path("set").mkdir()
    write(GOOD, "set/train.jsonl")
    write(line(answer="B"), "set/validation.jsonl")
    assert data.load("./set").questions[0].gold == "B"
    assert data.load("./set", training=True).questions[0].gold == "A"
    assert data.load("set/train.jsonl").name == "set-train"


@pytest.fixture
def hub_folder(write) -> Path:
    """A folder in the hub's format, as ``datasets.load_dataset`` reads it."""
    folder = Path("owner-set")
    (folder / "data").mkdir(parents=True)
    for split, letter in (("train", "A"), ("dev", "B")):
        rows = [json.loads(line(answer=letter, id=f"{split}-{n}")) for n in range(3)]
        name = {"train": "train", "dev": "validation"}[split]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


def test_a_folder_in_hub_format_is_read_through_datasets(hub_folder):
    found = data.load(hub_folder)
    assert [question.gold for question in found.questions] == ["B", "B", "B"]
    assert (found.name, found.split, len(found.sha256)) == ("owner-set", "validation", 64)
    assert found.questions[0].place == "owner-set[validation]:row 1"
    assert data.load(hub_folder, training=True).questions[0].id == "train-0"
    config = data.DataConfig(splits={"test": "validation"})
    assert data.load(hub_folder, split="test", config=config).split == "test"
    with pytest.raises(
        UserError, match=r"^owner-set: no split 'trian' \(available: train, validation\)\. Did you mean"
    ):
        data.load(hub_folder, split="trian")


def test_overlap_names_the_questions_seen_before(write):
    first = read(write, GOOD)
    second = read(write, line(question=" which MELTS? ") + line(question="Which floats?"))
    assert data.overlap(first, second) == (second[0].id,)


# The calibration split


def numbered(count: int, same: int = 1) -> list[Question]:
    return [Question(f"q{n}", f"Question {n // same}?", ("yes", "no"), ("A", "B"), 0) for n in range(count)]


def test_the_calibration_split_is_a_share_of_train_that_depends_on_ids_and_seed_alone():
    questions = numbered(1000)
    fit, calibration = data.split_calibration(questions, 0.1, seed=1)
    assert len(calibration) == 100
    assert sorted((*fit, *calibration), key=lambda q: int(q.id[1:])) == questions
    backwards = data.split_calibration(questions[::-1], 0.1, seed=1)[1]
    assert set(backwards) == set(calibration)
    other = data.split_calibration(questions, 0.1, seed=2)[1]
    assert len(set(other) & set(calibration)) < 30


def test_equal_questions_stay_on_one_side():
    fit, calibration = data.split_calibration(numbered(600, same=3), 0.1, seed=0)
    assert {q.question for q in fit}.isdisjoint(q.question for q in calibration)
    assert len(calibration) == 60


def test_the_same_question_on_different_contexts_is_not_the_same():
    asked = numbered(200)
    on_passages = [replace(question, question="What follows?", context=f"Of {question.id}.") for question in asked]
    fit, calibration = data.split_calibration(on_passages, 0.1, seed=0)
    assert (len(fit), len(calibration)) == (180, 20)
    twice = [*on_passages, *(replace(question, id=f"again-{question.id}") for question in on_passages)]
    fit, calibration = data.split_calibration(twice, 0.1, seed=0)
    assert {question.context for question in fit}.isdisjoint(question.context for question in calibration)
    assert data.overlap(on_passages[:2], on_passages[1:3]) == ("q1",)


def test_a_calibration_split_far_smaller_than_asked_for_is_told():
    same = numbered(195, same=195)
    odd = [replace(question, id=f"odd-{question.id}", question=f"Odd {question.id}?") for question in numbered(5)]
    train = data.QuestionSet("mine", "train", (*same, *odd), "q.jsonl", "")
    config = data.DataConfig()
    _, calibration = data.calibration_split(train, config=config, seed=1)
    assert data.calibration_notes(train, calibration, config=config) == (
        "data.calibration_fraction: 5 of 200 rows are kept for calibration, where 20 were asked for: rows with the same "
        "question text and context stay together, and there are too few different ones",
    )
    usual = replace(train, questions=tuple(numbered(200)))
    assert data.calibration_notes(usual, numbered(20), config=config) == ()
    assert data.calibration_notes(train, (), config=data.DataConfig(calibration_fraction=0)) == ()


def limited(questions, number, seed=1, fraction=0.0):
    train = data.QuestionSet("mine", "train", tuple(questions), "q.jsonl", "")
    config = data.DataConfig(limit=number, calibration_fraction=fraction)
    return data.calibration_split(train, config=config, seed=seed)


def test_a_limit_draws_training_questions_by_seed_and_content_alone():
    questions = numbered(200)
    fit, calibration = limited(questions, 50)
    assert (len(fit), calibration) == (50, ())
    assert list(fit) == [question for question in questions if question in fit]  # in the order given
    assert set(limited(questions[::-1], 50)[0]) == set(fit)
    renamed = [replace(question, id=f"other-{question.id}") for question in questions]
    assert [question.question for question in limited(renamed, 50)[0]] == [question.question for question in fit]
    assert set(limited(questions, 20)[0]) < set(fit)
    assert set(limited(questions, 50, seed=2)[0]) != set(fit)


def test_the_calibration_split_is_cut_from_what_the_limit_leaves():
    fit, calibration = limited(numbered(200), 50, fraction=0.2)
    assert (len(fit), len(calibration)) == (40, 10)
    assert {*fit, *calibration} == set(limited(numbered(200), 50)[0])


def test_a_limit_over_the_number_of_questions_takes_them_all():
    questions = tuple(numbered(7))
    assert limited(questions, 7) == limited(questions, 8) == limited(questions, None) == (questions, ())


def test_a_limit_leaves_other_splits_alone(write):
    name = write("".join(line(question=f"Which melts in case {n}?") for n in range(9)), "test.jsonl")
    assert len(data.load(name, config=data.DataConfig(limit=3))) == 9


def test_small_and_absent_calibration_splits():
    assert len(data.split_calibration(numbered(3), 0.1, seed=0)[1]) == 1
    assert data.split_calibration(numbered(3), 0.0, seed=0)[1] == ()
    with pytest.raises(UserError, match="too few different texts"):
        data.split_calibration(numbered(3, same=3), 0.1, seed=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(1, 4), st.floats(0.0, 0.9), st.integers(0, 2**32 - 1))
def test_the_two_sides_share_nothing_and_lose_nothing(count, same, fraction, seed):
    questions = numbered(count, same)
    try:
        fit, calibration = data.split_calibration(questions, fraction, seed)
    except UserError:
        return
    assert len(fit) + len(calibration) == count
    assert {q.question for q in fit}.isdisjoint(q.question for q in calibration)
    assert fit


# Whatever the bytes are, the reader returns questions or raises UserError.

VALID = "".join(line(id=str(n), answer="AB"[n % 2], context="Été.") for n in range(4)).encode()
TABLE = "question,A,B,answer\n" + "".join(f'"Which, {n}?",ice,iron,{"AB"[n % 2]}\n' for n in range(4))
edits = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 12), st.binary(max_size=6)), min_size=1, max_size=6
)  # place, bytes removed, bytes put in


def mangled(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for place, removed, added in changes:
        content = content[:place] + added + content[place + removed :]
    return content


def survives(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for options in ({}, {"training": True}, {"need_answers": False, "config": data.DataConfig(skip_bad_rows=True)}):
        try:
            found = data.load(path, **options)  # type: ignore[arg-type]
            problems, questions = found.notes, found.questions
        except UserError as error:
            problems, questions = error.problems, ()
            assert problems, "an error without a sentence"
        assert all(problem.isprintable() for problem in problems)
        assert all(2 <= len(question.choices) <= 26 for question in questions)


relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@relaxed
@given(edits)
def test_mangled_json_lines_never_raise_anything_else(tmp_path, changes):
    survives(tmp_path / "q.jsonl", mangled(VALID, changes))


@relaxed
@given(edits)
def test_mangled_tables_never_raise_anything_else(tmp_path, changes):
    survives(tmp_path / "q.csv", mangled(TABLE.encode(), changes))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits)
def test_mangled_parquet_never_raises_anything_else(tmp_path, changes):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([json.loads(GOOD)] * 3), buffer)
    survives(tmp_path / "q.parquet", mangled(buffer.getvalue(), changes))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 30) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(
    ["question", "choices", "answer", "labels", "id", "context", "answerKey", "passage", "subject", "Options", "A", "B"]
)


@relaxed
@given(st.lists(st.dictionaries(keys, json_values, max_size=7), min_size=1, max_size=4))
def test_any_json_values_in_known_columns_never_raise_anything_else(tmp_path, rows):
    survives(tmp_path / "q.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def test_ten_thousand_rows_are_read_in_two_seconds(write):
    import time

    name = write("".join(line(question=f"Which melts in case {n}?", context="word " * 60) for n in range(10_000)))
    started = time.process_time()
    assert len(data.load(name)) == 10_000
    assert time.process_time() - started < 2
