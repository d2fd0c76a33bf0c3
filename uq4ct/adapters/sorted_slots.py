"""The slots of an FFN with the tokens of each expert brought together, so that nothing is multiplied by zero.

With N experts the matrix products take 1/N of the ``dense`` ones. The price: rows are gathered, and the host must
know how many tokens each expert has. On a CPU both cost next to nothing; a GPU would wait, and moving rows costs it
more than multiplying them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

KEPT_SLOTS = 2  # up to so many, keeping their pre-activations takes no more than a plain LoRA keeps


class Order(NamedTuple):
    """Say where the (slot, token) pairs go when they are sorted by expert.

    ``token`` and ``block`` of each row in sorted order: its token, and its block (token * experts + expert) of a
    stacked bottleneck; ``place`` of each token's slots: their rows. ``bounds`` are the rows of each expert.
    """

    token: Int[Tensor, " row"]
    block: Int[Tensor, " row"]
    place: Int[Tensor, "token slot"]
    bounds: tuple[tuple[int, int], ...]

    @property
    def experts(self) -> int:
        """The number of experts, those without a token included."""
        return len(self.bounds)


def order_by_expert(chosen: Bool[Tensor, "slot token expert"]) -> Order:
    """Return how to sort the (slot, token) pairs by expert.

    >>> order = order_by_expert(torch.tensor([[[False, True], [True, False]]]))
    >>> order.token.tolist(), order.block.tolist(), order.place.tolist(), order.bounds
    ([1, 0], [2, 1], [[1], [0]], ((0, 1), (1, 2)))
    """
    slots, tokens, experts = chosen.shape
    expert = chosen.to(torch.uint8).argmax(dim=-1).flatten()
    rows = expert.argsort(stable=True)
    place = torch.empty_like(rows)
    place[rows] = torch.arange(len(rows), device=rows.device)
    token = rows % tokens
    ends = expert.bincount(minlength=experts).cumsum(dim=0).tolist()
    bounds = tuple(zip([0, *ends[:-1]], ends, strict=True))
    return Order(token, token * experts + expert[rows], place.view(slots, tokens).T.contiguous(), bounds)


class SortedSlots(torch.autograd.Function):
    """Compute ``slot_activations`` expert by expert; the backward pass makes the activations again."""

    @staticmethod
    def forward(
        ctx: Any, activate: Callable, order: Order, keep: Any, weights: Tensor, down: Any, *parts: Any
    ) -> tuple[Float[Tensor, "token inner"], Float[Tensor, "token experts*rank"] | None]:
        inputs = list(_in_threes(parts))
        bottlenecks = [None if z is None else _blocks(z, order) for _, z, _ in inputs]
        pre = [_pre_activation(base, z, B, order) for (base, _, B), z in zip(inputs, bottlenecks, strict=True)]
        activation = activate(pre)
        gates = weights.T.contiguous()
        mixed = F.embedding_bag(order.place, activation, mode="sum", per_sample_weights=gates)
        projected = adapted = None
        if down is not None:
            dropped = _dropped(activation, keep, order)
            projected = torch.cat([dropped[rows] @ A.T for rows, A in _per_expert(order, down)])
            adapted = _into_blocks(projected * _sorted(gates, order)[:, None], order)
        ctx.activate, ctx.order = activate, order
        if gates.shape[-1] > KEPT_SLOTS:
            pre = [base for base, _, _ in inputs]
        ctx.save_for_backward(keep, gates, down, projected, *pre, *bottlenecks, *(B for _, _, B in inputs))
        return mixed, adapted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mixed: Tensor, d_adapted: Tensor | None) -> tuple[Tensor | None, ...]:
        keep, gates, down, projected, *parts = ctx.saved_tensors
        order, number = ctx.order, len(parts) // 3
        pre, bottlenecks, Bs = (parts[i * number : (i + 1) * number] for i in range(3))
        if gates.shape[-1] > KEPT_SLOTS:
            pre = [_pre_activation(*part, order) for part in zip(pre, bottlenecks, Bs, strict=True)]
        pre = [one.detach().requires_grad_() for one in pre]
        with torch.enable_grad():
            activation = ctx.activate(pre)
        a, gate = activation.detach(), _sorted(gates, order)[:, None]
        d_rows = d_mixed.index_select(0, order.token)
        d_gate = torch.linalg.vecdot(d_rows, a)
        d_a, d_down = d_rows.mul_(gate), None
        if down is not None and d_adapted is not None:
            d_projected = _blocks(d_adapted, order)
            d_gate += torch.linalg.vecdot(d_projected, projected)
            d_a, d_down = _through_down(d_a, d_projected * gate, a, keep, down, order)
        d_pre = torch.autograd.grad(activation, pre, d_a)
        d_parts = [
            d for part in zip(d_pre, bottlenecks, Bs, strict=True) for d in _through_branch(*part, order)
        ]
        return None, None, None, d_gate[order.place].T, d_down, *d_parts


def _in_threes(parts: Sequence[Any]) -> Iterator[tuple[Any, Any, Any]]:
    return ((parts[i], parts[i + 1], parts[i + 2]) for i in range(0, len(parts), 3))


def _per_expert(order: Order, A: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of each expert and its rows of a stacked A."""
    rank = len(A) // order.experts
    for expert, (start, end) in enumerate(order.bounds):
        yield slice(start, end), A[expert * rank : (expert + 1) * rank]


