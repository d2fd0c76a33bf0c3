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
from torch.autograd.graph import get_gradient_edge


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
    """Compute ``slot_activations`` expert by expert.

    The backward pass makes an expert's activations again, a few rows at a time, so that next to the gradients it gives
    back it holds little.
    """

    @staticmethod
    def forward(
        ctx: Any, activate: Callable, order: Order, keep: Any, weights: Tensor, down: Any, *parts: Any
    ) -> tuple[Float[Tensor, "token inner"], Float[Tensor, "token experts*rank"] | None]:
        bases, bottlenecks, Bs = parts[::3], [_blocks(z, order) for z in parts[1::3]], parts[2::3]
        gate = weights.flatten()[order.pair, None]
        mixed: Any = None
        projected: Any = None
        for expert, rows in order.experts():
            Bs_t = [None if B is None else _rows_of(B.T, expert, order) for B in Bs]
            activation = activate(_pre_activations(bases, bottlenecks, Bs_t, order, rows))
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
        with torch.autocast(device_type=d_mixed.device.type, enabled=False):
            return None, None, None, *SortedSlots._gradients(ctx, d_mixed, d_adapted)

    @staticmethod
    def _gradients(ctx: Any, d_mixed: Tensor, d_adapted: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of weights, A_d, and base, bottleneck and B of each input projection."""
        keep, weights, down, projected, *parts = ctx.saved_tensors
        order, number = ctx.order, ctx.inputs
        bases, bottlenecks, Bs = (parts[i * number : (i + 1) * number] for i in range(3))
        gate = weights.flatten()[order.pair, None]
        d_projected: Any = _blocks(d_adapted, order)
        found = _Gradients(order, gate, keep, down, bases, bottlenecks, Bs)
        if down is not None:
            found.d_gate += torch.linalg.vecdot(d_projected, projected)[:, None]
            d_projected *= gate
        for expert, rows in order.experts():
            found.add(ctx.activate, d_mixed, d_projected, expert, rows)
        d_weights = torch.zeros_like(weights).flatten().index_copy_(0, order.pair, found.d_gate[:, 0])
        return d_weights.view_as(weights), found.d_down, *found.of_branches()


def _pieces(rows: slice, width: int) -> Iterator[slice]:
    """Cut rows into pieces of some 0.5 MB in float32: small beside the gradients, wide enough to multiply well."""
    most = max(20, 115_000 // width)
    return (slice(first, min(first + most, rows.stop)) for first in range(rows.start, rows.stop, most))


class _Gradients:
    """Gather the gradients of the weights, of A_d and of every input projection, a few rows of an expert at a time."""

    def __init__(self, order: Order, gate: Tensor, keep: Any, down: Any, bases: Any, bottlenecks: Any, Bs: Any):
        self.order, self.gate, self.keep, self.down = order, gate, keep, down
        self.bases, self.bottlenecks, self.Bs = bases, bottlenecks, Bs
        self.d_gate = torch.zeros_like(gate)
        self.d_down: Any = None if down is None else torch.zeros_like(down)
        self.d_bases = [torch.zeros_like(base) for base in bases]
        self.d_bottlenecks: list[Any] = [None if z is None else torch.empty_like(z) for z in bottlenecks]
        self.d_Bs_t: list[Any] = [None if B is None else B.new_zeros(B.T.shape) for B in Bs]

    def add(self, activate: Callable, d_mixed: Tensor, d_projected: Any, expert: int, rows: slice) -> None:
        """Take in what the rows of one expert give."""
        Bs_t = [None if B is None else _rows_of(B.T, expert, self.order).contiguous() for B in self.Bs]  # read often
        for piece in _pieces(rows, self.bases[0].shape[-1]):
            pre = _pre_activations(self.bases, self.bottlenecks, Bs_t, self.order, piece)
            pre = [one.requires_grad_() for one in pre]
            with torch.enable_grad():
                activation = activate(pre)
            d_a = self._through_slots(activation.detach(), d_mixed, d_projected, expert, piece)
            edge = get_gradient_edge(activation)
            del activation  # its values are wide and no longer needed
            for i, d_pre in enumerate(torch.autograd.grad(edge, pre, d_a)):
                self._through_branch(i, d_pre, Bs_t[i], expert, piece)
            del pre, edge, d_a, d_pre  # ahead of the next piece

    def _through_slots(self, a: Tensor, d_mixed: Tensor, d_projected: Any, expert: int, rows: slice) -> Tensor:
        """Return the gradient of the rows' activations."""
        token = self.order.token[rows]
        d_a = d_mixed.index_select(0, token)
        self.d_gate[rows, 0] += torch.linalg.vecdot(d_a, a)
        d_a.mul_(self.gate[rows])
        if self.down is None:
            return d_a
        A, d_A = _rows_of(self.down, expert, self.order), _rows_of(self.d_down, expert, self.order)
        if self.keep is None:
            d_A.addmm_(d_projected[rows].T, a)
            return d_a.addmm_(d_projected[rows], A)
        kept = self.keep.index_select(0, token).to(a.dtype)
        d_A.addmm_(d_projected[rows].T, a * kept)
        return d_a.addcmul_(d_projected[rows] @ A, kept)

    def _through_branch(self, i: int, d_pre: Tensor, B_t: Tensor | None, expert: int, rows: slice) -> None:
        self.d_bases[i].index_add_(0, self.order.token[rows], d_pre)
        if B_t is not None:
            torch.mm(d_pre, B_t.T, out=self.d_bottlenecks[i][rows])
            _rows_of(self.d_Bs_t[i], expert, self.order).addmm_(self.bottlenecks[i][rows].T, d_pre)

    def of_branches(self) -> Iterator[Tensor | None]:
        """Yield the gradients of base, bottleneck and B of each input projection."""
        for d_base, d_z, d_B_t in zip(self.d_bases, self.d_bottlenecks, self.d_Bs_t, strict=True):
            yield d_base
            yield None if d_z is None else _into_blocks(d_z, self.order, len(d_base))
            yield None if d_B_t is None else d_B_t.T


def _pre_activations(
    bases: Sequence[Tensor], bottlenecks: Sequence[Any], Bs_t: Sequence[Any], order: Order, rows: slice
) -> list[Tensor]:
    """Return what one expert, whose B^T are given, makes of its rows at every input projection."""
    made = [base.index_select(0, order.token[rows]) for base in bases]
    for pre, z, B_t in zip(made, bottlenecks, Bs_t, strict=True):
        if z is not None and B_t is not None:
            pre.addmm_(z[rows], B_t)
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
