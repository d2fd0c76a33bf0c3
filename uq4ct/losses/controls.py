"""Controls: objectives that lack what is under test, to see what it does. Not for use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from uq4ct.adapters.router import LayerRouting
from uq4ct.losses.objective import Objective


@dataclass(frozen=True)
class ShuffledObjective(Objective):
    """Eq. 11 with L_cal on the indicator of the question before in the batch, which says nothing of this one.

    What FEU learns then, it does not learn from being right or wrong. A batch of one question has only its own.
    """

    def _calibration(
        self,
        confidence: Float[Tensor, batch *expert],
        correct: Bool[Tensor, " batch"],
        choice_logits: Float[Tensor, "batch choice"],
        answer: Int[Tensor, " batch"],
        routing: Sequence[LayerRouting],
    ) -> Float[Tensor, " batch"]:
        return super()._calibration(confidence, correct.roll(1), choice_logits, answer, routing)
