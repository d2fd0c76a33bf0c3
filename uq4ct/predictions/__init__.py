"""The prediction file: one row per question with everything that metrics, post-hoc fits and reports need.

    {"id", "question", "choices", "prediction", "confidence", "probabilities": {label: p}, "feu",
     "uncertainty": {"total", "aleatoric", "epistemic"}, "label", "correct", "abstained"}

``label`` and ``correct`` are null where unknown, ``feu`` where there is no router. Optional: ``logits`` (per choice,
softmax gives ``probabilities``), ``samples`` (the logits of each of several forward passes), ``letter_mass``,
``context_characters`` (how long the passage before the question is), ``seen_tokens`` (the share of the prompt's tokens
that those of the questions fitted on have, too), ``group``, ``stratum``, ``true_probabilities``, ``task``, ``method``,
``seed``.

Anyone's file becomes such rows (``read_any``). Where it gives a confidence and whether the answer was right, and no
distribution, ``probabilities`` is null.
"""

from uq4ct.predictions.columns import Columns
from uq4ct.predictions.reading import Reading, evaluations, read, read_any
from uq4ct.predictions.writing import Row, read_own, rows, to_line, to_prediction, write

__all__ = [
    "Columns",
    "Reading",
    "Row",
    "evaluations",
    "read",
    "read_any",
    "read_own",
    "rows",
    "to_line",
    "to_prediction",
    "write",
]
