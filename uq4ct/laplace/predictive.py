"""What a Gaussian over LoRA weights says about an answer: Gaussian logits, and their averaged softmax.

Near its trained weights the model is linear in them, so the choice logits of a question are Gaussian with the trained
model's logits as mean and covariance J P^-1 J^T (Immer et al. 2021). The average of their softmax has no closed form:
``monte_carlo`` draws, ``probit`` and ``bridge`` approximate. A number added to all logits of a question changes no
probability, and so none of the three looks at more than the logits' differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from uq4ct.adapters.noise import uniform
from uq4ct.laplace.curvature import item_keys
from uq4ct.laplace.linearised import Linearised
from uq4ct.laplace.posterior import Posterior
from uq4ct.scoring import Batch, Example, in_batches, length

GRADIENTS = 2**30  # bytes that the gradients of a batch may take where a computer runs out of memory without a word


class GaussianLogits(NamedTuple):
    """The choice logits of questions as Gaussians, on the CPU in float64; one covariance per prior variance.

    ``mean`` is ``-inf`` and ``covariance`` 0 for choices that an item does not have; ``keys`` are numbers that depend
    on the item alone; ``letter_mass`` is None for option texts and encoders.
    """

    mean: Float[Tensor, "item choice"]
    covariance: Float[Tensor, "variance item choice choice"]
    keys: Int[Tensor, " item"]
    letter_mass: Float[Tensor, " item"] | None

    @property
    def mask(self) -> Bool[Tensor, "item choice"]:
        """The choices that each item has."""
        return ~self.mean.isneginf()


def gaussian_logits(
    model: nn.Module,
    weights: Mapping[str, nn.Linear],
    posterior: Posterior,
    examples: Sequence[Example],
    pad_token_id: int,
    *,
    batch_size: int = 8,
    variances: Sequence[float] = (),
    progress: Callable[[int, int], None] | None = None,
) -> GaussianLogits:
    """Return the linearised predictive of every example, in order; batch size and order change nothing.

    One forward pass, and one backward pass per choice. ``variances`` are prior variances to compare, by default the
    posterior's own.
    """
    asked = tuple(variances) or (posterior.prior_variance,)
    if next(model.parameters()).device.type == "cpu":
        batch_size = min(batch_size, max(1, GRADIENTS // _gradient_bytes(weights, examples)))

    def work(batch: Batch) -> list[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        at = Linearised(model, weights, batch)
        covariance = _covariance(at, list(weights), posterior, asked).cpu().movedim(1, 0)
        mean, keys = at.logits.double().cpu(), item_keys(batch).cpu()
        normalizer = None if "option_mask" in batch else at.log_normalizer
        mass = [None] * len(mean) if normalizer is None else (mean.logsumexp(dim=-1) - normalizer.double().cpu()).exp()
        return list(zip(mean, covariance, keys, mass, strict=True))

    rows = in_batches(model, examples, pad_token_id, batch_size, work, progress)
    widest = max((len(mean) for mean, *_ in rows), default=0)
    mean = torch.full((len(rows), widest), -torch.inf, dtype=torch.float64)
    covariance = torch.zeros(len(asked), len(rows), widest, widest, dtype=torch.float64)
    for item, (logits, spread, _, _) in enumerate(rows):
        mean[item, : len(logits)] = logits
        covariance[:, item, : len(logits), : len(logits)] = spread
    keys = torch.stack([row[2] for row in rows]) if rows else torch.zeros(0, dtype=torch.long)
    masses = [row[3] for row in rows if row[3] is not None]
    return GaussianLogits(mean, covariance, keys, torch.stack(masses) if masses else None)


def monte_carlo(logits: GaussianLogits, draws: int, seed: int = 0, prior: int = 0) -> Float[Tensor, "item draw choice"]:
    """Return draws of the logits, to be put through the softmax and then averaged.

    The draws of an item are a Sobol set moved by a random number per choice (Cranley and Patterson 1976), a function of
    seed and item: unbiased, evenly spread, best with a power of two. ``prior`` is the index of the prior variance.
    """
    items, choices = logits.mean.shape
    spread = torch.quasirandom.SobolEngine(choices).draw(draws, dtype=torch.float64)
    moved = spread + uniform(logits.keys, choices, seed=seed).double()[:, None]
    normal = torch.special.ndtri(moved.frac())  # never 0 or 1: the shifts lie between the points of the set's grid
    _, covariance = _contrasts(logits, prior)
    # the symmetric root is a smooth function of the covariance, so that rounding cannot turn the draws around
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0.0).sqrt()[..., None, :]) @ vectors.mT
    return logits.mean[:, None] + (normal @ root).reshape(items, draws, choices)


def probit(logits: GaussianLogits, prior: int = 0) -> Float[Tensor, "item choice"]:
    """Return log-probabilities: each difference of two logits is shrunk by its own variance.

    p_k is proportional to 1 / sum_j exp(-(m_k - m_j) / sqrt(1 + pi/8 v_kj)), v_kj the variance of the difference (Lu,
    Ie and Sha 2020). For two choices this is MacKay's approximation of 1992. The more common form, which shrinks every
    logit by its own variance, depends on what is added to all logits, and agrees with it for no number of choices.
    """
    mean, covariance = _contrasts(logits, prior)
    own = covariance.diagonal(dim1=-2, dim2=-1)
    variance = (own[..., :, None] + own[..., None, :] - 2 * covariance).clamp(min=0.0)
    difference = (mean[..., :, None] - mean[..., None, :]) / (1 + math.pi / 8 * variance).sqrt()
    against = (-difference).masked_fill(~logits.mask[:, None, :], -torch.inf)
    return (-against.logsumexp(dim=-1)).masked_fill(~logits.mask, -torch.inf).log_softmax(dim=-1)


def bridge(logits: GaussianLogits, prior: int = 0) -> Float[Tensor, "item choice"]:
    """Return log-probabilities of the Dirichlet that a softmax of these Gaussians resembles (Hobbhahn et al. 2022).

    Its concentrations are (1 - 2/K + exp(m_k) / K^2 sum_j exp(-m_j)) / v_kk for logits that sum to 0. They depend on
    the ratios of the variances alone: unlike the other two this does not tend to the trained model's own answer as the
    variances shrink.
    """
    mean, covariance = _contrasts(logits, prior)
    number = logits.mask.sum(dim=-1, keepdim=True).double()
    opposite = (-mean).masked_fill(~logits.mask, -torch.inf).logsumexp(dim=-1, keepdim=True)
    product = (mean + opposite - 2 * number.log()).exp()
    tiny = torch.finfo(torch.float64).tiny
    variance = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=tiny)
    log_concentration = (1 - 2 / number + product).log() - variance.log()
    return log_concentration.masked_fill(~logits.mask, -torch.inf).log_softmax(dim=-1)


def _gradient_bytes(weights: Mapping[str, nn.Linear], examples: Sequence[Example]) -> int:
    """Return what the gradients of the largest question's choice logits take, as float32."""
    choices = max((len(example.get("choice_ids", example.get("option_ids", ()))) for example in examples), default=1)
    tokens = max((length(example) for example in examples), default=1)
    rows = choices if any("option_ids" in example for example in examples) else 1
    return 4 * choices * rows * tokens * sum(linear.out_features for linear in weights.values())


def _covariance(
    at: Linearised, names: Sequence[str], posterior: Posterior, variances: Sequence[float]
) -> Float[Tensor, "variance item choice choice"]:
    gradients = at.choice_gradients()
    choices = at.logits.shape[1]
    total = at.logits.new_zeros(len(variances), len(at.logits), choices, choices, dtype=torch.float64)
    for number, (name, inputs) in enumerate(zip(names, at.inputs, strict=True)):
        of_weight = torch.stack([of_choice[number] for of_choice in gradients], dim=1)
        total += posterior.blocks[name].covariance(inputs, of_weight, variances)
    return total


def _contrasts(
    logits: GaussianLogits, prior: int
) -> tuple[Float[Tensor, "item choice"], Float[Tensor, "item choice choice"]]:
    """Return mean and covariance of the logits less their own mean over choices; 0 for choices an item has not."""
    mask = logits.mask.double()
    each = mask / mask.sum(dim=-1, keepdim=True)
    centre = torch.diag_embed(mask) - mask[..., :, None] * each[..., None, :]
    mean = (centre @ logits.mean.masked_fill(~logits.mask, 0.0)[..., None]).squeeze(-1)
    return mean, centre @ logits.covariance[prior] @ centre.mT
