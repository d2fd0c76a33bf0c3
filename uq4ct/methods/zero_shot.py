"""Zero-shot: the frozen base model with the same prompt and read-out; what fine-tuning starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from uq4ct.encoders import new_modules
from uq4ct.errors import UserError
from uq4ct.methods.base import Bench, Method


class ZeroShot(Method):
    """Predict with the base model as it is."""

    name: ClassVar[str] = "zero_shot"
    summary: ClassVar[str] = "the base model, not fine-tuned"

    @property
    def trainings(self) -> int:
        """None."""
        return 0

    def check(self, model: Any) -> None:
        """Accept any base model that can answer as it is.

        Raises UserError for an encoder whose head is new.
        """
        if new := new_modules(model):
            raise UserError(
                f"zero_shot: the head of this encoder is new ({', '.join(new)}), so that its answers are random "
                "numbers; use a method that trains it, such as lora, or a checkpoint whose head was trained for these "
                "choices"
            )

    def fit(self, bench: Bench) -> Any:
        """Return the base model; there is nothing to fit."""
        return bench.model.eval()

    def load(self, model: Any, folder: Path) -> Any:
        """Return the base model."""
        return model.eval()
