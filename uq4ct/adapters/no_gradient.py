"""A LoRA and a linear with its own router where no gradient is wanted: the same numbers in fewer steps.

In a small model an answer's time goes into steps as much as into products, so scaling, gates and sum are done where the
values lie already. ``mixture.py`` has the definitions; tests hold this file to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from uq4ct.adapters.bottleneck import rows
from uq4ct.adapters.mixture import LowRank
from uq4ct.adapters.router import LayerRouting


def of(x: Tensor, *parameters: Tensor) -> bool:
    """Tell whether this way may be taken: no gradient, no autocast, and one dtype of 32 bits or more for all.

    >>> x = torch.ones(2)
    >>> of(x, x), torch.no_grad()(of)(x, x), torch.no_grad()(of)(x, x.double())
    (False, True, False)
    """
    return not (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled(x.device.type)
        or x.dtype.itemsize < 4
        or any(parameter.dtype != x.dtype for parameter in parameters)
    )


def route(hidden: Float[Tensor, "*tokens width"], router: Float[Tensor, "experts width"], top_k: int) -> LayerRouting:
    """Return the routing of ``mixture.route`` without the slots.

    >>> route(torch.tensor([[1.0]]), torch.tensor([[0.0], [2.0], [1.0]]), top_k=2).kept.round(decimals=3)
    tensor([[0.0000, 0.6650, 0.2450]])
    """
    probabilities = F.linear(hidden, router).softmax(dim=-1)
    values, chosen = probabilities.topk(top_k, dim=-1)
    return LayerRouting(probabilities, torch.zeros_like(probabilities).scatter_(-1, chosen, values), chosen[..., 0])


def adapt(
    base: Callable[[Tensor], Tensor],
    x: Float[Tensor, "*tokens in"],
    experts: LowRank,
    scaling: float,
    gates: Float[Tensor, "*tokens experts"] | None = None,
) -> Float[Tensor, "*tokens out"]:
    """Return W0 x + s sum_k g_k B_k A_k x, or W0 x + s B A x where there are no gates."""
    z = F.linear(x, experts.A)  # ahead of the base, whose weights drive x out of the cache
    if gates is not None:
        z.unflatten(-1, (gates.shape[-1], -1)).mul_(gates.unsqueeze(-1))
    output = base(x)
    if output.dtype != z.dtype:
        return (output + scaling * F.linear(z, experts.B)).to(output.dtype)
    total = output if _is_the_callers_own(base, output) else output.clone(memory_format=torch.contiguous_format)
    rows(total).addmm_(rows(z), experts.B.T, alpha=scaling)
    return total


def _is_the_callers_own(base: Any, output: Tensor) -> bool:
    """Tell whether a linear's output can be written to: it is new, and no hook has seen it."""
    if type(base) is not nn.Linear or "forward" in vars(base):
        return False
    return output.is_contiguous() and not (base._forward_hooks or nn.modules.module._global_forward_hooks)
