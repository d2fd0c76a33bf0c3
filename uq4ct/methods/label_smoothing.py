"""Label smoothing (Szegedy et al. 2016): LoRA whose target leaves some probability to the other choices."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from uq4ct.methods.base import LoraMethod

if TYPE_CHECKING:
    from uq4ct.losses.objective import Objective


class LabelSmoothing(LoraMethod):
    """Train like ``lora`` against a target of 1 - e on the answer and e spread over all of the question's choices."""

    name: ClassVar[str] = "label_smoothing"
    summary: ClassVar[str] = "LoRA trained with smoothed labels"

    smoothing: float = Field(0.1, ge=0, lt=1)  # e

    def objective(self) -> Objective:
        """Return L = CE against the smoothed target."""
        return replace(super().objective(), label_smoothing=self.smoothing)
