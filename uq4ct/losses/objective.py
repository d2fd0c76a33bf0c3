"""The training objective (Eq. 11): answer loss + alpha_b * load balance + beta * calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar, get_args, get_type_hints

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from uq4ct.adapters.router import LayerRouting
from uq4ct.losses.answer import answer_loss, is_correct
from uq4ct.losses.balance import BalanceCounts, BalanceProbabilities, BalanceScope, SumOverRanks, balance_loss
from uq4ct.losses.calibration import (
    FeuReduction,
    Schedule,
    Target,
    calibration_loss,
    functional_uncertainty,
    mixture_loss,
    schedule,
)
from uq4ct.types import FeuTokens

AnswerLoss = Literal["choices", "vocabulary"]
Calibrated = Literal["feu", "confidence"]
Questions = Literal["all", "rotating", "apart"]
Number = TypeVar("Number", float, Tensor)


class Terms(NamedTuple):
    """The terms of Eq. 11 for one batch, each example by itself, so that the caller can normalise them exactly.

    ``feu`` and ``balance`` are None for a model without a router, ``calibration`` too unless it is of the answer's
    confidence. ``feu`` is always a number, large means certain: where the loss compares vectors, their mass.
    ``answer`` includes label smoothing.
    """

    answer: Float[Tensor, " batch"]
    calibration: Float[Tensor, " batch"] | None
    balance: Float[Tensor, ""] | None
    correct: Bool[Tensor, " batch"]
    feu: Float[Tensor, " batch"] | None


@dataclass(frozen=True)
class Objective:
    """Eq. 11 with its weights and readings: ``calibration_weight`` is beta, ``balance_weight`` alpha_b, applied once.

    ``calibrated="confidence"`` is an ablation: L_cal compares the indicator with the probability of the most likely
    choice (over the item's own choices) in place of FEU, which separates the idea of the paper from that of any loss on
    correctness. It needs no router. ``label_smoothing`` as in ``answer_loss``.

    Not in the paper: ``calibration_target="probability"`` compares FEU with the probability of the right choice in
    place of the indicator, ``"mixture"`` is ``mixture_loss``, and ``"shuffled"`` a control, not for use: the indicator
    of the question before in the micro-batch, which says of this one no more than that both are of like length (a batch
    of one, as the last of an epoch may be, has only its own). Questions that the answer loss was trained on are
    answered better than new ones: ``calibration_questions="apart"`` leaves one in ``held_out_every`` of them out of the
    answer loss and takes L_cal on these alone, ``"rotating"`` others in each epoch, so that in the long run every
    question trains both. Only a trainer can know which these are; an update without any has no L_cal, which is rare
    where its batch is three times ``held_out_every`` or more. The load balance is that of all questions.

    >>> uq4ct = Objective(calibration_weight=1.0, balance_weight=0.01, calibration_schedule="incremental")
    >>> uq4ct.combine(answer=0.5, balance=1.0, calibration=0.2, step=25)                  # 0.5 + 0.01 + 0.5 * 0.2
    0.61
    >>> Objective(answer_loss="letters")
    Traceback (most recent call last):
    ValueError: answer_loss: expected one of 'choices', 'vocabulary', got 'letters'
    """

    calibration_weight: float = 0.0
    balance_weight: float = 0.0
    answer_loss: AnswerLoss = "choices"
    label_smoothing: float = 0.0
    calibrated: Calibrated = "feu"
    feu_reduction: FeuReduction = "mass"
    feu_tokens: FeuTokens = "prompt"
    calibration_schedule: Schedule = "constant"
    calibration_target: Target = "indicator"
    calibration_questions: Questions = "all"
    held_out_every: int = 5
    balance_counts: BalanceCounts = "first"
    balance_scope: BalanceScope = "layer"
    balance_probabilities: BalanceProbabilities = "full"

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if hint is float and not (value >= 0 and value < float("inf")):
                raise ValueError(f"{name}: expected a number that is not negative, got {value!r}")
            if (allowed := get_args(hint)) and value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")
        if self.label_smoothing >= 1:
            raise ValueError(f"label_smoothing: expected a number below 1, got {self.label_smoothing!r}")
        if self.held_out_every < 2:
            raise ValueError(f"held_out_every: expected 2 or more questions, got {self.held_out_every!r}")
        if self.calibration_target == "shuffled" and self.calibration_questions != "all":
            raise ValueError(
                "calibration_target 'shuffled' would give held-out questions the indicator of others that are not; set "
                f"calibration_questions to all, not {self.calibration_questions}"
            )
        one_number = self.calibrated == "feu" and self.feu_reduction != "vector"
        if self.calibration_target in ("probability", "mixture") and not one_number:
            raise ValueError(
                f"calibration_target '{self.calibration_target}' is for FEU as one number; set calibrated='feu' and "
                "feu_reduction 'mass' or 'top1'"
            )

    @property
    def needs_router(self) -> bool:
        """Tell whether a term is switched on that a model without a router cannot give."""
        return self.balance_weight > 0 or (self.calibration_weight > 0 and self.calibrated == "feu")

    def beta(self, step: int = 0) -> float:
        """Return the calibration weight after ``step`` completed optimizer steps (Eq. 12)."""
        return self.calibration_weight * schedule(self.calibration_schedule, step)

    def combine(self, answer: Number, balance: Number, calibration: Number, step: int) -> Number:
        """Return the loss (Eq. 11) from its terms after ``step`` completed optimizer steps."""
        return answer + self.balance_weight * balance + self.beta(step) * calibration

    def terms(
        self,
        choice_logits: Float[Tensor, "batch choice"],
        log_normalizer: Float[Tensor, " batch"] | None,
        answer: Int[Tensor, " batch"],
        routing: Sequence[LayerRouting],
        routing_mask: Bool[Tensor, "row token"],
        real: Bool[Tensor, " batch"] | None = None,
        sum_over_ranks: SumOverRanks | None = None,
        item: Int[Tensor, " row"] | None = None,
    ) -> Terms:
        """Return every term of Eq. 11 for a scored batch; a term whose weight is 0 is measured without a gradient.

        ``real`` marks the examples that count in the balance of experts (default all); the other terms are per example.
        ``sum_over_ranks`` as in ``balance_loss``, ``item`` as in ``functional_uncertainty``. Raises ValueError when a
        weight needs a router and there is none, or the loss a vocabulary that an encoder has not.
        """
        if self.answer_loss == "vocabulary" and log_normalizer is None:
            raise ValueError("answer_loss 'vocabulary' is over all tokens, and an encoder's head scores choices alone")
        if self.needs_router and not routing:
            raise ValueError(
                f"calibration_weight={self.calibration_weight} and balance_weight={self.balance_weight} need a router, "
                "but the model recorded none; use a MixLoraConfig adapter, or set both weights to 0 for a plain one "
                "(with calibrated='confidence' only the second)"
            )
        normalizer = None if self.answer_loss == "choices" else log_normalizer
        nll = answer_loss(choice_logits, answer, normalizer, "none", self.label_smoothing)
        correct = is_correct(choice_logits, answer)
        feu, recorded = self._feu(routing, routing_mask, item)
        confidence = choice_logits.softmax(dim=-1).amax(dim=-1) if self.calibrated == "confidence" else feu
        calibration = None
        if confidence is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.calibration_weight > 0):
                calibration = self._calibration(confidence, correct, choice_logits, answer, routing)
        if not routing:
            return Terms(nll, calibration, None, correct, None)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.balance_weight > 0):
            if real is not None:
                routing_mask = routing_mask & (real if item is None else real[item])[:, None]
            readings = (self.balance_counts, self.balance_scope, self.balance_probabilities)
            balance = balance_loss(routing, routing_mask, *readings, sum_over_ranks)
        return Terms(nll, calibration, balance, correct, recorded)

    def _calibration(
        self,
        confidence: Tensor,
        correct: Tensor,
        choice_logits: Tensor,
        answer: Tensor,
        routing: Sequence[LayerRouting],
    ) -> Float[Tensor, " batch"]:
        if self.calibration_target in ("indicator", "shuffled"):
            seen = correct if self.calibration_target == "indicator" else correct.roll(1)
            return calibration_loss(confidence, seen, "none")
        gold = choice_logits.detach().softmax(dim=-1).gather(-1, answer[:, None]).squeeze(-1)
        if self.calibration_target == "probability":
            return calibration_loss(confidence, gold, "none")
        choices = (~choice_logits.isneginf()).sum(dim=-1)
        return mixture_loss(confidence, gold, choices, _smallest(routing, self.feu_reduction), "none")

    def _feu(
        self, routing: Sequence[LayerRouting], mask: Bool[Tensor, "row token"], item: Int[Tensor, " row"] | None
    ) -> tuple[Float[Tensor, " batch *expert"] | None, Float[Tensor, " batch"] | None]:
        """Return FEU as the loss compares it, with a gradient only if it trains, and the number to record."""
        if not routing:
            return None, None
        trains = self.calibration_weight > 0 and self.calibrated == "feu"
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            feu = functional_uncertainty(routing, mask, self.feu_reduction, self.feu_tokens, item)
        return feu, (feu.sum(dim=-1) if feu.dim() == 2 else feu).detach()  # a vector sums to the mass


def _smallest(routing: Sequence[LayerRouting], reduction: FeuReduction) -> Float[Tensor, ""]:
    """Return the least that FEU can be: k/N of the mass, 1/N of the largest probability, averaged over layers."""
    experts = [layer.kept.shape[-1] for layer in routing]
    chosen = [(layer.kept > 0).sum(dim=-1).amax() if reduction == "mass" else 1 for layer in routing]
    return torch.stack([torch.as_tensor(k / n) for k, n in zip(chosen, experts, strict=True)]).mean().detach()
