"""Calibration metrics of multiple-choice tasks for lm-evaluation-harness, for rows with any number of choices.

An item is what the harness's own ``likelihood`` (gold, log-likelihoods) or ``brier_score`` (gold, probabilities) hand
on, so that a task needs no code: ``{metric: likelihood, aggregation: uq4ct_ece, higher_is_better: false}``. Several at
once need ``class: !function uq4ct.lmeval.task.CalibratedTask``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import lm_eval.api.metrics  # noqa: F401  # first: the harness registers its own metrics only while it knows none
import numpy as np
from lm_eval.api.registry import register_aggregation, register_metric

from uq4ct.metrics import Answers, Undefined, proper_scores, selective
from uq4ct.metrics import calibration_error as errors

Item = tuple[Any, Sequence[float]]

BINS = 15
NAMES = ("uq4ct_ece", "uq4ct_nll", "uq4ct_brier", "uq4ct_auroc")
_log = logging.getLogger(__name__)


def answers(items: Sequence[Item]) -> Answers:
    """Return the harness's items as answers: softmax where values are log-likelihoods, as they are where they sum to 1.

    Raises ValueError for several right answers, or a right answer that is no choice.
    """
    return Answers.of_rows([_row(gold, np.asarray(values, dtype=np.float64)) for gold, values in items])


def _row(gold: Any, values: np.ndarray) -> dict[str, Any]:
    if isinstance(gold, (list, tuple, np.ndarray)):
        raise ValueError(f"calibration needs one right answer a question, got {list(gold)}")
    if not 0 <= int(gold) < len(values):
        raise ValueError(f"the right answer {gold} is none of the {len(values)} choices")
    row: dict[str, Any] = {"label": str(int(gold))}
    if values.max() <= 0:
        weights = np.exp(values - values.max())
        row["logits"], values = values.tolist(), weights / weights.sum()
    elif abs(values.sum() - 1) > 1e-3 or values.min() < 0:
        raise ValueError(f"expected log-likelihoods or probabilities, got {values.tolist()}")
    return row | {"probabilities": {str(k): float(p) for k, p in enumerate(values)}}


def _or_nan(value: Callable[[Answers], float], items: Sequence[Item]) -> float:
    """Return a metric, NaN with a warning where these answers do not have it: a long evaluation does not end there."""
    try:
        return value(answers(items))
    except Undefined as reason:
        _log.warning("undefined: %s", reason)
        return math.nan


@register_aggregation("uq4ct_ece")
def ece(items: Sequence[Item]) -> float:
    """Expected calibration error over 15 equal-width bins (Eq. 15)."""
    return _or_nan(lambda a: errors.ece(a.confidence, a.correct, BINS), items)


@register_aggregation("uq4ct_nll")
def nll(items: Sequence[Item]) -> float:
    """Negative log-likelihood of the right choice among the choices, in nats."""
    return _or_nan(lambda a: float(proper_scores.nll(a).mean()), items)


@register_aggregation("uq4ct_brier")
def brier(items: Sequence[Item]) -> float:
    """Squared distance to the right choice, summed over choices; rows may have different numbers of them."""
    return _or_nan(lambda a: float(proper_scores.brier(a).mean()), items)


@register_aggregation("uq4ct_auroc")
def auroc(items: Sequence[Item]) -> float:
    """Chance that a right answer has higher confidence than a wrong one."""
    return _or_nan(lambda a: selective.auroc(a.confidence, a.correct), items)


@register_metric(metric="uq4ct_ece", higher_is_better=False, output_type="multiple_choice", aggregation="uq4ct_ece")
def ece_metric(items: Item) -> Item:
    """Hand (gold, log-likelihoods) on to the aggregation."""
    return items


@register_metric(metric="uq4ct_nll", higher_is_better=False, output_type="multiple_choice", aggregation="uq4ct_nll")
def nll_metric(items: Item) -> Item:
    """Hand (gold, log-likelihoods) on to the aggregation."""
    return items


@register_metric(metric="uq4ct_brier", higher_is_better=False, output_type="multiple_choice", aggregation="uq4ct_brier")
def brier_metric(items: Item) -> Item:
    """Hand (gold, log-likelihoods) on to the aggregation."""
    return items


@register_metric(metric="uq4ct_auroc", higher_is_better=True, output_type="multiple_choice", aggregation="uq4ct_auroc")
def auroc_metric(items: Item) -> Item:
    """Hand (gold, log-likelihoods) on to the aggregation."""
    return items
