"""The load-balance loss (Eqs. 13-14), so that the router does not send everything to one expert."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from uq4ct.adapters.router import LayerRouting

BalanceCounts = Literal["first", "top_k"]
BalanceScope = Literal["layer", "pooled"]
BalanceProbabilities = Literal["full", "kept"]
SumOverRanks = Callable[[Tensor], Tensor]


def balance_loss(
    routing: Sequence[LayerRouting],
    mask: Bool[Tensor, "batch token"],
    counts: BalanceCounts = "first",
    scope: BalanceScope = "layer",
    probabilities: BalanceProbabilities = "full",
    sum_over_ranks: SumOverRanks | None = None,
) -> Float[Tensor, ""]:
    """Return L_b = N * sum_i F_i P_i (Eqs. 13-14, without the weight alpha_b, which the objective applies once).

    F_i is the share of real tokens whose first choice is expert i (``counts="first"``) or that keep it (``"top_k"``),
    detached; P_i the mean probability of expert i, over the full softmax (``"full"``) or the kept values only.
    ``scope="layer"`` averages over layers: 1 when even, N when collapsed; layers may differ in N. ``scope="pooled"``
    counts all layers as one: with ``"top_k"`` this is MixLoRA's form, k when even.

    With ``sum_over_ranks`` the shares are those of all ranks, and the result is this rank's part: the parts of all
    ranks sum to the loss of the joint batch, and so do their gradients.

    >>> p = torch.tensor([[[0.7, 0.3], [0.4, 0.6]]])                     # one example, two tokens, two experts
    >>> layer = LayerRouting(p, p, p.argmax(-1))
    >>> round(balance_loss([layer], torch.tensor([[True, True]])).item(), 6)       # 2 * (0.5 * 0.55 + 0.5 * 0.45)
    1.0
    >>> round(balance_loss([layer], torch.tensor([[True, False]])).item(), 6)      # collapsed: 2 * (1 * 0.7 + 0 * 0.3)
    1.4
    """
    if not routing:
        raise ValueError("the load-balance loss needs a router: the model has none, or its adapter is disabled")
    load = expert_counts(routing, mask, counts)
    mass = [_sum_over_tokens(layer.probabilities if probabilities == "full" else layer.kept, mask) for layer in routing]
    tokens = mask.sum().to(mass[0].dtype)
    if sum_over_ranks is not None:
        joint = sum_over_ranks(torch.cat([*load, tokens[None]]))
        *load, tokens = joint.split([len(layer) for layer in load] + [1])
    if scope == "pooled":
        load, mass, tokens = [_pooled(load)], [_pooled(mass)], tokens * len(routing)
    elif scope != "layer":
        raise ValueError(f"the balance scope is 'layer' or 'pooled', got {scope!r}")
    return torch.stack([len(f) * ((f / tokens) * (p / tokens)).sum() for f, p in zip(load, mass, strict=True)]).mean()


def expert_counts(
    routing: Sequence[LayerRouting], mask: Bool[Tensor, "batch token"], counts: BalanceCounts = "first"
) -> list[Float[Tensor, " expert"]]:
    """Return for each layer how many real tokens chose each expert first, or kept it at all (``"top_k"``).

    >>> p = torch.tensor([[[0.7, 0.3, 0.0], [0.2, 0.6, 0.2]]])
    >>> layer = LayerRouting(p, p * (p > 0.25), p.argmax(-1))
    >>> mask = torch.tensor([[True, True]])
    >>> expert_counts([layer], mask)[0].tolist(), expert_counts([layer], mask, "top_k")[0].tolist()
    ([1.0, 1.0, 0.0], [1.0, 2.0, 0.0])
    """
    match counts:
        case "first":
            chosen = [torch.nn.functional.one_hot(layer.first, layer.kept.shape[-1]) for layer in routing]
        case "top_k":
            chosen = [layer.kept.detach() > 0 for layer in routing]
        case _:
            raise ValueError(f"balance counts are 'first' or 'top_k', got {counts!r}")
    return [_sum_over_tokens(one.to(layer.kept.dtype), mask) for one, layer in zip(chosen, routing, strict=True)]


def load_entropy(counts: Sequence[Float[Tensor, " expert"]]) -> float:
    """Return the entropy of the expert shares over its maximum ln N, mean over layers: 1 when even, 0 when collapsed.

    >>> load_entropy([torch.tensor([5.0, 5.0]), torch.tensor([7.0, 0.0])])
    0.5
    """
    shares = [layer.double() / layer.sum() for layer in counts]
    evenness = [torch.special.entr(p).sum().item() / math.log(len(p)) if len(p) > 1 else 1.0 for p in shares]
    return sum(evenness) / len(evenness)


def _sum_over_tokens(
    values: Float[Tensor, "batch token expert"], mask: Bool[Tensor, "batch token"]
) -> Float[Tensor, " expert"]:
    return (values * mask[..., None]).sum(dim=(0, 1))


def _pooled(layers: Sequence[Float[Tensor, " expert"]]) -> Float[Tensor, " expert"]:
    experts = sorted({len(layer) for layer in layers})
    if len(experts) > 1:
        raise ValueError(f"a pooled balance needs equally many experts in every layer, got {experts}; use 'layer'")
    return torch.stack(list(layers)).sum(dim=0)
