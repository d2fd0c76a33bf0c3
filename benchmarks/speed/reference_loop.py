"""The public reference's way to compute a mixture, written anew: a loop over experts that moves rows.

MixLoRA's code runs the base gate and up once, then for every expert looks up its (token, slot) pairs, selects their
rows, runs that expert's LoRAs and the base down projection on them, and adds the weighted result into a float32
buffer. Dropout is drawn per expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uq4ct.adapters.layers import FfnMixture


class ReferenceLoop(nn.Module):
    """Compute what an ``FfnMixture`` of a Llama computes, with its parameters, the reference's way."""

    def __init__(self, mixture: FfnMixture, adapter: str = "default"):
        super().__init__()
        self.base = mixture.get_base_layer()
        self.settings = mixture.settings[adapter]
        self.router = mixture.uqmoe_router[adapter]
        rank = self.settings.rank
        for role, experts in mixture.experts(adapter).items():  # an expert has tensors of its own there
            for factor, blocks in (("A", experts.A.split(rank)), ("B", experts.B.split(rank, dim=1))):
                own = [block.detach().clone(memory_format=torch.contiguous_format) for block in blocks]
                setattr(self, f"{role}_{factor}", nn.ParameterList(own))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return sum_k w_k E_k(h)."""
        x = hidden.reshape(-1, hidden.shape[-1])
        p = F.linear(x.float(), self.router).softmax(dim=-1, dtype=torch.float32)
        weights, chosen = p.topk(self.settings.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        gate, up = self.base.gate_proj(x), self.base.up_proj(x)
        slots = F.one_hot(chosen, self.settings.num_experts).permute(2, 1, 0)
        output = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in range(self.settings.num_experts):
            slot, rows = torch.where(slots[expert])  # the host waits here
            mine = x.index_select(0, rows)
            own_gate = self._lora("gate", expert, mine, gate.index_select(0, rows))
            own_up = self._lora("up", expert, mine, up.index_select(0, rows))
            inner = self.base.act_fn(own_gate) * own_up
            result = self._lora("down", expert, inner, self.base.down_proj(inner))
            output.index_add_(0, rows, result.float() * weights[rows, slot, None])
        return output.to(hidden.dtype).reshape(hidden.shape)

    def _lora(self, role: str, expert: int, x: Tensor, base: Tensor) -> Tensor:
        A, B = getattr(self, f"{role}_A")[expert], getattr(self, f"{role}_B")[expert]
        dropped = F.dropout(x.to(A.dtype), self.settings.dropout, self.training)
        return (base + F.linear(F.linear(dropped, A), B) * self.settings.scaling).to(base.dtype)


def as_reference_loop(model: nn.Module) -> nn.Module:
    """Put a ``ReferenceLoop`` in the place of every FFN mixture of a model, and return the model."""
    for path, module in list(model.named_modules()):
        if isinstance(module, FfnMixture):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, ReferenceLoop(module))
    return model
