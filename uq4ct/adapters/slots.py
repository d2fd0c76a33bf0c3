"""What the experts of a token's k slots compute inside an FFN, and its gradient from little saved memory.

Autograd would keep every intermediate of every slot, about 1.6 times what a plain LoRA keeps. Written by hand, the
gradient needs no more than what the slots are made of, whatever k. There are three ways to the same numbers:
``autograd`` is the definition, and what the others are tested against; ``dense`` stacks the slots in front of the
tokens, multiplies by all experts and never waits for a value; ``sorted`` (``sorted_slots.py``) brings the tokens of
an expert together and multiplies by that one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from uq4ct.adapters.sorted_slots import SortedSlots, order_by_expert

Arithmetic = Literal["auto", "autograd", "dense", "sorted"]
KEPT_SLOTS = 2  # up to so many, keeping their pre-activations takes no more than a plain LoRA keeps
Activate = Callable[[Sequence[Tensor]], Tensor]


class Branch(NamedTuple):
    """Hold one input projection of an FFN: what the base gives, and bottleneck and B of its experts if it has any."""

    base: Float[Tensor, "token hidden"]
    bottleneck: Float[Tensor, "token experts*rank"] | None = None
    B: Float[Tensor, "hidden experts*rank"] | None = None


def slot_activations(
    branches: Sequence[Branch],
    activate: Activate,
    chosen: Bool[Tensor, "slot token expert"],
    weights: Float[Tensor, "slot token"],
    down: Float[Tensor, "experts*rank inner"] | None = None,
    keep: Bool[Tensor, "token inner"] | None = None,
    arithmetic: Arithmetic = "auto",
) -> tuple[Float[Tensor, "token inner"], Float[Tensor, "token experts*rank"] | None]:
    """Return sum_j w_j a_j, and the bottleneck of the down projection, sum_j w_j m_j * (A_d (a_j * keep)).

    a_j is the activation of slot j, whose expert is the one that m_j (``chosen``) marks. Its pre-activations are
    G_i + B_i (m_j * z_i), one per input projection i: G what the base gives, z its bottleneck. ``activate`` gets them,
    each (any, hidden). Sums are taken in float32 at least and rounded once to the base's dtype.

    ``auto`` is ``sorted`` on a CPU with four experts or more, half of them in use or fewer, and one dtype for all,
    otherwise ``dense``; under ``torch.compile``, which decides itself what to keep, it is ``autograd``. Only
    ``autograd`` can be differentiated twice.

    >>> base, chosen = torch.ones(3, 4), torch.eye(2, dtype=torch.bool)[:, None].expand(2, 3, 2)
    >>> mixed, _ = slot_activations([Branch(base)], lambda pre: pre[0] + 1, chosen, torch.full((2, 3), 0.5))
    >>> torch.equal(mixed, base + 1)
    True
    """
    way = _way(arithmetic, branches, chosen, weights)
    with torch.autocast(device_type=weights.device.type, enabled=False):  # the caller has chosen every dtype
        if way == "sorted":
            parts = [part for branch in branches for part in branch]
            return SortedSlots.apply(activate, order_by_expert(chosen), keep, weights, down, *parts)
        stacked = [_for_each_slot(branch, chosen) for branch in branches]
        if way == "dense":
            parts = [part for branch in stacked for part in branch]
            mixed, projected = _DenseSlots.apply(activate, keep, weights, down, *parts)
        else:
            activation = activate([_pre_activation(branch, len(chosen)) for branch in stacked])
            mixed, projected = _from_activation(activation, weights, down, keep)
    if projected is None:
        return mixed, None
    return mixed, _masked(projected, chosen * weights.unsqueeze(-1)).sum(dim=0)


def _way(arithmetic: Arithmetic, branches: Sequence[Branch], chosen: Tensor, weights: Tensor) -> Arithmetic:
    """Return which way to go; raise ValueError where ``sorted`` is asked for and cannot be."""
    slots, tokens, experts = chosen.shape
    dtypes = {part.dtype for branch in branches for part in branch if part is not None} | {weights.dtype}
    if arithmetic == "sorted" and len(dtypes) > 1:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ValueError(f"arithmetic 'sorted' needs one dtype for all, got {names}; use 'dense' or 'auto'")
    if arithmetic != "auto":
        return arithmetic
    if torch.compiler.is_compiling():
        return "autograd"
    fits = weights.device.type == "cpu" and tokens and experts >= 4 and slots <= experts // 2 and len(dtypes) == 1
    return "sorted" if fits else "dense"


def _for_each_slot(branch: Branch, chosen: Tensor) -> Branch:
    if branch.bottleneck is None:
        return branch
    return branch._replace(bottleneck=_masked(branch.bottleneck, chosen))


def _masked(bottleneck: Tensor, gates: Tensor) -> Tensor:
    """Multiply each expert's block of a bottleneck by its gate, (slot, token, expert)."""
    blocks = bottleneck.unflatten(-1, (gates.shape[-1], -1))
    return (blocks * gates.unsqueeze(-1).to(blocks.dtype)).flatten(-2)


