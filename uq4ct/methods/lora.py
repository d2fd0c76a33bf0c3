"""LoRA (Eq. 1): one low-rank adapter trained by maximum likelihood, the paper's lower bound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from uq4ct.methods.base import Method

if TYPE_CHECKING:
    from uq4ct.losses.objective import Objective


class Lora(Method):
    """Train PEFT's LoRA on attention and FFN by cross entropy. Rank 80 is the paper's match to 8 experts of rank 16."""

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "one LoRA adapter, cross entropy"

    rank: int = Field(80, ge=1)
    alpha: float = Field(160.0, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    rslora: bool = False
    target_modules: tuple[str, ...] | None = None  # None: attention and FFN, found per model family
    answer_loss: Literal["choices", "vocabulary"] = "choices"

    def adapter_config(self, model: Any) -> Any:
        """Return PEFT's LoraConfig on the same linears that the mixtures adapt."""
        from peft import LoraConfig

        from uq4ct.adapters import linear_targets

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # any number works
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            target_modules=list(self.target_modules or linear_targets(model)),
        )

    def objective(self) -> Objective:
        """Return L = CE."""
        from uq4ct.losses.objective import Objective

        return Objective(answer_loss=self.answer_loss)
