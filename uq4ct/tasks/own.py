"""Our own layouts: one object a line with a list of choices, and tables with the choices in columns A, B, C, ..."""

from uq4ct.tasks.base import Schema

OWN = Schema(
    name="question, choices, answer",
    stratum="stratum",
    true_probabilities="true_probabilities",
    ignored=("ideal_probabilities",),
)

LETTERED = Schema(
    name="question, A, B, ..., answer",
    choices=("A", "B"),
    absent=("choices",),
    lettered=True,
)
