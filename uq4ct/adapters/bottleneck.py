"""The way into an adapter, z = s A drop(x): dropout and projection in one step that keeps x and a mask of bits.

Autograd would keep the dropped input of every adapter, and on a CPU the mask in floats beside it. The input itself is
the same tensor for all adapters that read it, so keeping that one and multiplying again costs a fraction of the
memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def bottleneck(
    x: Float[Tensor, "*tokens in"],
    A: Float[Tensor, "columns in"],
    scaling: float,
    keep: Bool[Tensor, "*tokens in"] | None = None,
    *,
    by_hand: bool = True,
) -> Float[Tensor, "*tokens columns"]:
    """Return scaling * (x * keep) A^T in the dtype of ``A``, or of autocast; the caller's scaling holds 1 / (1 - p).

    ``by_hand`` saves memory and changes no number; its gradient cannot be differentiated again.

    >>> bottleneck(torch.tensor([[1.0, 2.0]]), torch.ones(1, 2), 10.0, torch.tensor([[True, False]]))
    tensor([[10.]])
    """
    if keep is None:
        return scaling * project(x, A.to(compute_dtype(A)))  # scaled here, where the tensor is smallest
    wanted = torch.is_grad_enabled() and (x.requires_grad or A.requires_grad)
    if by_hand and wanted and not torch.compiler.is_compiling():
        return _Dropped.apply(x, A.to(compute_dtype(A)), keep, scaling)
    return scaling * F.linear((x * keep.to(x.dtype)).to(A.dtype), A)


def project(x: Float[Tensor, "*tokens in"], weight: Float[Tensor, "columns in"]) -> Float[Tensor, "*tokens columns"]:
    """Return x W^T in the dtype of ``weight``, whatever autocast says, keeping ``x`` itself and not its cast.

    >>> project(torch.ones(1, 2, dtype=torch.bfloat16), torch.ones(1, 2))
    tensor([[2.]])
    """
    if not torch.is_autocast_enabled(x.device.type):
        return _projected(x, weight)
    with torch.autocast(device_type=x.device.type, enabled=False):
        return _projected(x, weight)


def _projected(x: Tensor, weight: Tensor) -> Tensor:
    if x.dtype == weight.dtype or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.linear(x.to(weight.dtype), weight)
    return _Projected.apply(x, weight)


def keep_mask(shape: Sequence[int], probability: float, device: torch.device) -> Bool[Tensor, ...]:
    """Draw a dropout mask, true where an entry stays.

    On a CPU four entries share a random number of 64 bits, which meets the probability to 1 in 65,536: a third of the
    time of ``bernoulli_``, which is as slow as the matrix products of an adapter, and draws the masks of probabilities
    for which that is too coarse.

    >>> keep_mask((3, 400), 0.25, torch.device("cpu")).shape
    torch.Size([3, 400])
    """
    if torch.compiler.is_compiling():
        # Dynamo knows no random_, and fuses this
        return torch.rand(shape, device=device, dtype=torch.float32) >= probability
    if device.type != "cpu" or not 2**-8 < probability < 1 - 2**-8:
        return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(1 - probability)
    entries = math.prod(shape)
    words = torch.empty(-(-entries // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    threshold = round(probability * 2**16) - 2**15
    return (words.view(torch.int16)[:entries] >= threshold).view(*shape)


def compute_dtype(parameter: Tensor) -> torch.dtype:
    """Return the dtype in which a matrix product with the parameter runs, autocast included."""
    device = parameter.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parameter.dtype


class _Projected(torch.autograd.Function):
    """Project an input in the dtype of the weight, and cast it again for the gradient, which has one of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.to(weight.dtype), weight)

    @staticmethod
    def backward(ctx: Any, d_z: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        with torch.autocast(device_type=x.device.type, enabled=False):
            d_x = (d_z @ weight).to(x.dtype) if ctx.needs_input_grad[0] else None
            d_weight = rows(d_z).T @ rows(x).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return d_x, d_weight


def rows(x: Float[Tensor, "*tokens side"]) -> Float[Tensor, "row side"]:
    """Return a token per row, also of a token without a batch."""
    return x.reshape(-1, x.shape[-1])


class _Dropped(torch.autograd.Function):
    """Project a dropped input and keep the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, keep: Tensor, scaling: float) -> Tensor:
        ctx.scaling = scaling
        ctx.save_for_backward(x, A, keep)
        with torch.autocast(device_type=x.device.type, enabled=False):
            return F.linear((x * keep.to(x.dtype)).to(A.dtype), A).mul_(scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_z: Tensor) -> tuple[Tensor | None, ...]:
        x, A, keep = ctx.saved_tensors
        d_z, kept = d_z * ctx.scaling, keep.to(x.dtype)
        with torch.autocast(device_type=x.device.type, enabled=False):
            d_x = (d_z @ A).to(x.dtype).mul_(kept) if ctx.needs_input_grad[0] else None
            d_A = None
            if ctx.needs_input_grad[1]:
                d_A = rows(d_z).T @ rows((x * kept).to(A.dtype))
        return d_x, d_A, None, None
