"""Data sets whose answers are free text: recognised, so that the refusal can say what they are."""

from collections.abc import Mapping

from uq4ct.tasks.base import Row, Schema


def _refusal(what: str) -> str:
    return (
        f"this looks like {what}: its answers are free-form text, not multiple choice. Give every question a list of "
        "choices in a column 'choices'"
    )


def _aliases(row: Row) -> bool:
    answer = row.get("answer")
    return isinstance(answer, Mapping) and ("value" in answer or "aliases" in answer)


def _worked_solution(row: Row) -> bool:
    return "####" in str(row.get("answer"))


def _references(row: Row) -> bool:
    return isinstance(row.get("answer"), list)


TRIVIA_QA = Schema(
    name="TriviaQA",
    choices=None,
    marks=("answer",),
    absent=("choices",),
    recognise=_aliases,
    refusal=_refusal("TriviaQA"),
)
GSM8K = Schema(
    name="GSM8K",
    choices=None,
    marks=("answer",),
    absent=("choices",),
    recognise=_worked_solution,
    refusal=_refusal("GSM8K"),
)
NQ_OPEN = Schema(
    name="NQ-open",
    choices=None,
    marks=("answer",),
    absent=("choices",),
    recognise=_references,
    refusal=_refusal("NQ-open"),
)
COQA = Schema(name="CoQA", question="questions", choices=None, marks=("story", "answers"), refusal=_refusal("CoQA"))
