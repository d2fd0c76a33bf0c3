"""One forward pass of any causal model: the logits of its last positions, and what its routers did."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from uq4ct.adapters.router import LayerRouting, record_routing

if TYPE_CHECKING:
    from transformers import DynamicCache


def forward(
    model: nn.Module,
    input_ids: Int[Tensor, "row token"],
    mask: Bool[Tensor, "row token"],
    last: int,
    cache: DynamicCache | None = None,
) -> tuple[Float[Tensor, "row last vocabulary"], tuple[LayerRouting, ...]]:
    """Run a model, wrapped or not, and return the logits of the ``last`` positions and what its routers did.

    ``cache`` is filled where it is empty; where it holds the keys and values of the first columns, only the others are
    computed and recorded. Logits are float32, or float64 for a float64 model.
    """
    takes = inspect.signature(type(base_of(model)).forward).parameters
    known = 0 if cache is None else cache.get_seq_length()
    extra: dict[str, Any] = {}
    if "position_ids" in takes:
        # counted from the first real token, so that left padding does not shift absolute positions
        extra["position_ids"] = (mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, known:]
    if "logits_to_keep" in takes:
        extra["logits_to_keep"] = last
    if "use_cache" in takes:
        extra["use_cache"] = cache is not None
    if cache is not None:
        extra["past_key_values"] = cache
    with record_routing(model) as routing, _only_after(model, known) if known else nullcontext():
        output = model(input_ids=input_ids, attention_mask=mask.long(), **extra)
    logits = output.logits if hasattr(output, "logits") else output
    logits = logits[:, -last:]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), routing.layers


@contextmanager
def _only_after(model: nn.Module, known: int) -> Iterator[None]:
    """Hide the first ``known`` tokens from the model, and from it alone: noise by token is drawn for whole texts."""

    def cut(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "input_ids": kwargs["input_ids"][:, known:]}

    handle = model.register_forward_pre_hook(cut, with_kwargs=True)  # runs after those that are there already
    try:
        yield
    finally:
        handle.remove()


def base_of(model: Any) -> nn.Module:
    """Return the model of transformers inside DDP's, torch.compile's and PEFT's wrappers."""
    return [*unwrapped(model)][-1]


def unwrapped(model: Any) -> Iterator[nn.Module]:
    """Yield a model and, one after the other, what its wrappers hold; the last is the model of transformers."""
    yield model
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(getattr(model, "module", None), nn.Module):
            model = model.module
        else:
            return
        yield model
