"""ClimaQA (the paper's ClimateQA): climate questions from textbooks; the options are one delimited string.

The released set has no train or validation split and the paper does not say what it used. Our reading: fine-tune on
Silver (generated, not checked), evaluate on Gold (checked by experts; rows that failed the check are left out).
"""

from uq4ct.tasks.base import Part, Row, Schema, Task


def _validated(row: Row) -> bool:
    return str(row.get("Validation", True)).casefold() != "false"


SCHEMA = Schema(
    name="ClimaQA",
    question="Question",
    choices="Options",
    answer="Answer",
    id=None,
    ignored=("Validation",),
    keep=_validated,
)

TASK = Task(
    name="climaqa",
    summary="ClimaQA (ClimateQA in the paper), climate science, 4 choices; Silver to train, Gold to test",
    schema=SCHEMA,
    splits={
        "train": (Part("climaqa/train.jsonl", "Silver", "mcq"),),
        "test": (Part("climaqa/test.jsonl", "Gold", "mcq"),),
    },
    hub_id="UCSD-GENIE/ClimaQA",
    paper_split="test",
)
