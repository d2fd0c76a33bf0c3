"""One pass over the training questions: the Fisher information of the LoRA weights in Kronecker factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from uq4ct.adapters.noise import token_keys, uniform
from uq4ct.laplace.factors import Factor, Spectrum, factor
from uq4ct.laplace.linearised import Linearised, Tokens
from uq4ct.laplace.posterior import Block, Posterior
from uq4ct.scoring import Batch, Example, in_batches

Fisher = Literal["exact", "sampled"]
LABELS = 1  # the stream of the sampled labels


class Curvature:
    """Sum up the Kronecker factors of every weight, and the log-likelihood of the answers.

    ``exact`` takes the expectation over an item's own choices k with probabilities p_k, one backward pass each for the
    gradient of sqrt(p_k) log p_k; ``sampled`` one draw of k, which belongs to the question and the seed. The input
    factor of an item is the mean over its tokens and the output factor the sum: with one token KFAC is exact for a
    single item, and over many it is the curvature that independent tokens would have ("expand", Eschenhagen et al.
    2023). Pads never count.
    """

    def __init__(self, weights: Mapping[str, nn.Linear], full_below: int, rank: int):
        self.items, self.log_likelihood = 0, 0.0
        self.weights = weights
        self.inputs: dict[str, Factor] = {}
        self.outputs: dict[str, Factor] = {}
        for name, linear in weights.items():
            device = linear.weight.device
            self.inputs[name] = factor(linear.in_features, full_below, rank, device)
            self.outputs[name] = factor(linear.out_features, full_below, rank, device)

    def add(self, model: nn.Module, batch: Batch, fisher: Fisher, tokens: Tokens, seed: int) -> None:
        """Add one batch."""
        at = Linearised(model, self.weights, batch)
        log_probs = at.logits.double().log_softmax(dim=-1)
        answers = log_probs.gather(-1, batch["answer"][:, None])
        for direction in _directions(log_probs, batch, fisher, seed):
            for name, gradient in zip(self.weights, at.gradients(direction), strict=True):
                self.outputs[name].add(gradient[at.positions(tokens, gradient.shape[1])])
        for name, inputs in zip(self.weights, at.inputs, strict=True):
            real = at.positions(tokens, inputs.shape[1])
            share = real / real.sum(dim=-1, keepdim=True).sqrt()
            self.inputs[name].add((inputs * share[..., None].to(inputs))[real])
        self.items += len(answers)
        self.log_likelihood += answers.sum().item()

    def posterior(self) -> Posterior:
        """Return the Gaussian, with prior variance 1."""
        blocks = {
            name: Block(
                _as_kept(self.inputs[name].spectrum(), linear, 1 / self.items),
                _as_kept(self.outputs[name].spectrum(), linear, 1.0),
            )
            for name, linear in self.weights.items()
        }
        norm = sum(linear.weight.detach().double().square().sum().item() for linear in self.weights.values())
        return Posterior(blocks, self.log_likelihood, norm)


def fit(
    model: nn.Module,
    weights: Mapping[str, nn.Linear],
    examples: Sequence[Example],
    pad_token_id: int,
    *,
    fisher: Fisher = "exact",
    tokens: Tokens = "all_nonpad",
    full_below: int = 512,
    rank: int = 10,
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Posterior:
    """Return the Gaussian around a model's trained LoRA weights, from one pass over its training questions.

    The result depends on neither batch size nor order. Factors of sides up to ``full_below`` are whole, others keep
    ``rank`` eigenvectors. A batch too big for the GPU is halved, and the pass starts again.
    """
    while True:
        curvature = Curvature(weights, full_below, rank)

        def add(batch: Batch, curvature: Curvature = curvature) -> list[None]:
            try:
                curvature.add(model, batch, fisher, tokens, seed)
            except torch.OutOfMemoryError as error:
                raise _HalfAdded from error  # trying this batch again would count a part of it twice
            return [None] * len(batch["answer"])

        try:
            in_batches(model, examples, pad_token_id, batch_size, add, progress)
            return curvature.posterior()
        except _HalfAdded as error:
            if batch_size == 1:
                raise error.__cause__ or error from None
            batch_size = max(1, batch_size // 2)
            torch.cuda.empty_cache()


class _HalfAdded(Exception):
    """Memory ran out in the middle of a batch."""


def item_keys(batch: Batch) -> Int[Tensor, " item"]:
    """Return a number for every item that is a function of its tokens alone, whatever the batch and its padding."""
    mask = batch["attention_mask"].bool()
    ids, rows = batch["input_ids"].flatten(0, -2), mask.flatten(0, -2)
    end = (rows * torch.arange(1, rows.shape[-1] + 1, device=rows.device)).argmax(dim=-1)
    keys = token_keys(ids, rows).gather(-1, end[:, None]).reshape(mask.shape[:-1])
    return keys if keys.dim() == 1 else keys.masked_fill(~batch["choice_mask"], 0).sum(dim=-1)


def _directions(
    log_probs: Float[Tensor, "item choice"], batch: Batch, fisher: Fisher, seed: int
) -> list[Float[Tensor, "item choice"]]:
    """Return the directions in logit space whose squares make up each item's Fisher information.

    The gradient of log p_k with respect to the logits is e_k - p.
    """
    probabilities = log_probs.exp()
    choices = torch.eye(probabilities.shape[1], dtype=probabilities.dtype, device=probabilities.device)
    if fisher == "exact":
        return [probabilities[:, [k]].sqrt() * (choice - probabilities) for k, choice in enumerate(choices)]
    number = uniform(item_keys(batch), 1, seed=seed, site=LABELS).double()
    below = (probabilities.cumsum(dim=-1) < number).sum(dim=-1)
    label = below.clamp(max=batch["choice_mask"].sum(dim=-1) - 1)
    return [choices[label] - probabilities]


def _as_kept(spectrum: Spectrum, linear: nn.Linear, scale: float) -> Spectrum:
    """Return the precision that is written to a file, so that a loaded posterior is the very same."""
    precision = torch.promote_types(linear.weight.dtype, torch.float32)
    return Spectrum(spectrum.basis.to(precision).contiguous(), spectrum.values * scale)
