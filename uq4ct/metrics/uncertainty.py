"""Uncertainty of methods with several forward passes: how much there is, and whether disagreement marks errors."""

from __future__ import annotations

from typing import Any

from uq4ct.metrics.answers import Answers, Undefined, mean_of
from uq4ct.metrics.sampling import Decomposition
from uq4ct.metrics.selective import auroc_of


def entropies_of(answers: Answers) -> Decomposition:
    """Return the entropy decomposition over passes; raises Undefined for methods with one pass."""
    if answers.entropies is None:
        raise Undefined("one forward pass: nothing can disagree, or the rows do not carry their samples")
    return answers.entropies


def mean_uncertainty(answers: Answers) -> dict[str, dict[str, float]] | None:
    """Return the means of both decompositions, entropy in nats and Gini; None for methods with one pass."""
    forms: dict[str, Any] = {"entropy": answers.entropies, "gini": answers.ginis}
    if None in forms.values():
        return None
    return {
        form: {name: float(column.mean()) for name, column in parts._asdict().items()} for form, parts in forms.items()
    }


METRICS = (
    mean_of("total_uncertainty", "entropy of the averaged passes, in nats", "none", lambda a: entropies_of(a).total),
    mean_of("aleatoric", "mean entropy of the passes, in nats", "none", lambda a: entropies_of(a).aleatoric),
    mean_of("epistemic", "disagreement of the passes, in nats", "none", lambda a: entropies_of(a).epistemic),
    auroc_of(
        "epistemic_auroc",
        "chance that passes agree more on a right answer than on a wrong one",
        lambda a: -entropies_of(a).epistemic,
    ),
)
