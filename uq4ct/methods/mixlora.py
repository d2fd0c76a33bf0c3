"""MixLoRA: the mixture of LoRA experts with cross entropy and load balance only (Eq. 11 with beta = 0)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from uq4ct.methods.base import MixtureMethod

if TYPE_CHECKING:
    from uq4ct.losses.objective import Objective


class MixLora(MixtureMethod):
    """Train a mixture of LoRA experts without tying its router to correctness."""

    name: ClassVar[str] = "mixlora"
    summary: ClassVar[str] = "mixture of LoRA experts, cross entropy and load balance"

    def objective(self) -> Objective:
        """Return L = CE + alpha L_b."""
        from uq4ct.losses.objective import Objective

        return Objective(
            answer_loss=self.answer_loss,
            balance_weight=self.balance_weight,
            balance_counts=self.balance_counts,
            balance_scope=self.balance_scope,
            balance_probabilities=self.balance_probabilities,
        )
