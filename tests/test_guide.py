"""docs/guide.md adds a method, a task and a metric: its diffs apply to this package and do what the guide says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from uq4ct import cli

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"^```diff\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
NAMES = {"methods": "ia3", "tasks": "commonsense_qa", "metrics": "confident_errors"}
QUESTION = json.loads(re.search(r"^```json\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)[1])

LOOK = """
import json, sys
from pathlib import Path
from uq4ct import catalogue, data
from uq4ct.metrics import Answers, summarize

listed = {kind: {row["name"]: row["summary"] for row in catalogue.KINDS[kind](Path())} for kind in sys.argv[2].split()}
(question,) = data.load("commonsense_qa", root=sys.argv[1]).questions
sure = Answers.of([[0.97, 0.03], [0.95, 0.05], [0.6, 0.4], [0.55, 0.45]], answer=[1, 0, 0, 1])
heavy = sorted({"torch", "transformers", "peft"} & set(sys.modules))
facts = {"gold": question.choices[question.answer], "confident_errors": summarize(sure)["confident_errors"]}
print(json.dumps({"listed": listed, "heavy": heavy, **facts}))
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """What a copy of the package says of itself after the three diffs."""
    copy = tmp_path_factory.mktemp("guide")
    leave_out = shutil.ignore_patterns("__pycache__", "model", "*.jsonl")
    shutil.copytree(ROOT / "uq4ct", copy / "uq4ct", ignore=leave_out)
    (copy / "data" / "commonsense_qa").mkdir(parents=True)
    (copy / "data" / "commonsense_qa" / "validation.jsonl").write_text(json.dumps(QUESTION) + "\n", encoding="utf-8")
    alone = {"GIT_CEILING_DIRECTORIES": str(copy.parent)}  # inside a repository git apply would look at that one
    for diff in DIFFS:
        applied = subprocess.run(
            ["git", "apply", "-"], input=diff, cwd=copy, text=True, capture_output=True, env=os.environ | alone
        )
        assert applied.returncode == 0, applied.stderr
    looked = subprocess.run(
        [sys.executable, "-c", LOOK, str(copy / "data"), " ".join(NAMES)],
        cwd=copy,
        text=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(copy)},
    )
    assert looked.returncode == 0, looked.stderr
    return json.loads(looked.stdout)


def test_each_diff_touches_one_file():
    touched = [re.findall(r"^\+\+\+ b/uq4ct/(\w+)/", diff, re.MULTILINE) for diff in DIFFS]
    assert touched == [["methods"], ["tasks"], ["metrics"]]


@pytest.mark.parametrize("kind", NAMES)
def test_what_is_added_is_listed_as_the_guide_shows_it(changed, kind):
    name = NAMES[kind]
    assert re.search(rf"^{name} +{re.escape(changed['listed'][kind][name])}$", GUIDE, re.MULTILINE)


def test_listing_loads_no_model_library(changed):
    assert changed["heavy"] == []


def test_the_added_task_reads_the_row_of_the_guide(changed):
    assert changed["gold"] == "doormat"


def test_the_added_metric_counts_wrong_answers_that_were_sure(changed):
    assert changed["confident_errors"] == 0.25


def test_every_flag_of_the_guide_exists():
    verbs = typer.main.get_command(cli.app).commands.values()
    flags = {flag for verb in verbs for parameter in verb.params for flag in parameter.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", GUIDE)) <= flags
