"""What the experts of a token's k slots compute inside an FFN, and its gradient from little saved memory.

Autograd would keep every intermediate of every slot, about 1.6 times what a plain LoRA keeps. Written by hand, the
gradient needs no more than what the slots are made of, whatever k. There are three ways to the same numbers:
``autograd`` is the definition, and what the others are tested against; ``dense`` stacks the slots in front of the
tokens, multiplies by all experts and never waits for a value; ``sorted`` (``sorted_slots.py``) brings the tokens of
an expert together and multiplies by that one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from uq4ct.adapters.sorted_slots import SortedSlots, order_by_expert

Arithmetic = Literal["auto", "autograd", "dense", "sorted"]
PIECE = {"cpu": 2**19}  # values of a piece of the backward pass; elsewhere 2^25
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
    each (any, hidden). A delta is rounded to its adapters' dtype and, added, to the base's; the sum over slots is taken
    in the dtype of ``weights`` or a wider one and rounded once, to the base's.

    ``auto`` is ``sorted`` on a CPU with four experts or more, half of them in use or fewer, and one dtype for all,
    otherwise ``dense``; under ``torch.compile``, which decides itself what to keep, it is ``autograd``, and so it is
    where gradients are wanted through an activation that has trained parameters or works in place: there the ways by
    hand would lose a gradient or spoil what they keep, and raise ValueError. Only ``autograd`` can be differentiated
    twice.

    >>> base, chosen = torch.ones(3, 4), torch.eye(2, dtype=torch.bool)[:, None].expand(2, 3, 2)
    >>> mixed, _ = slot_activations([Branch(base)], lambda pre: pre[0] + 1, chosen, torch.full((2, 3), 0.5))
    >>> torch.equal(mixed, base + 1)
    True
    """
    way = _way(arithmetic, branches, activate, chosen, weights)
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


def _way(
    arithmetic: Arithmetic, branches: Sequence[Branch], activate: Activate, chosen: Tensor, weights: Tensor
) -> Arithmetic:
    """Return which way to go; raise ValueError where a way is asked for and cannot be."""
    if arithmetic == "autograd" or (arithmetic == "auto" and torch.compiler.is_compiling()):
        return "autograd"
    if torch.is_grad_enabled() and (problem := _not_by_hand(activate, branches)):
        if arithmetic == "auto":
            return "autograd"
        raise ValueError(f"arithmetic {arithmetic!r}: the activation {problem}; use 'autograd' or 'auto'")
    slots, tokens, experts = chosen.shape
    dtypes = {part.dtype for branch in branches for part in branch if part is not None} | {weights.dtype}
    if arithmetic == "sorted" and len(dtypes) > 1:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ValueError(f"arithmetic 'sorted' needs one dtype for all, got {names}; use 'dense' or 'auto'")
    if arithmetic == "sorted" and not tokens:
        return "dense"  # nothing to sort
    if arithmetic != "auto":
        return arithmetic
    fits = weights.device.type == "cpu" and tokens and experts >= 4 and slots <= experts // 2 and len(dtypes) == 1
    return "sorted" if fits else "dense"


def _not_by_hand(activate: Activate, branches: Sequence[Branch]) -> str | None:
    """Return what forbids to make gradients through the activation by hand, found on one row of zeros."""
    rows = [branch.base.detach().new_zeros(1, branch.base.shape[-1]) for branch in branches]
    versions = [row._version for row in rows]
    if activate(rows).requires_grad:
        return "has parameters that are trained"
    return None if [row._version for row in rows] == versions else "works in place"


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
    """Do what ``autograd`` does without keeping the activations: the backward pass makes them again, in pieces."""

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
        found = _Gradients(weights, down, _branches(parts))
        with torch.autocast(device_type=weights.device.type, enabled=False):
            for tokens in found.pieces():
                found.add(ctx.activate, tokens, keep, d_mixed, d_projected)
        return None, None, *found.rounded()