def _blocks(stacked: Tensor, order: Order) -> Tensor:
    """Return of a stacked bottleneck the block that each row uses."""
    return stacked.reshape(-1, stacked.shape[-1] // order.experts).index_select(0, order.block)


def _into_blocks(rows: Tensor, order: Order) -> Tensor:
    """Put each row back into its block of a stacked bottleneck; a token's experts differ, so none meets another."""
    tokens, rank = len(order.place), rows.shape[-1]
    return rows.new_zeros(tokens * order.experts, rank).index_copy_(0, order.block, rows).view(tokens, -1)


def _sorted(per_slot: Tensor, order: Order) -> Tensor:
    """Return a number per (token, slot) in sorted order."""
    return per_slot.new_empty(per_slot.numel()).index_copy_(0, order.place.flatten(), per_slot.flatten())


def _pre_activation(base: Tensor, bottleneck: Tensor | None, B: Tensor | None, order: Order) -> Tensor:
    pre = base.index_select(0, order.token)
    if bottleneck is not None and B is not None:
        for rows, B_t in _per_expert(order, B.T):
            pre[rows].addmm_(bottleneck[rows], B_t)
    return pre


def _dropped(activation: Tensor, keep: Tensor | None, order: Order) -> Tensor:
    return activation if keep is None else activation * keep.index_select(0, order.token).to(activation.dtype)


def _through_down(
    d_mixed: Tensor, d_projected: Tensor, a: Tensor, keep: Tensor | None, down: Tensor, order: Order
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the activations and of A_d; ``a`` is not needed any more."""
    d_down = torch.empty_like(down)
    dropped = _dropped(a, keep, order)
    d_a = d_mixed if keep is None else torch.empty_like(a)
    for (rows, A), (_, d_A) in zip(_per_expert(order, down), _per_expert(order, d_down), strict=True):
        torch.mm(d_projected[rows].T, dropped[rows], out=d_A)
        if keep is None:
            d_a[rows].addmm_(d_projected[rows], A)
        else:
            torch.mm(d_projected[rows], A, out=d_a[rows])
    return (d_a if keep is None else _dropped(d_a, keep, order).add_(d_mixed)), d_down


def _through_branch(
    d_pre: Tensor, bottleneck: Tensor | None, B: Tensor | None, order: Order
) -> tuple[Tensor | None, ...]:
    """Return the gradients of a branch's base, stacked bottleneck and B."""
    d_base = F.embedding_bag(order.place, d_pre, mode="sum")
    if bottleneck is None or B is None:
        return d_base, None, None
    d_bottleneck, d_B = torch.empty_like(bottleneck), torch.empty_like(B.T)
    for (rows, B_t), (_, d_B_t) in zip(_per_expert(order, B.T), _per_expert(order, d_B), strict=True):
        torch.mm(d_pre[rows], B_t.T, out=d_bottleneck[rows])
        torch.mm(bottleneck[rows].T, d_pre[rows], out=d_B_t)
    return d_base, _into_blocks(d_bottleneck, order), d_B.T
