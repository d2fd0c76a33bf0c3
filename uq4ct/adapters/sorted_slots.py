"""The slots of an FFN computed expert by expert, on the tokens of each alone, so that nothing is multiplied by zero.

With N experts the matrix products take 1/N of the ``dense`` ones, and what is wide exists for one expert at a time. The
price: rows are gathered and added back, and the host must know how many tokens each expert has. On a CPU both cost next
to nothing; a GPU would wait, and moving rows costs it more than multiplying them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


class Order(NamedTuple):
    """Say where the (slot, token) pairs go when they are sorted by expert.

    Of each row in sorted order: ``pair`` (slot * tokens + token), ``token``, and its ``block`` (token * experts +
    expert) of a stacked bottleneck. ``bounds`` are the rows of each expert.
    """

    pair: Int[Tensor, " row"]
    token: Int[Tensor, " row"]
    block: Int[Tensor, " row"]
    bounds: tuple[tuple[int, int], ...]

    def experts(self) -> Iterator[tuple[int, slice]]:
        """Yield each expert that has tokens, and its rows."""
        return ((expert, slice(start, end)) for expert, (start, end) in enumerate(self.bounds) if end > start)


def order_by_expert(chosen: Bool[Tensor, "slot token expert"]) -> Order:
    """Return how to sort the (slot, token) pairs by expert.

    >>> order = order_by_expert(torch.tensor([[[False, True], [True, False]]]))
    >>> order.token.tolist(), order.block.tolist(), order.bounds
    ([1, 0], [2, 1], ((0, 1), (1, 2)))
    """
    _, tokens, experts = chosen.shape
    expert = chosen.to(torch.uint8).argmax(dim=-1).flatten()
    pair = expert.argsort(stable=True)
    token = pair % tokens
    ends = expert.bincount(minlength=experts).cumsum(dim=0).tolist()
    return Order(pair, token, token * experts + expert[pair], tuple(zip([0, *ends[:-1]], ends, strict=True)))


class SortedSlots(torch.autograd.Function):
    """Compute ``slot_activations`` expert by expert; the backward pass makes each expert's activations again."""

    @staticmethod
    def forward(
        ctx: Any, activate: Callable, order: Order, keep: Any, weights: Tensor, down: Any, *parts: Any
    ) -> tuple[Float[Tensor, "token inner"], Float[Tensor, "token experts*rank"] | None]:
        bases, bottlenecks, Bs = parts[::3], [_blocks(z, order) for z in parts[1::3]], parts[2::3]
        gate = weights.flatten()[order.pair, None]
        mixed: Any = None
        projected: Any = None
        for expert, rows in order.experts():
            activation = activate(_pre_activations(bases, bottlenecks, Bs, order, expert, rows))
            if mixed is None:
                mixed = activation.new_zeros(weights.shape[1], activation.shape[-1])
            mixed.index_add_(0, order.token[rows], activation * gate[rows])
            if down is not None:
                A = _rows_of(down, expert, order)
                projected = gate.new_empty(len(gate), len(A)) if projected is None else projected
                torch.mm(_dropped(activation, keep, order.token[rows]), A.T, out=projected[rows])
        ctx.activate, ctx.order, ctx.inputs = activate, order, len(bases)
        ctx.save_for_backward(keep, weights, down, projected, *bases, *bottlenecks, *Bs)
        return mixed, None if projected is None else _into_blocks(projected * gate, order, weights.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mixed: Tensor, d_adapted: Tensor | None) -> tuple[Tensor | None, ...]:
        keep, weights, down, projected, *parts = ctx.saved_tensors
        order, number = ctx.order, ctx.inputs
        bases, bottlenecks, Bs = (parts[i * number : (i + 1) * number] for i in range(3))
        gate = weights.flatten()[order.pair, None]
        d_gate = torch.zeros_like(gate)
        d_down: Any = None
        d_projected: Any = _blocks(d_adapted, order)
        if down is not None:
            d_down = torch.zeros_like(down)
            d_gate += torch.linalg.vecdot(d_projected, projected)[:, None]
            d_projected *= gate
        into = [_Gradients(*part) for part in zip(bases, bottlenecks, Bs, strict=True)]
        for expert, rows in order.experts():
            token = order.token[rows]
            pre = _pre_activations(bases, bottlenecks, Bs, order, expert, rows)
            pre = [one.requires_grad_() for one in pre]
            with torch.enable_grad():
                activation = ctx.activate(pre)
            a, d_a = activation.detach(), d_mixed.index_select(0, token)
            d_gate[rows, 0] += torch.linalg.vecdot(d_a, a)
            d_a.mul_(gate[rows])
            if down is not None:
                torch.mm(d_projected[rows].T, _dropped(a, keep, token), out=_rows_of(d_down, expert, order))
                d_a += _dropped(d_projected[rows] @ _rows_of(down, expert, order), keep, token)
            for one, d_pre in zip(into, torch.autograd.grad(activation, pre, d_a), strict=True):
                one.add(d_pre, order, expert, rows)
        d_weights = torch.zeros_like(weights).flatten().index_copy_(0, order.pair, d_gate[:, 0]).view_as(weights)
        d_parts = [part for one in into for part in one.found(order)]
        return None, None, None, d_weights, d_down, *d_parts


