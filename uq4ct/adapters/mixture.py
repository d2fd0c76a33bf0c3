"""The mixture of low-rank experts as functions of tensors: routing (Eqs. 2, 3, 8), one adapted linear, one adapted FFN.

Every expert of a site lives in two stacked matrices, A (experts*rank, in) and B (out, experts*rank). All experts'
bottlenecks are computed at once and the ones a token did not choose are zeroed before the multiplication by B: two
matrix products, no loop over experts, no data-dependent shape, no synchronisation with the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from uq4ct.adapters.bottleneck import bottleneck, compute_dtype, keep_mask, project, rows
from uq4ct.adapters.router import LayerRouting
from uq4ct.adapters.slots import Arithmetic, Branch, slot_activations

Mixing = Literal["rescaled", "raw"]
FfnKind = Literal["gated", "fused", "plain"]


class LowRank(NamedTuple):
    """Hold the stacked low-rank factors of all experts of one linear."""

    A: Float[Tensor, "experts*rank in"]
    B: Float[Tensor, "out experts*rank"]


class Projection(NamedTuple):
    """Pair a frozen linear (any callable) with its experts; ``experts`` is None where it has no adapter."""

    base: Callable[[Tensor], Tensor]
    experts: LowRank | None


class FeedForward(NamedTuple):
    """Describe an FFN: what it projects to (gate and up, one fused gate_up, or up alone), its activation, and down.

    ``gated``: act(gate) * up. ``fused``: one projection whose halves are gate and up. ``plain``: act(up).
    """

    kind: FfnKind
    inputs: tuple[Projection, ...]
    activation: Callable[[Tensor], Tensor]
    down: Projection

    def activate(self, pre_activations: Sequence[Tensor]) -> Tensor:
        """Return the hidden activation of the given pre-activations, one per input projection."""
        if self.kind == "gated":
            gate, up = pre_activations
            return self.activation(gate) * up
        if self.kind == "fused":
            gate, up = pre_activations[0].chunk(2, dim=-1)
            return self.activation(gate) * up
        return self.activation(pre_activations[0])


def route(
    hidden: Float[Tensor, "*tokens width"], router: Float[Tensor, "experts width"], top_k: int
) -> tuple[LayerRouting, Bool[Tensor, "*tokens top_k experts"]]:
    """Choose ``top_k`` experts for every token: p = softmax(W_r h), R = keep_top_k(p) (Eqs. 3, 8).

    Always in float32 (float64 for float64 input), whatever autocast says: a bfloat16 softmax flips choices. The second
    result is the one-hot mask of the expert in each of the token's k slots, largest probability first.

    >>> routing, slots = route(torch.tensor([[1.0]]), torch.tensor([[0.0], [2.0], [1.0]]), top_k=2)
    >>> routing.kept.round(decimals=3), slots.int()
    (tensor([[0.0000, 0.6650, 0.2450]]), tensor([[[0, 1, 0],
             [0, 0, 1]]], dtype=torch.int32))
    """
    precision = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(device_type=hidden.device.type, enabled=False):
        probabilities = project(hidden, router.to(precision)).softmax(dim=-1)
    return _keep(probabilities, probabilities, top_k)


def sample_experts(
    probabilities: Float[Tensor, "*tokens experts"], uniform: Float[Tensor, "*tokens experts"], top_k: int
) -> tuple[LayerRouting, Bool[Tensor, "*tokens top_k experts"]]:
    """Draw ``top_k`` different experts for every token, each next one by its share of p among those not yet drawn.

    Adding Gumbel noise to log p and keeping the k largest does that (Gumbel top-k, Kool et al. 2019). R is p at the
    drawn experts, so their mixing weights are p rescaled among them; slots and ``first`` are in the order of drawing.

    >>> routing, _ = sample_experts(torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([[0.99, 0.01, 0.5]]), top_k=2)
    >>> routing.kept, routing.first
    (tensor([[0.2000, 0.0000, 0.3000]]), tensor([0]))
    """
    gumbel = -(-uniform.to(probabilities.dtype).log()).log()
    return _keep(probabilities, probabilities.log() + gumbel, top_k)


def _keep(probabilities: Tensor, scores: Tensor, top_k: int) -> tuple[LayerRouting, Tensor]:
    """Keep the probabilities of the experts with the largest scores."""
    chosen = scores.topk(top_k, dim=-1).indices
    slots = chosen.unsqueeze(-1) == torch.arange(probabilities.shape[-1], device=chosen.device)
    kept = probabilities * slots.any(dim=-2)
    return LayerRouting(probabilities, kept, chosen[..., 0]), slots


def mixing_weights(routing: LayerRouting, mixing: Mixing) -> Float[Tensor, "*tokens experts"]:
    """Return what multiplies each expert: w = R / sum(R) for ``rescaled``, R itself for ``raw``."""
    return routing.weights if mixing == "rescaled" else routing.kept


def low_rank_delta(
    x: Float[Tensor, "*tokens in"],
    experts: LowRank,
    scaling: float,
    gates: Float[Tensor, "*tokens experts"] | None = None,
) -> Float[Tensor, "*tokens out"]:
    """Return s * sum_k g_k B_k A_k x, which is plain LoRA (Eq. 1, with its scaling s) when ``gates`` is None.

    >>> one = LowRank(torch.ones(2, 1), torch.tensor([[1.0, 10.0]]))
    >>> low_rank_delta(torch.tensor([[2.0]]), one, 1.0, torch.tensor([[0.5, 0.25]]))
    tensor([[6.]])
    """
    z = bottleneck(x, experts.A, scaling)
    return F.linear(z if gates is None else _per_expert(z, gates), experts.B)


def adapt(
    base: Float[Tensor, "*tokens out"],
    x: Float[Tensor, "*tokens in"],
    experts: LowRank,
    scaling: float,
    gates: Float[Tensor, "*tokens experts"] | None = None,
    dropout: float = 0.0,
    by_hand: bool = True,
) -> Float[Tensor, "*tokens out"]:
    """Return a base output plus ``low_rank_delta`` of the dropped input, in the base's dtype.

    ``by_hand`` says how gradients are made: see ``bottleneck``.
    """
    z = bottleneck(x, experts.A, *_dropout(x, scaling, dropout), by_hand=by_hand)
    return accumulate(base, z if gates is None else _per_expert(z, gates), experts.B)


def linear_mixture(
    base: Float[Tensor, "*tokens out"],
    x: Float[Tensor, "*tokens in"],
    experts: LowRank,
    routing: LayerRouting,
    *,
    mixing: Mixing,
    scaling: float,
    dropout: float = 0.0,
    by_hand: bool = True,
) -> Float[Tensor, "*tokens out"]:
    """Return W0 x + s * sum_k g_k B_k A_k x for one linear with its own router (section 5.2; g = w or R).

    ``base`` is W0 x, to be computed ahead of the routing: gradients are made in reverse, and the router is then done
    with x before that of W0 x takes its place.
    """
    return adapt(base, x, experts, scaling, mixing_weights(routing, mixing), dropout, by_hand)


def ffn_mixture(
    hidden: Float[Tensor, "*tokens width"],
    ffn: FeedForward,
    routing: LayerRouting,
    slots: Bool[Tensor, "*tokens top_k experts"],
    *,
    mixing: Mixing,
    scaling: float,
    dropout: float = 0.0,
    arithmetic: Arithmetic = "auto",
) -> Float[Tensor, "*tokens width"]:
    """Return sum_k g_k E_k(h), an expert being the whole FFN with its low-rank deltas (Eqs. 2, 3).

    Since W_d is linear, sum_k g_k (W_d a_k + s B_dk A_dk a_k) = W_d (sum_k g_k a_k) + s sum_k g_k B_dk A_dk a_k:
    every base projection runs once per token. With ``mixing="raw"`` the mass that was not kept stays with the
    adapter-free activation a_0. ``dropout`` draws one mask for the FFN's input and one for the activation, each
    shared by all experts. ``arithmetic`` says how gradients are made: see ``slot_activations``.
    """
    gates = mixing_weights(routing, mixing).flatten(0, -2)
    chosen = slots.movedim(-2, 0).flatten(1, -2)  # (slot, token, expert)
    weights = (chosen * gates).sum(dim=-1)
    dropped = _dropout(hidden, scaling, dropout)
    branches = [_branch(projection, hidden, *dropped, by_hand=arithmetic != "autograd") for projection in ffn.inputs]
    inner = branches[0].base.shape[-1] // (2 if ffn.kind == "fused" else 1)
    down = ffn.down.experts
    keep = keep_mask((chosen.shape[1], inner), dropout, hidden.device) if dropout and down is not None else None
    A = None if down is None else down.A.to(compute_dtype(down.A))
    mixed, adapted = slot_activations(branches, ffn.activate, chosen, weights, A, keep, arithmetic)
    if mixing == "raw":
        rest = 1 - weights.sum(dim=0)
        mixed = (mixed + rest[:, None] * ffn.activate([branch.base for branch in branches])).to(mixed.dtype)
    output = ffn.down.base(mixed.view(*hidden.shape[:-1], inner))
    if down is None or adapted is None:
        return output
    return accumulate(output, (scaling / (1 - dropout)) * adapted.view(*hidden.shape[:-1], -1), down.B)


def _branch(projection: Projection, hidden: Tensor, scaling: float, keep: Tensor | None, *, by_hand: bool) -> Branch:
    base = projection.base(hidden).flatten(0, -2)
    if projection.experts is None:
        return Branch(base)
    z = bottleneck(hidden, projection.experts.A, scaling, keep, by_hand=by_hand).flatten(0, -2)
    return Branch(base, z, projection.experts.B.to(z.dtype))


def _dropout(x: Tensor, scaling: float, probability: float) -> tuple[float, Tensor | None]:
    """Return the scaling that makes up for what is dropped, and the mask."""
    if not probability:
        return scaling, None
    return scaling / (1 - probability), keep_mask(x.shape, probability, x.device)


def add(base: Tensor, delta: Tensor) -> Tensor:
    """Add a delta to a base output and round once to the base's dtype (float32 adapters over a bfloat16 base)."""
    return (base + delta).to(base.dtype)


def accumulate(base: Tensor, z: Tensor, B: Tensor) -> Tensor:
    """Return base + z B^T, by one accumulating matrix product where the dtypes allow it."""
    if base.dtype == z.dtype:
        flat = torch.addmm(rows(base), rows(z), B.to(base.dtype).T)
        return flat.view(base.shape)
    return add(base, F.linear(z, B))


def _per_expert(z: Tensor, gates: Tensor) -> Tensor:
    """Multiply each expert's block of the stacked bottleneck by its gate."""
    blocks = z.unflatten(-1, (gates.shape[-1], -1))
    return (blocks * gates.unsqueeze(-1).to(blocks.dtype)).flatten(-2)

