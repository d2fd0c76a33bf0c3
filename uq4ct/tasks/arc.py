"""The AI2 Reasoning Challenge (Clark et al., 2018), Easy and Challenge: 3 to 5 choices, labelled A-E or 1-4 by row."""

from uq4ct.tasks.base import Schema, Task, splits_of

SCHEMA = Schema(name="ARC", answer="answerKey", marks=("answerKey",))

EASY = Task(
    name="arc_easy",
    summary="ARC-Easy, grade-school science, 3 to 5 choices",
    schema=SCHEMA,
    splits=splits_of("arc_easy", ("train", "validation", "test"), subset="ARC-Easy"),
    hub_id="allenai/ai2_arc",
)

CHALLENGE = Task(
    name="arc_challenge",
    summary="ARC-Challenge, grade-school science, 3 to 5 choices (smaller shift in Table 2)",
    schema=SCHEMA,
    splits=splits_of("arc_challenge", ("train", "validation", "test"), subset="ARC-Challenge"),
    hub_id="allenai/ai2_arc",
)
