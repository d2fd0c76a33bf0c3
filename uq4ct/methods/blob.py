"""BLoB (Wang et al. 2024): a Gaussian over the A of a LoRA, learned by backpropagation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from uq4ct.methods.base import VariationalMethod, count_parameters


class Blob(VariationalMethod):
    """Train mean and standard deviation of every entry of A, and B, by the evidence bound; predict with 10 draws.

    ``prior_std``, ``epsilon`` and ``std_learning_rate`` are the paper's. ``kl_weight=1`` is the evidence bound; with as
    few questions per weight as usual its optimum is the prior, so that the default counts the prior for a hundredth.
    A has two numbers per entry: the rank that matches the mixture is smaller than a LoRA's. Noise replaces dropout.
    """

    name: ClassVar[str] = "blob"
    summary: ClassVar[str] = "LoRA with a Gaussian over A (BLoB), 10 draws averaged"

    dropout: float = Field(0.0, ge=0, lt=1)
    prior_std: float = Field(0.2, gt=0)  # sigma_p
    epsilon: float = Field(0.05, gt=0)  # the square root of a standard deviation starts in [epsilon / sqrt 2, epsilon]
    kl_weight: float = Field(0.01, ge=0)
    std_learning_rate: float = Field(0.01, gt=0)  # that of the standard deviations' square roots

    def trainer(self) -> Callable[..., Any]:
        """Return the trainer that adds the KL divergence."""
        from uq4ct.variational.backprop import BackpropTrainer

        return partial(
            BackpropTrainer,
            epsilon=self.epsilon,
            prior_std=self.prior_std,
            kl_weight=self.kl_weight,
            std_learning_rate=self.std_learning_rate,
        )

    def parameters_of(self, adapted: Any) -> int:
        """Count means and standard deviations, which only the entries of A have."""
        random = (p.numel() for name, p in adapted.named_parameters() if ".lora_A." in name)
        return super().parameters_of(adapted) + sum(random)

    def trainable_parameters(self, folder: Path) -> int:
        """Count means and standard deviations."""
        return count_parameters(folder) + count_parameters(folder, "state.safetensors")

    def _counts(self, model: Any) -> tuple[int, int]:
        from uq4ct.adapters.placement import lora_parameters

        _, mixture = super()._counts(model)
        return lora_parameters(model, self.target_modules, per_input=2), mixture
