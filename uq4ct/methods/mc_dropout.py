"""MC dropout (Gal and Ghahramani 2016): the LoRA's dropout stays on at test, probabilities are averaged over passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from uq4ct.methods.base import Example, LoraMethod
from uq4ct.passes import Progress, score_samples
from uq4ct.types import Prediction


class McDropout(LoraMethod):
    """Train like ``lora``; predict with ``samples`` passes whose adapter dropout is on, all else in evaluation mode.

    The masks come from a generator of their own: a question gets the same ones whatever else is in its batch. The
    paper leaves the number of passes open; 10 is the usual one. With ``dropout=0`` every pass is the LoRA's own.
    """

    name: ClassVar[str] = "mc_dropout"
    summary: ClassVar[str] = "LoRA with its dropout on at test, 10 passes averaged"

    samples: int = Field(10, ge=1)

    @property
    def passes(self) -> int:
        """One per sample."""
        return self.samples

    def predict(
        self,
        model: Any,
        examples: Sequence[Example],
        *,
        ids: Sequence[str],
        pad_token_id: int,
        batch_size: int = 32,
        progress: Progress | None = None,
    ) -> Prediction:
        """Score encoded questions ``samples`` times, each with its own dropout masks."""
        from uq4ct.adapters.dropout import adapter_dropout

        return score_samples(
            model,
            range(self.samples),
            lambda sample: adapter_dropout(model, sample=sample),
            examples,
            ids=ids,
            pad_token_id=pad_token_id,
            batch_size=batch_size,
            progress=progress,
        )
