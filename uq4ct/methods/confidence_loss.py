"""The ablation that isolates FEU: the same mixture and indicator loss, but on the answer's own confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from uq4ct.methods.base import MixtureMethod

if TYPE_CHECKING:
    from uq4ct.losses.objective import Objective


class ConfidenceLoss(MixtureMethod):
    """Train a mixture of LoRA experts by L = CE + alpha L_b + beta (1{right} - confidence)^2.

    It differs from ``uq4ct`` in one thing: the probability of the predicted choice stands where FEU does in Eq. 10.
    What UQ4CT gains over it is due to the router, what this gains over MixLoRA to a loss on correctness.
    """

    name: ClassVar[str] = "confidence_loss"
    summary: ClassVar[str] = "mixture of LoRA experts, the calibration loss on its confidence instead of FEU"

    calibration_weight: float = Field(1.0, ge=0)  # beta
    calibration_schedule: Literal["constant", "incremental"] = "constant"  # incremental: Eq. 12

    def objective(self) -> Objective:
        """Return L = CE + alpha L_b + beta L_cal with the confidence in FEU's place."""
        from uq4ct.losses.objective import Objective

        return Objective(
            answer_loss=self.answer_loss,
            balance_weight=self.balance_weight,
            balance_counts=self.balance_counts,
            balance_scope=self.balance_scope,
            balance_probabilities=self.balance_probabilities,
            calibrated="confidence",
            calibration_weight=self.calibration_weight,
            calibration_schedule=self.calibration_schedule,
        )
