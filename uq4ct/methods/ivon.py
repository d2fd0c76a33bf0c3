"""IVON (Cong et al. 2024): a Gaussian over all LoRA weights, learned by the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from uq4ct.methods.base import VariationalMethod


class Ivon(VariationalMethod):
    """Train a LoRA by improved variational online Newton instead of AdamW; predict with 10 draws of A and B.

    The defaults are the paper's for ARC and OpenBookQA, but for the learning rate: theirs is 0.03 for 10,000 steps. By
    default no entry moves further in a step than ``train.learning_rate``, which is about what AdamW does.
    ``weight_decay``, the prior's precision over ``ess``, replaces ``train.weight_decay``.
    """

    name: ClassVar[str] = "ivon"
    summary: ClassVar[str] = "LoRA trained by a variational optimizer (IVON), 10 draws averaged"

    learning_rate: float | None = Field(None, gt=0)  # None: train.learning_rate / clip_radius
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
        settings = {name: getattr(self, name) for name in names}
        return partial(IvonTrainer, ivon=settings | ({"lr": self.learning_rate} if self.learning_rate else {}))
