"""Answers of which only the confidence and the correctness are known: what people have who never saw a distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uq4ct.errors import UserError
from uq4ct.metrics.answers import Answers, Undefined, check_pairs, numbered

REASON = "needs the probability of every choice; these answers have a confidence and whether they are right"
_ABSENT = ("feu", "letter_mass", "true_probabilities", "strata", "kept", "groups", "entropies", "ginis", "length")
_UNKNOWN = ("probabilities", "log_probs", "mask", "answer")


class Confidences(Answers):
    """Hold n confidences and whether each answer was right; what needs more raises Undefined.

    >>> c = Confidences([0.9, 0.6], [1, 0])
    >>> c.n, c.confidence.tolist(), c.correct.tolist()
    (2, [0.9, 0.6], [1.0, 0.0])
    """

    def __init__(self, confidence: object, correct: object, **fields: object):
        values: dict[str, object] = dict.fromkeys(_ABSENT)
        pair = check_pairs(np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64))
        values |= {"unlabelled": 0, "_made": {}, "_drawn": [None, {}], **fields}
        for name, value in {**values, "confidence": pair[0], "correct": pair[1]}.items():
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        """Raise Undefined for what only a distribution has."""
        if name in _UNKNOWN:
            raise Undefined(REASON)
        raise AttributeError(name)

    def __repr__(self) -> str:
        return f"Confidences(n={self.n})"

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]]) -> Confidences:
        """Make answers from prediction rows; those of which it is not known whether they are right are left out."""
        known = [row for row in rows if row.get("correct") is not None]
        if not known:
            raise UserError(f"none of the {len(rows)} predictions says whether it is right; metrics need that")
        strata = tuple(row.get("stratum") for row in known)
        feu = [row.get("feu") for row in known]
        return cls(
            [row["confidence"] for row in known],
            [row["correct"] for row in known],
            feu=None if None in feu else np.array(feu, dtype=np.float64),
            strata=strata if any(strata) else None,
            kept=np.array([not row.get("abstained") for row in known]),
            groups=numbered([row.get("group") for row in known]),
            unlabelled=len(rows) - len(known),
        )

    def take(self, index: np.ndarray) -> Confidences:
        """Return the answers at these places, in this order; a place may be named several times."""
        columns = {name: getattr(self, name) for name in ("feu", "kept", "groups", "length")}
        taken = {name: None if column is None else column[index] for name, column in columns.items()}
        strata = None if self.strata is None else tuple(self.strata[i] for i in index)
        return Confidences(
            self.confidence[index], self.correct[index], strata=strata, unlabelled=self.unlabelled, **taken
        )

    @property
    def n(self) -> int:
        """Number of answers."""
        return len(self.correct)
