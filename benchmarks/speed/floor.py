"""Operations and bytes of a training step at Llama-2-7B's widths in bfloat16, counted on tensors without values.

Nothing is computed: every operator of one layer's forward and backward pass is seen with its shapes. Operations are
those of matrix products and attention; bytes are those that each operator of an eager run reads and writes, views
left out. Both are what a GPU has to do at least, operator by operator; the time it takes is not known from them.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.speed import arms
from benchmarks.speed.settings import Settings
from benchmarks.speed.shapes import SHAPES, base_model
from uq4ct.adapters import slots
from uq4ct.adapters.layers import use_arithmetic

NAMES = ["base", "lora r16", "lora r80", "lora matched to per_linear", "ffn_block", "per_linear"]
BANDWIDTH, OPERATIONS = 3.35e12, 0.6 * 989e12  # an H100: bytes per second, and 60 % of its bfloat16 peak


class Count(TorchDispatchMode):
    """Add up the operations of every operator, and the bytes of its inputs and outputs unless it is a view."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, found)) if isinstance(each, torch.Tensor)]
        touches_no_data = func.is_view or func.namespace == "prim"  # such as asking for the device
        if not (touches_no_data or any(name in str(func) for name in ("empty", "detach", "_unsafe_view"))):
            self.bytes += sum(tensor.numel() * tensor.itemsize for tensor in tensors)
        if func._overloadpacket in flop_registry:
            self.operations += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=found)
        return found


def run(settings: Settings) -> dict[str, Any]:
    """Return operations and bytes of each arm for one layer, 16 x 512 tokens, and both over those of LoRA r80."""
    shape = SHAPES["7B"].with_layers(1)
    base = base_model(shape, "cpu", torch.bfloat16)
    found: dict[str, Any] = {}
    for name in NAMES:
        model = arms.models(base, [name], dropout=0.0)[name].train()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)  # as autocast has them
        use_arithmetic(model, "dense")
        as_a_gpu = patch.dict(slots.PIECE, clear=True)
        with as_a_gpu, FakeTensorMode(allow_non_fake_inputs=True), Count() as seen:
            _step(model, shape.width)
        found[name] = {"operations": seen.operations, "bytes": seen.bytes}
    for numbers in found.values():
        numbers["seconds, modelled"] = round(numbers["operations"] / OPERATIONS + numbers["bytes"] / BANDWIDTH, 5)
    reference = dict(found["lora r80"])
    for numbers in found.values():
        numbers["over lora r80"] = {key: round(numbers[key] / reference[key], 4) for key in reference}
    return {"layer of": "7B", "rows": 16, "tokens": 512, "dtype": "bfloat16", "arms": found}


def _step(model: Any, width: int) -> None:
    """Run the decoder layer alone, as the model does it; the mask of a whole model needs values."""
    inner = model.get_base_model().model if hasattr(model, "get_base_model") else model.model
    hidden = torch.empty(16, 512, width, dtype=torch.bfloat16, requires_grad=True)
    positions = torch.empty(1, 512, dtype=torch.long)
    output = inner.layers[0](hidden, position_embeddings=inner.rotary_emb(hidden, positions), position_ids=positions)
    torch.autograd.grad(output.sum(), [hidden, *(p for p in model.parameters() if p.requires_grad)])
