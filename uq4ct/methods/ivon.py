"""IVON (Cong et al. 2024): a Gaussian over all LoRA weights, learned by the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from uq4ct.methods.base import VariationalMethod


class Ivon(VariationalMethod):
    """Train a LoRA by improved variational online Newton instead of AdamW; predict with 10 draws of A and B.

    ``ess``, ``hess_init`` and ``clip_radius`` are the paper's for ARC and OpenBookQA. ``learning_rate`` replaces
    ``train.learning_rate``, and ``weight_decay`` here, the prior's precision over ``ess``, ``train.weight_decay``.
    """

    name: ClassVar[str] = "ivon"
    summary: ClassVar[str] = "LoRA trained by a variational optimizer (IVON), 10 draws averaged"

    learning_rate: float = Field(0.03, gt=0)
    ess: float = Field(1e6, gt=0)  # effective sample size: lambda of the variational objective
    hess_init: float = Field(1e-3, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99999, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip_radius: float = Field(1e-3, gt=0)

    def trainer(self) -> Callable[..., Any]:
        """Return the trainer whose optimizer is IVON."""
        from uq4ct.variational.ivon import IvonTrainer

        names = ("ess", "hess_init", "beta1", "beta2", "weight_decay", "clip_radius")
        return partial(IvonTrainer, ivon={"lr": self.learning_rate, **{name: getattr(self, name) for name in names}})
