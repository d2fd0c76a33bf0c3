"""UQ4CT: a mixture of LoRA experts whose functional-level epistemic uncertainty follows correctness (Eqs. 9-12)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

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
    # Eq. 10 has the indicator; probability and mixture go beyond it, shuffled is a control
    calibration_target: Literal["indicator", "probability", "mixture", "shuffled"] = "indicator"
    calibration_questions: Literal["all", "rotating", "apart"] = "all"  # those that L_cal is taken on; see Objective
    held_out_every: int = Field(5, ge=2)  # one question in so many, unless it is all

    @model_validator(mode="after")
    def _target_fits_feu(self) -> Self:
        target = self.calibration_target
        if target in ("probability", "mixture") and self.feu_reduction == "vector":
            raise ValueError(f"calibration_target '{target}' needs FEU as one number; set feu_reduction mass or top1")
        if target == "shuffled":
            self.objective()  # knows what this control goes with
        experts = self.num_experts if isinstance(self.num_experts, tuple) else (self.num_experts,)
        smallest = self.top_k if self.feu_reduction == "mass" else 1
        if target == "mixture" and max(experts) <= smallest:
            raise ValueError("calibration_target 'mixture' needs more experts than top_k: otherwise FEU is always 1")
        return self

    def unfit(self, questions: int, calibration: int) -> list[str]:
        """Say where there are too few questions to hold some out of the answer loss, too."""
        problems = super().unfit(questions, calibration)
        if self.calibration_questions != "all" and questions < self.held_out_every:
            problems.append(
                f"calibration_questions '{self.calibration_questions}' holds out one question in "
                f"{self.held_out_every}, and there are {questions} to fit on; set calibration_questions to all"
            )
        return problems

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
            held_out_every=self.held_out_every,
        )
