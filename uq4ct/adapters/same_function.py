"""Whether a model with a fresh adapter, whose deltas are zero, still computes what the base model computes.

A probe of one FFN sees neither a layer that does more between two linears of its own nor the layers after the first.
Where the user has named the FFN's parts, the whole model is run on a few tokens before and after they are replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from uq4ct.adapters.sites import undisturbed

TOKENS = 8


def has_weights(model: nn.Module) -> bool:
    """Tell whether there is something to compute with: not so on the meta device or where weights lie elsewhere."""
    return not any(p.device.type == "meta" or p.numel() == 0 for p in model.parameters())


def on_tokens(model: nn.Module) -> Tensor | str:
    """Return what a model, in evaluation, makes of a few token ids, or in words why that is not known.

    A model of transformers is run without its head: its forms of input are many, and adapters lie before it.
    """
    if not has_weights(model):
        return "its weights are not there"
    embedding = _embedding(model)
    if embedding is None:
        return "it has no embedding of tokens"
    ids = torch.arange(1, TOKENS + 1, device=embedding.device).remainder(len(embedding))[None]
    try:
        with undisturbed(model):
            model.eval()
            output = _without_head(model)(input_ids=ids)
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        return f"it cannot be run on input_ids alone: {error}"
    return _first_tensor(output)


def changed(model: nn.Module, before: Tensor | str, *, needed: bool) -> str:
    """Return in words how a model's output is no longer what ``on_tokens`` found before, or an empty string.

    Where it could not be found the model passes, unless the comparison is ``needed``.
    """
    if not has_weights(model):
        return ""
    if isinstance(before, str):
        return before if needed else ""
    after = on_tokens(model)
    if isinstance(after, str):
        return after
    floating = [tensor.dtype for tensor in (before, *model.parameters()) if tensor.is_floating_point()]
    return difference(before, after, max(torch.finfo(dtype).eps for dtype in floating))


def difference(before: Tensor, after: Tensor, eps: float) -> str:
    """Return in words how two outputs differ by more than rounding, or an empty string.

    ``eps`` is the step of the coarsest dtype. Rounding may take half of its digits: it grows over the layers, and an
    adapter calls other kernels.

    >>> difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1]), eps=2**-23)
    'outputs differ by 0.1 where the largest is 2'
    >>> difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1]), eps=2**-7)
    ''
    """
    if before.shape != after.shape:
        return "its output has another form"
    finite = before.isfinite()
    expected, found = before[finite].double(), after[finite].double()
    if not expected.numel():
        return "the base model's output is not finite"
    apart, largest = (expected - found).abs().max().item(), expected.abs().max().item()
    if apart <= max(1e-3, eps**0.5) * largest + 1e-6:
        return ""
    return f"outputs differ by {apart:.3g} where the largest is {largest:.3g}"


def _embedding(model: nn.Module) -> Tensor | None:
    """Return the table of token embeddings: what the model names so, or else its first."""
    try:
        return model.get_input_embeddings().weight  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return next((module.weight for module in model.modules() if isinstance(module, nn.Embedding)), None)


def _without_head(model: nn.Module) -> nn.Module:
    from transformers import PreTrainedModel

    return model.base_model if isinstance(model, PreTrainedModel) else model


def _first_tensor(output: Any) -> Tensor | str:
    values = list(output.values()) if isinstance(output, Mapping) else output
    candidates = values if isinstance(values, (tuple, list)) else [values]
    found = next((value for value in candidates if isinstance(value, Tensor) and value.is_floating_point()), None)
    return "its output holds no numbers" if found is None else found
