"""UQ4CT: a mixture of LoRA experts whose functional-level epistemic uncertainty follows correctness (Eqs. 9-12)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from uq4ct.methods.base import MixtureMethod

if TYPE_CHECKING:
    from uq4ct.losses.objective import Objective


class Uq4ct(MixtureMethod):
    """Train a mixture of LoRA experts by L = CE + alpha L_b + beta L_cal. FEU is a confidence: large means certain."""

    name: ClassVar[str] = "uq4ct"
    summary: ClassVar[str] = "mixture of LoRA experts calibrated while it is fine-tuned (the paper's method)"

    calibration_weight: float = Field(1.0, ge=0)  # beta
    calibration_schedule: Literal["constant", "incremental"] = "constant"  # incremental: Eq. 12
    feu_reduction: Literal["mass", "top1", "vector"] = "mass"
    feu_tokens: Literal["prompt", "last"] = "prompt"
    calibration_target: Literal["indicator", "probability", "mixture"] = (
        "indicator"  # not the paper's but for the first
    )
    calibration_questions: Literal["all", "rotating", "apart"] = "all"  # those that L_cal is taken on; see Objective
    held_out: float = Field(0.2, gt=0, le=0.5)  # their share, unless it is all

    def objective(self) -> Objective:
        """Return L = CE + alpha L_b + beta L_cal (Eq. 11)."""
        from uq4ct.losses.objective import Objective

        return Objective(
            answer_loss=self.answer_loss,
            balance_weight=self.balance_weight,
            balance_counts=self.balance_counts,
            balance_scope=self.balance_scope,
            balance_probabilities=self.balance_probabilities,
            calibration_weight=self.calibration_weight,
            calibration_schedule=self.calibration_schedule,
            feu_reduction=self.feu_reduction,
            feu_tokens=self.feu_tokens,
            calibration_target=self.calibration_target,
            calibration_questions=self.calibration_questions,
            held_out=self.held_out,
        )