class _Gradients:
    """Gather the gradients of one input projection's base, bottleneck and B, expert by expert."""

    def __init__(self, base: Tensor, bottleneck: Tensor | None, B: Tensor | None):
        self.d_base, self.bottleneck, self.B = torch.zeros_like(base), bottleneck, B
        self.d_bottleneck: Any = None if bottleneck is None else torch.empty_like(bottleneck)
        self.d_B_t: Any = None if B is None else B.new_zeros(B.T.shape)

    def add(self, d_pre: Tensor, order: Order, expert: int, rows: slice) -> None:
        """Take in what the rows of one expert give."""
        self.d_base.index_add_(0, order.token[rows], d_pre)
        if self.B is not None and self.bottleneck is not None:
            torch.mm(d_pre, _rows_of(self.B.T, expert, order).T, out=self.d_bottleneck[rows])
            torch.mm(self.bottleneck[rows].T, d_pre, out=_rows_of(self.d_B_t, expert, order))

    def found(self, order: Order) -> tuple[Tensor | None, ...]:
        """Return the three gradients."""
        if self.B is None:
            return self.d_base, None, None
        return self.d_base, _into_blocks(self.d_bottleneck, order, len(self.d_base)), self.d_B_t.T


def _pre_activations(
    bases: Sequence[Tensor],
    bottlenecks: Sequence[Tensor | None],
    Bs: Sequence[Tensor | None],
    order: Order,
    expert: int,
    rows: slice,
) -> list[Tensor]:
    """Return what one expert makes of its tokens at every input projection."""
    made = [base.index_select(0, order.token[rows]) for base in bases]
    for pre, z, B in zip(made, bottlenecks, Bs, strict=True):
        if z is not None and B is not None:
            pre.addmm_(z[rows], _rows_of(B.T, expert, order))
    return made


def _rows_of(stacked: Tensor, expert: int, order: Order) -> Tensor:
    """Return an expert's rows of a stacked A."""
    rank = len(stacked) // len(order.bounds)
    return stacked[expert * rank : (expert + 1) * rank]


def _blocks(stacked: Tensor | None, order: Order) -> Tensor | None:
    """Return of a stacked bottleneck the block that each row uses."""
    if stacked is None:
        return None
    return stacked.reshape(-1, stacked.shape[-1] // len(order.bounds)).index_select(0, order.block)


def _into_blocks(rows: Tensor, order: Order, tokens: int) -> Tensor:
    """Put each row back into its block of a stacked bottleneck; a token's experts differ, so none meets another."""
    blocks = rows.new_zeros(tokens * len(order.bounds), rows.shape[-1])
    return blocks.index_copy_(0, order.block, rows).view(tokens, -1)


def _dropped(activation: Tensor, keep: Tensor | None, token: Tensor) -> Tensor:
    return activation if keep is None else activation * keep.index_select(0, token).to(activation.dtype)
