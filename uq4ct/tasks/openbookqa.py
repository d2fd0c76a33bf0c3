"""OpenBookQA (Mihaylov et al., 2018): the paper's fine-tuning task for Tables 1 to 6."""

from collections.abc import Mapping

from uq4ct.tasks.base import Row, Schema, Task, splits_of

# The fact that the crowd worker began with mostly gives the answer away: it is left out, with what the hub's
# "additional" subset says of the question and of who judged it.
_ADDITIONAL = ("fact1", "humanScore", "clarity", "turkIdAnonymized")

SCHEMA = Schema(name="OpenBookQA", question="question_stem", answer="answerKey", ignored=_ADDITIONAL)


def _nested(row: Row) -> bool:
    return isinstance(row.get("question"), Mapping)


def _unpack(row: Row) -> Row:
    inner = row.get("question")
    if not isinstance(inner, Mapping):
        return row
    return {**row, "question": inner.get("stem"), "choices": inner.get("choices")}


ORIGINAL = Schema(
    name="AI2's original files (OpenBookQA, ARC)",
    answer="answerKey",
    recognise=_nested,
    unpack=_unpack,
    absent=("choices",),
    ignored=_ADDITIONAL,
)

TASK = Task(
    name="openbookqa",
    summary="OpenBookQA, elementary science, 4 choices",
    schema=SCHEMA,
    splits=splits_of("openbookqa", ("train", "validation", "test"), subset="main"),
    hub_id="allenai/openbookqa",
)