def _pre_activation(branch: Branch, slots: int) -> Tensor:
    base, bottleneck, B = branch
    if bottleneck is None or B is None:
        return base.expand(slots, *base.shape)
    delta = F.linear(bottleneck, B)
    return delta.add_(base) if delta.dtype == base.dtype else (delta + base).to(base.dtype)


def _mixed(activation: Tensor, weights: Tensor) -> Tensor:
    total = activation[0] * weights[0, :, None]
    for slot in range(1, len(weights)):
        total = total.addcmul_(activation[slot], weights[slot, :, None])
    return total.to(activation.dtype)


def _from_activation(
    activation: Tensor, weights: Tensor, down: Tensor | None, keep: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    mixed = _mixed(activation, weights)
    return mixed, None if down is None else F.linear(_dropped(activation, keep).to(down.dtype), down)


def _dropped(activation: Tensor, keep: Tensor | None) -> Tensor:
    return activation if keep is None else activation * keep.to(activation.dtype)


class _DenseSlots(torch.autograd.Function):
    """Do what ``autograd`` does without keeping the activations: the backward pass makes them again."""

    @staticmethod
    def forward(ctx: Any, activate: Activate, keep: Any, weights: Tensor, down: Any, *parts: Any) -> Any:
        branches = _branches(parts)
        pre = [_pre_activation(branch, len(weights)) for branch in branches]
        mixed, projected = _from_activation(activate(pre), weights, down, keep)
        kept = [
            branch._replace(base=made) if len(weights) <= KEPT_SLOTS and branch.B is not None else branch
            for made, branch in zip(pre, branches, strict=True)
        ]
        ctx.activate = activate
        ctx.save_for_backward(keep, weights, down, *[part for branch in kept for part in branch])
        return mixed, projected

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mixed: Tensor, d_projected: Tensor | None) -> tuple[Tensor | None, ...]:
        keep, weights, down, *parts = ctx.saved_tensors
        branches = _branches(parts)
        with torch.autocast(device_type=weights.device.type, enabled=False):
            pre = [b.base if b.base.dim() == 3 else _pre_activation(b, len(weights)) for b in branches]
            pre = [one.detach().requires_grad_() for one in pre]
            with torch.enable_grad():
                activation = ctx.activate(pre)
            a = activation.detach()
            d_weights = _dot(d_mixed, a).to(weights.dtype) if ctx.needs_input_grad[2] else None
            d_a, d_down = _through_down(d_mixed, d_projected, a, weights, keep, down)
            d_pre = torch.autograd.grad(activation, pre, d_a)
            d_parts = [part for d, branch in zip(d_pre, branches, strict=True) for part in _through_branch(d, branch)]
        return None, None, d_weights, d_down, *d_parts


def _branches(parts: Sequence[Any]) -> list[Branch]:
    return [Branch(*parts[i : i + 3]) for i in range(0, len(parts), 3)]


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Return the inner products over the last axis, summed in float32 at least."""
    if one.dtype.itemsize >= 4:
        return torch.linalg.vecdot(one.expand_as(other), other)
    return (one * other).sum(dim=-1, dtype=torch.float32)


def _through_down(
    d_mixed: Tensor, d_projected: Any, a: Tensor, weights: Tensor, keep: Any, down: Any
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of the activations and of A_d."""
    if down is None or d_projected is None:
        return (d_mixed * weights[..., None]).to(a.dtype), None
    d_a: Tensor = d_projected @ down
    if keep is not None:
        d_a.mul_(keep.to(d_a.dtype))
    d_a = d_a.addcmul_(d_mixed.to(d_a.dtype).expand_as(d_a), weights[..., None].to(d_a.dtype)).to(a.dtype)
    dropped = _dropped(a, keep).to(down.dtype)
    return d_a, d_projected.flatten(0, 1).T @ dropped.flatten(0, 1)


def _through_branch(d_pre: Tensor, branch: Branch) -> tuple[Tensor | None, ...]:
    """Return the gradients of a branch's base, bottleneck and B."""
    d_base = d_pre.sum(dim=0)
    if branch.bottleneck is None or branch.B is None:
        return d_base, None, None
    d = d_pre.to(branch.B.dtype)
    return d_base, d @ branch.B, d.flatten(0, 1).T @ branch.bottleneck.flatten(0, 1)
