"""SciQ (Welbl et al., 2017): the gold choice has its own column, so the choices are shuffled by content hash."""

from uq4ct.tasks.base import Schema, Task, splits_of

# The supporting paragraph mostly states the answer: it is left out, so that the question is asked closed-book.
SCHEMA = Schema(
    name="SciQ",
    choices=("correct_answer", "distractor1", "distractor2", "distractor3"),
    answer="correct_answer",
    ignored=("support",),
    gold_first=True,
)

TASK = Task(
    name="sciq",
    summary="SciQ, science exam questions, 4 choices, without the supporting paragraph",
    schema=SCHEMA,
    splits=splits_of("sciq", ("train", "validation", "test")),
    hub_id="allenai/sciq",
)
