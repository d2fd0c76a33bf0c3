"""Laplace-LoRA (Yang et al. 2024): a Gaussian around the trained LoRA weights, and its linearised predictive."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from uq4ct.errors import UserError
from uq4ct.methods.base import Bench, Example, LoraMethod, Progress, load_adapter, train_adapter
from uq4ct.types import Prediction

if TYPE_CHECKING:
    from uq4ct.laplace.posterior import Posterior
    from uq4ct.laplace.predictive import GaussianLogits

STATE = "state.safetensors"


class LaplaceModel(NamedTuple):
    """A PEFT model with the Gaussian around its LoRA weights."""

    model: Any
    posterior: Posterior


class Laplace(LoraMethod):
    """Train like ``lora``, then take the curvature of the training answers' likelihood (KFAC) and choose the prior.

    ``prior="marglik"`` takes the prior variance of the largest evidence, ``"grid"`` that of the lowest NLL on the
    calibration split. ``link`` turns Gaussian logits into probabilities: ``mc`` (``draws`` of them, averaged after the
    softmax), ``probit`` or ``bridge``. Defaults fit the paper's LoRA of rank 80 on seven modules: sides above
    ``full_below`` keep ``kfac_rank`` eigenvectors.
    """

    name: ClassVar[str] = "laplace"
    summary: ClassVar[str] = "Laplace approximation over the LoRA weights, one forward and one backward per choice"

    scope: Literal["all", "last_layer"] = "all"
    fisher: Literal["exact", "sampled"] = "exact"
    tokens: Literal["all_nonpad", "last"] = "all_nonpad"
    full_below: int = Field(512, ge=1)
    kfac_rank: int = Field(10, ge=1)
    prior: Literal["marglik", "grid"] = "marglik"
    link: Literal["mc", "probit", "bridge"] = "mc"
    draws: int = Field(128, ge=1)

    def notes(self, model: Any) -> list[str]:
        """Say how much memory the factors take."""
        from uq4ct.adapters import linear_targets
        from uq4ct.adapters.sites import linear_features
        from uq4ct.laplace.factors import memory

        targets = self.target_modules or linear_targets(model)
        shapes = {path: linear_features(module) for path, module in model.named_modules()
                  if any(path == name or path.endswith(f".{name}") for name in targets)}  # fmt: skip
        found = memory({path: shape for path, shape in shapes.items() if shape}, self.matched_rank(model),
                       self.full_below, self.kfac_rank)  # fmt: skip
        return [*super().notes(model), f"laplace: curvature of all LoRA weights: {found}"]

    def fit(self, bench: Bench) -> LaplaceModel:
        """Train, take the curvature over all training questions, choose the prior and write ``state.safetensors``.

        Raises UserError for ``prior="grid"`` without a calibration split.
        """
        from safetensors.torch import save_file

        from uq4ct.laplace import curvature, linearised

        if self.prior == "grid" and not bench.calibration:
            raise UserError("laplace: prior 'grid' needs a calibration split; set data.calibration_fraction: 0.1")
        model = train_adapter(bench, self.adapter_config(bench.model), self.objective()).model
        weights = linearised.lora_weights(model, self.scope)
        posterior = curvature.fit(
            model,
            weights,
            bench.examples,
            bench.pad_token_id,
            fisher=self.fisher,
            tokens=self.tokens,
            full_below=self.full_below,
            rank=self.kfac_rank,
            progress=_Lines("laplace: curvature"),
        )
        if self.prior == "marglik":
            posterior = posterior.with_prior(posterior.most_probable_variance())
        else:
            posterior = posterior.with_prior(self._best_on(bench, model, posterior))
        print(
            f"laplace: prior precision {1 / posterior.prior_variance:.4g} ({self.prior})", file=sys.stderr, flush=True
        )
        save_file(posterior.tensors(), bench.folder / STATE)
        return LaplaceModel(model, self._saved(model, bench.folder))  # read back: the very same bits as after a load

    def load(self, model: Any, folder: Path) -> LaplaceModel:
        """Put the adapter and the Gaussian around it back on a fresh base model."""
        model = load_adapter(model, folder)
        return LaplaceModel(model, self._saved(model, folder))

    def _saved(self, model: Any, folder: Path) -> Posterior:
        from safetensors.torch import load_file

        from uq4ct.laplace.linearised import lora_weights
        from uq4ct.laplace.posterior import Posterior

        shapes = {name: tuple(part.weight.shape) for name, part in lora_weights(model, self.scope).items()}
        return Posterior.of_tensors(load_file(folder / STATE), shapes)

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
        """Return draws of the logits (``mc``), or their mean probabilities as one sample."""
        from uq4ct.laplace.linearised import lora_weights
        from uq4ct.laplace.predictive import gaussian_logits

        weights = lora_weights(model.model, self.scope)
        found = gaussian_logits(
            model.model, weights, model.posterior, examples, pad_token_id, batch_size=batch_size, progress=progress
        )
        mask = found.mask.numpy()
        logits = np.where(mask[:, None], self._linked(found), -np.inf)
        mass = None if found.letter_mass is None else found.letter_mass.numpy()
        return Prediction(tuple(ids), logits, mask, letter_mass=mass)

    def _linked(self, found: GaussianLogits, prior: int = 0) -> np.ndarray:
        from uq4ct.laplace import predictive

        if self.link == "mc":
            return predictive.monte_carlo(found, self.draws, prior=prior).numpy()
        return getattr(predictive, self.link)(found, prior)[:, None].numpy()

    def _best_on(self, bench: Bench, model: Any, posterior: Posterior) -> float:
        """Return, of 41 prior variances from 1e-4 to 1e4, that of the lowest NLL on the calibration questions."""
        from uq4ct.laplace.linearised import lora_weights
        from uq4ct.laplace.predictive import gaussian_logits

        variances = np.logspace(-4, 4, 41).tolist()
        weights = lora_weights(model, self.scope)
        found = gaussian_logits(model, weights, posterior, bench.calibration, bench.pad_token_id, variances=variances)
        answer = np.array([example["answer"] for example in bench.calibration])
        mask, rows = found.mask.numpy(), np.arange(len(answer))
        losses = []
        for prior in range(len(variances)):
            logits = np.where(mask[:, None], self._linked(found, prior), -np.inf)
            chances = Prediction(tuple(map(str, rows)), logits, mask).probabilities[rows, answer]
            losses.append(-np.log(np.maximum(chances, 1e-300)).mean())
        return variances[int(np.argmin(losses))]


class _Lines:
    """Print progress with the time left about every ten seconds."""

    def __init__(self, title: str):
        import time

        self.title, self.clock, self.started = title, time.monotonic, time.monotonic()
        self.printed = self.started

    def __call__(self, done: int, total: int) -> None:
        now = self.clock()
        if now - self.printed > 10 or done == total:
            left = (now - self.started) / done * (total - done)
            print(f"{self.title}: {done:,} of {total:,} questions, {left:.0f} s left", file=sys.stderr, flush=True)
            self.printed = now