class _Gradients:
    """Gather the gradients of the weights, of A_d and of every branch, some tokens at a time."""

    def __init__(self, weights: Tensor, down: Tensor | None, branches: list[Branch]):
        self.weights, self.down, self.branches = weights, down, branches
        tokens = weights.shape[1]
        self.d_weights = torch.empty_like(weights)
        self.d_down = None if down is None else _zeros_to_sum(down)
        self.d_bases = [branch.base.new_empty(tokens, branch.base.shape[-1]) for branch in branches]
        self.d_zs: list[Any] = [None if b.bottleneck is None else torch.empty_like(b.bottleneck) for b in branches]
        self.d_Bs: list[Any] = [None if branch.B is None else _zeros_to_sum(branch.B) for branch in branches]

    def pieces(self) -> Iterator[slice]:
        """Cut the tokens so that what is wide takes little beside the gradients, and a GPU still has enough to do."""
        slots, tokens = self.weights.shape
        values = PIECE.get(self.weights.device.type, 2**25)
        most = max(1, values // (slots * self.d_bases[0].shape[-1]))
        return (slice(first, first + most) for first in range(0, tokens, most))

    def add(self, activate: Activate, tokens: slice, keep: Any, d_mixed: Tensor, d_projected: Any) -> None:
        """Take in what some tokens give."""
        weights, pre = self.weights[:, tokens], []
        for base, bottleneck, B in self.branches:
            if base.dim() == 3:  # the pre-activations themselves were kept
                made = base[:, tokens]
            else:
                z = None if bottleneck is None else bottleneck[:, tokens]
                made = _pre_activation(Branch(base[tokens], z, B), len(weights))
            pre.append(made.detach().requires_grad_())
        with torch.enable_grad():
            activation = activate(pre)
        d_a = self._through_slots(
            activation.detach(),
            weights,
            tokens,
            d_mixed[tokens],
            None if d_projected is None else d_projected[:, tokens],
            None if keep is None else keep[tokens],
        )
        edge = get_gradient_edge(activation)
        del activation  # its values are wide and no longer needed
        for i, d_pre in enumerate(torch.autograd.grad(edge, pre, d_a)):
            self._through_branch(i, d_pre, tokens)

    def _through_slots(
        self, a: Tensor, weights: Tensor, tokens: slice, d_mixed: Tensor, d_projected: Any, keep: Any
    ) -> Tensor:
        """Return the gradient of the tokens' activations."""
        self.d_weights[:, tokens] = _dot(d_mixed, a)
        if self.down is None or self.d_down is None:
            return (d_mixed * weights[..., None]).to(a.dtype)
        _add_product(self.d_down, d_projected, _dropped(a, keep).to(self.down.dtype))
        d_a: Tensor = (d_projected @ self.down).to(torch.promote_types(a.dtype, self.down.dtype))
        if keep is not None:
            d_a.mul_(keep.to(d_a.dtype))
        return d_a.addcmul_(d_mixed.to(d_a.dtype).expand_as(d_a), weights[..., None].to(d_a.dtype)).to(a.dtype)

    def _through_branch(self, i: int, d_pre: Tensor, tokens: slice) -> None:
        _, bottleneck, B = self.branches[i]
        torch.sum(d_pre, dim=0, out=self.d_bases[i][tokens])
        if bottleneck is not None and B is not None:
            d = d_pre.to(B.dtype)
            self.d_zs[i][:, tokens] = d @ B
            _add_product(self.d_Bs[i], d, bottleneck[:, tokens])

    def rounded(self) -> Iterator[Tensor | None]:
        """Yield the gradients in the dtypes of what they belong to: of the weights, A_d, base, bottleneck and B."""
        yield self.d_weights
        yield None if self.down is None or self.d_down is None else self.d_down.to(self.down.dtype)
        for (_, _, B), d_base, d_z, d_B in zip(self.branches, self.d_bases, self.d_zs, self.d_Bs, strict=True):
            yield from (d_base, d_z, None if B is None else d_B.to(B.dtype))


def _zeros_to_sum(like: Tensor) -> Tensor:
    """Return zeros to add up a gradient in float32 at least."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))


def _branches(parts: Sequence[Any]) -> list[Branch]:
    return [Branch(*parts[i : i + 3]) for i in range(0, len(parts), 3)]


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Return the inner products over the last axis, summed in float32 at least."""
    if one.dtype.itemsize >= 4:
        return torch.linalg.vecdot(one.expand_as(other), other)
    return (one * other).sum(dim=-1, dtype=torch.float32)


def _add_product(total: Any, one: Tensor, other: Tensor) -> None:
    """Add the product of two (slot, token, any) over slots and tokens."""
    left, right = one.flatten(0, 1).T, other.flatten(0, 1)
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
