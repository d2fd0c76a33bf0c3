"""A LoRA and a linear with its own router where no gradient is wanted: the same numbers in fewer steps.

In a small model an answer's time goes into steps as much as into products, so scaling, gates and sum are done where the
values lie already. ``mixture.py`` has the definitions; tests hold this file to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uq4ct.adapters.bottleneck import compute_dtype, project, rows
from uq4ct.adapters.mixture import LowRank
from uq4ct.adapters.router import LayerRouting


def of(*parameters: Tensor) -> bool:
    """Tell whether this way may be taken: no gradient, and one dtype for all of an adapter.

    >>> one = torch.ones(2)
    >>> of(one), torch.no_grad()(of)(one, one), torch.no_grad()(of)(one, one.double())
    (False, True, False)
    """
    return not torch.is_grad_enabled() and len({parameter.dtype for parameter in parameters}) == 1


def route(hidden: Float[Tensor, "*tokens width"], router: Float[Tensor, "experts width"], top_k: int) -> LayerRouting:
    """Return the routing of ``mixture.route`` without the slots.

    >>> route(torch.tensor([[1.0]]), torch.tensor([[0.0], [2.0], [1.0]]), top_k=2).kept.round(decimals=3)
    tensor([[0.0000, 0.6650, 0.2450]])
    """
    precision = torch.promote_types(hidden.dtype, torch.float32)
    probabilities = project(hidden, router.to(precision)).softmax(dim=-1)
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
    dtype = compute_dtype(experts.A)
    z = project(x, experts.A.to(dtype))  # ahead of the base, whose weights drive x out of the cache
    if gates is not None:
        z.unflatten(-1, (gates.shape[-1], -1)).mul_(gates.to(dtype).unsqueeze(-1))
    output, B = base(x), experts.B.to(dtype)
    if output.dtype != dtype:
        return torch.add(output, project(z, B), alpha=scaling).to(output.dtype)
    total = output if _is_the_callers_own(base, output) else output.clone(memory_format=torch.contiguous_format)
    rows(total).addmm_(rows(z), B.T, alpha=scaling)
    return total


def _is_the_callers_own(base: Any, output: Tensor) -> bool:
    """Tell whether a linear's output can be written to: it is new, and no hook has seen it."""
    if type(base) is not nn.Linear or "forward" in vars(base):
        return False
    return output.is_contiguous() and not (base._forward_hooks or nn.modules.module._global_forward_hooks)
