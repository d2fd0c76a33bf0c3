"""Laplace-LoRA (Yang et al. 2024): a Gaussian around the trained LoRA weights, and its linearised predictive."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, PositiveFloat

from uq4ct.adapting import is_main_process, wait_for_all
from uq4ct.errors import UserError
from uq4ct.manifest import write_atomically
from uq4ct.methods.base import Bench, Example, LoraMethod, Progress, load_adapter, train_adapter
from uq4ct.types import Prediction

if TYPE_CHECKING:
    from uq4ct.laplace.posterior import Posterior
    from uq4ct.laplace.predictive import GaussianLogits

STATE = "state.safetensors"
PRIORS = np.logspace(-4, 4, 41)  # the prior precisions that ``prior="grid"`` compares


class LaplaceModel(NamedTuple):
    """A PEFT model, the LoRA matrices in scope by name, and the Gaussian around them."""

    model: Any
    weights: dict[str, Any]
    posterior: Posterior


class Laplace(LoraMethod):
    """Train like ``lora``, take the curvature of the training answers' likelihood (KFAC), then choose the prior.

    Beyond LoRA the fit costs one pass over the training questions and one backward pass per choice, an answer one
    backward pass per choice. ``last_layer`` is the LoRA of the head where it has one, else that of the last block.
    ``fisher`` takes the expectation over answers exactly or by one sample; ``tokens`` are those whose curvature counts.
    Sides of a factor above ``full_below`` keep ``kfac_rank`` eigenvectors, so that the paper's LoRA of rank 80 on seven
    modules fits. ``prior="marglik"`` takes the prior of the largest evidence, ``"grid"`` that of the lowest NLL on the
    calibration split, a number is the prior precision itself. ``curvature_questions`` are so many training questions,
    drawn by the seed, that stand for all; None takes all. ``link`` turns Gaussian logits into probabilities: ``mc``
    (``draws`` of them, averaged after the softmax; best a power of two), ``probit`` or ``bridge``.
    """

    name: ClassVar[str] = "laplace"
    summary: ClassVar[str] = "Laplace approximation over the LoRA weights: one pass, and one backward per choice"

    scope: Literal["all", "last_layer"] = "all"
    fisher: Literal["exact", "sampled"] = "exact"
    tokens: Literal["all_nonpad", "last"] = "all_nonpad"
    full_below: int = Field(512, ge=0)
    kfac_rank: int = Field(10, ge=1)
    curvature_questions: int | None = Field(None, ge=1)
    prior: Literal["marglik", "grid"] | PositiveFloat = "marglik"
    link: Literal["mc", "probit", "bridge"] = "mc"
    draws: int = Field(128, ge=1, le=2**16)

    @property
    def needs_calibration(self) -> bool:
        """With ``prior="grid"`` the calibration questions choose the prior."""
        return self.prior == "grid"

    def answer_cost(self, choices: float) -> float:
        """One forward pass, and a backward pass per choice, which with its products takes about two.

        >>> Laplace().answer_cost(4), Laplace(scope="last_layer").answer_cost(4)
        (9.0, 1.0)
        """
        return 1.0 + self._backward_cost * choices

    def fit_cost(self, questions: int, calibration: int, choices: float) -> float:
        """The curvature takes a forward and backward passes per question; ``grid`` answers the calibration questions.

        >>> Laplace(curvature_questions=100).fit_cost(1000, 50, 4), Laplace(fisher="sampled").fit_cost(1000, 50, 4)
        (900.0, 3000.0)
        """
        curved = min(questions, self.curvature_questions or questions)
        directions = choices if self.fisher == "exact" else 1
        cost = curved * (1.0 + self._backward_cost * directions)
        return cost + (calibration * self.answer_cost(choices) if self.prior == "grid" else 0.0)

    @property
    def _backward_cost(self) -> float:
        return 2.0 if self.scope == "all" else 0.0  # in forward passes; at the last layer it ends where it begins

    def notes(self, model: Any) -> list[str]:
        """Say how much memory the factors take, besides the choice of the rank."""
        from uq4ct.adapters.placement import lora_linears
        from uq4ct.laplace.factors import memory
        from uq4ct.laplace.linearised import in_last_layer

        linears = lora_linears(model, self.target_modules)
        if self.scope == "last_layer":
            head = model.get_output_embeddings()
            last = [path for path in linears if model.get_submodule(path) is head] or in_last_layer(linears)
            linears = {path: linears[path] for path in last}
        found = memory(linears, self.matched_rank(model), self.full_below, self.kfac_rank)
        return [*super().notes(model), f"{self.name}: its Kronecker factors take {found}"]

    def encoder_problems(self, model: Any) -> list[str]:
        """Add what the curvature cannot count."""
        last = [
            "method.tokens: last are those after which a causal model answers, and an encoder's head reads the first "
            "one; set method.tokens: all_nonpad"
        ]
        return [*super().encoder_problems(model), *(last if self.tokens == "last" else [])]

    def fit(self, bench: Bench) -> LaplaceModel:
        """Train, take the curvature over the training questions, choose the prior and write ``state.safetensors``.

        Raises UserError for ``prior="grid"`` without a calibration split.
        """
        from safetensors.torch import save

        from uq4ct.laplace import curvature
        from uq4ct.laplace.linearised import lora_weights

        if self.prior == "grid" and not bench.calibration:
            raise UserError("laplace: prior 'grid' needs a calibration split; set data.calibration_fraction: 0.1")
        model = train_adapter(bench, self.adapter_config(bench.model), self.objective()).model
        weights = lora_weights(model, self.scope)
        examples = self._drawn(bench)
        flat = curvature.fit(
            model,
            weights,
            examples,
            bench.pad_token_id,
            fisher=self.fisher,
            tokens=self.tokens,
            full_below=self.full_below,
            rank=self.kfac_rank,
            batch_size=bench.train.per_device_train_batch_size,
            seed=bench.seed,
            progress=_Lines("curvature"),
        )
        if len(examples) < len(bench.examples):
            flat = flat.times(len(bench.examples) / len(examples))
        variance = self._prior_variance(LaplaceModel(model, weights, flat), bench)
        fitted = LaplaceModel(model, weights, flat.with_prior(variance))
        if is_main_process():
            _say(
                f"laplace: prior precision {1 / variance:.4g} ({self.prior}), log evidence "
                f"{flat.log_evidence(variance):.1f}; the data determine {flat.determined(variance):,.0f} of "
                f"{sum(linear.weight.numel() for linear in weights.values()):,} directions"
            )
            write_atomically(bench.folder / STATE, save(fitted.posterior.tensors()))
        wait_for_all()
        return fitted

    def _drawn(self, bench: Bench) -> Sequence[Example]:
        """Return the questions whose curvature is taken, in the order in which they stand."""
        total = len(bench.examples)
        if self.curvature_questions is None or self.curvature_questions >= total:
            return bench.examples
        places = np.random.default_rng(bench.seed).choice(total, self.curvature_questions, replace=False)
        return [bench.examples[place] for place in sorted(places.tolist())]

    def load(self, model: Any, folder: Path) -> LaplaceModel:
        """Put the adapter and the Gaussian around it back on a fresh base model.

        Raises UserError where the Gaussian's file is missing, damaged or another adapter's.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from uq4ct.laplace.linearised import lora_weights
        from uq4ct.laplace.posterior import Posterior

        model = load_adapter(model, folder)
        weights = lora_weights(model, self.scope)
        shapes = {name: (linear.out_features, linear.in_features) for name, linear in weights.items()}
        path = folder / STATE
        try:
            posterior = Posterior.of_tensors(load_file(path, device=str(model.device)), shapes)
        except (OSError, SafetensorError, UserError) as error:
            raise UserError(f"{path}: cannot be used ({error}); restore the run from a copy") from error
        return LaplaceModel(model, weights, posterior)

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
        """Return draws of the logits (``mc``), or their approximate mean probabilities as one sample."""
        from uq4ct.laplace.predictive import gaussian_logits

        logits = gaussian_logits(
            model.model,
            model.weights,
            model.posterior,
            examples,
            pad_token_id,
            batch_size=batch_size,
            progress=progress,
        )
        return self._linked(logits, ids)

    def _linked(self, logits: GaussianLogits, ids: Sequence[str], prior: int = 0) -> Prediction:
        from uq4ct.laplace.predictive import bridge, monte_carlo, probit

        if self.link == "mc":
            samples = monte_carlo(logits, self.draws, prior=prior)
        else:
            samples = {"probit": probit, "bridge": bridge}[self.link](logits, prior)[:, None]
        mass = None if logits.letter_mass is None else logits.letter_mass.numpy()
        return Prediction(tuple(ids), samples.numpy(), logits.mask.numpy(), letter_mass=mass)

    def _prior_variance(self, flat: LaplaceModel, bench: Bench) -> float:
        if self.prior == "marglik":
            return flat.posterior.most_probable_variance()
        if isinstance(self.prior, float):
            return 1 / self.prior
        from uq4ct.laplace.predictive import gaussian_logits

        variances = (1 / PRIORS).tolist()
        logits = gaussian_logits(
            flat.model,
            flat.weights,
            flat.posterior,
            bench.calibration,
            bench.pad_token_id,
            batch_size=bench.train.per_device_train_batch_size,
            variances=variances,
            progress=_Lines("calibration questions"),
        )
        answers = [example["answer"] for example in bench.calibration]
        ids = [""] * len(answers)
        losses = [_loss(self._linked(logits, ids, prior), answers) for prior in range(len(variances))]
        return variances[int(np.argmin(losses))]


def _loss(prediction: Prediction, answers: Sequence[int]) -> float:
    """Return the mean NLL of the averaged probabilities, in nats."""
    from scipy.special import logsumexp

    samples = prediction.log_probs[np.arange(len(answers)), :, answers]
    return float(np.log(samples.shape[1]) - logsumexp(samples, axis=1).mean())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Lines:
    """Say every ten seconds how far a pass is, and the time left."""

    def __init__(self, title: str):
        self.title = title
        self.started = self.said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if (now - self.said > 10 or done == total) and is_main_process():
            left = (now - self.started) / done * (total - done)
            _say(f"laplace: {self.title} {done:,}/{total:,}, about {left:.0f} s left")
            self.said = now
