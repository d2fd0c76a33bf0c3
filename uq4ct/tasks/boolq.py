"""BoolQ (Clark et al., 2019): yes/no questions on a passage. Answers are booleans, so the labels are false and true."""

from dataclasses import replace

from uq4ct.tasks.base import Schema, Task, splits_of

# The order is that of the boolean's value. Public code that swaps it trains true answers onto the token of "false".
SCHEMA = Schema(
    name="BoolQ",
    choices=None,
    context="passage",
    constant=("no", "yes"),
    constant_labels=("false", "true"),
    marks=("passage",),
    absent=("choices",),
    ignored=("title",),
)

SUPER_GLUE = replace(SCHEMA, name="BoolQ (SuperGLUE)", answer="label", id=None, marks=("passage", "label", "idx"))

TASK = Task(
    name="boolq",
    summary="BoolQ, yes/no questions on a Wikipedia passage",
    schema=SCHEMA,
    splits=splits_of("boolq", ("train", "validation")),
    hub_id="google/boolq",
)
