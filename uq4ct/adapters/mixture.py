"""The mixture of low-rank experts as functions of tensors: routing (Eqs. 2, 3, 8), one adapted linear, one adapted FFN.

Every expert of a site lives in two stacked matrices, A (experts*rank, in) and B (out, experts*rank). All experts'
bottlenecks are computed at once and the ones a token did not choose are zeroed before the multiplication by B: two
matrix products, no loop over experts, no data-dependent shape, no synchronisation with the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

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
        probabilities = F.linear(hidden.to(precision), router.to(precision)).softmax(dim=-1)
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
    bottleneck = _project(x, experts.A, scaling)
    return F.linear(bottleneck if gates is None else _per_expert(bottleneck, gates), experts.B)


def adapt(
    base: Float[Tensor, "*tokens out"],
    x: Float[Tensor, "*tokens in"],
    experts: LowRank,
    scaling: float,
    gates: Float[Tensor, "*tokens experts"] | None = None,
) -> Float[Tensor, "*tokens out"]:
    """Return a base output plus ``low_rank_delta``, in the base's dtype."""
    bottleneck = _project(x, experts.A, scaling)
    return accumulate(base, bottleneck if gates is None else _per_expert(bottleneck, gates), experts.B)


def linear_mixture(
    x: Float[Tensor, "*tokens in"],
    projection: Projection,
    routing: LayerRouting,
    *,
    mixing: Mixing,
    scaling: float,
    dropout: float = 0.0,
) -> Float[Tensor, "*tokens out"]:
    """Return W0 x + s * sum_k g_k B_k A_k x for one linear with its own router (section 5.2; g = w or R)."""
    base = projection.base(x)
    if projection.experts is None:
        return base
    return adapt(base, drop(x, dropout), projection.experts, scaling, mixing_weights(routing, mixing))


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
    adapter_input = drop(hidden, dropout)
    branches = [_branch(projection, hidden, adapter_input, scaling) for projection in ffn.inputs]
    inner = branches[0].base.shape[-1] // (2 if ffn.kind == "fused" else 1)
    down = ffn.down.experts
    keep = keep_mask((chosen.shape[1], inner), dropout, hidden.device) if dropout and down is not None else None
    A = None if down is None else down.A.to(_compute_dtype(down.A))
    mixed, adapted = slot_activations(branches, ffn.activate, chosen, weights, A, keep, arithmetic)
    if mixing == "raw":
        rest = 1 - weights.sum(dim=0)
        mixed = (mixed + rest[:, None] * ffn.activate([branch.base for branch in branches])).to(mixed.dtype)
    output = ffn.down.base(mixed.view(*hidden.shape[:-1], inner))
    if down is None or adapted is None:
        return output
    return accumulate(output, (scaling / (1 - dropout)) * adapted.view(*hidden.shape[:-1], -1), down.B)


def _branch(projection: Projection, hidden: Tensor, adapter_input: Tensor, scaling: float) -> Branch:
    base = projection.base(hidden).flatten(0, -2)
    if projection.experts is None:
        return Branch(base)
    bottleneck = _project(adapter_input, projection.experts.A, scaling).flatten(0, -2)
    return Branch(base, bottleneck, projection.experts.B.to(bottleneck.dtype))


def drop(x: Tensor, probability: float) -> Tensor:
    """Apply dropout of the given probability; 0 returns ``x`` itself."""
    if not probability:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)  # one fused kernel
    return x * (keep_mask(x.shape, probability, x.device).to(x.dtype) / (1 - probability))


def keep_mask(shape: Sequence[int], probability: float, device: torch.device) -> Bool[Tensor, "..."]:
    """Draw a dropout mask, true where an entry stays; the probability of dropping it is met to 1 in 65,536.

    Four entries share a random number of 64 bits: a third of the time of ``bernoulli_``, which on a CPU is as slow as
    the matrix products of an adapter.

    >>> torch.manual_seed(0), keep_mask((3, 400), 0.25, torch.device("cpu")).float().mean().round(decimals=1)
    """
    entries = math.prod(shape)
    words = torch.empty(-(-entries // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    threshold = round(probability * 2**16) - 2**15
    return (words.view(torch.int16)[:entries] >= threshold).view(*shape)


def add(base: Tensor, delta: Tensor) -> Tensor:
    """Add a delta to a base output and round once to the base's dtype (float32 adapters over a bfloat16 base)."""
    return (base + delta).to(base.dtype)


def accumulate(base: Tensor, bottleneck: Tensor, B: Tensor) -> Tensor:
    """Return base + bottleneck B^T, by one accumulating matrix product where the dtypes allow it."""
    if base.dtype == bottleneck.dtype:
        flat = torch.addmm(base.flatten(0, -2), bottleneck.flatten(0, -2), B.to(base.dtype).T)
        return flat.view(base.shape)
    return add(base, F.linear(bottleneck, B))


def _project(x: Tensor, A: Tensor, scaling: float) -> Tensor:
    return scaling * F.linear(x.to(A.dtype), A)  # scaled here, where the tensor is smallest


def _per_expert(bottleneck: Tensor, gates: Tensor) -> Tensor:
    """Multiply each expert's block of the stacked bottleneck by its gate."""
    blocks = bottleneck.unflatten(-1, (gates.shape[-1], -1))
    return (blocks * gates.unsqueeze(-1).to(blocks.dtype)).flatten(-2)


def _compute_dtype(parameter: Tensor) -> torch.dtype:
    """Return the dtype in which a matrix product with the parameter runs, autocast included."""
    device = parameter.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parameter.dtype
