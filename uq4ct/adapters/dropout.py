"""Adapter dropout that stays on at test, with masks that belong to a question and not to its batch (MC dropout)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from uq4ct.adapters.noise import Sample, Watched, keep, watch_tokens


@contextmanager
def adapter_dropout(model: nn.Module, *, sample: Sample, seed: int = 0) -> Iterator[None]:
    """Drop the input of every LoRA of ``model`` with its own dropout probability, though the model is evaluated.

    Every other module stays as it is, dropout of the base included; nothing is left behind. Masks are a function of
    seed, sample, place in the model and token, so they do not depend on batch, padding or order. ``sample`` is one for
    all, or one for each row of the batches that run inside.
    """
    sites = [
        dropout
        for module in model.modules()
        if isinstance(getattr(module, "lora_dropout", None), nn.ModuleDict)
        for dropout in module.lora_dropout.values()  # type: ignore[operator]
        if isinstance(dropout, nn.Dropout) and dropout.p > 0  # PEFT puts an identity where there is none
    ]
    with watch_tokens(model) as watched, ExitStack() as hooks:
        for site, dropout in enumerate(sites):
            handle = dropout.register_forward_hook(_Drop(watched, seed, sample, site))
            hooks.callback(handle.remove)
        yield


class _Drop:
    """Do in evaluation what a dropout does in training: zero each entry with probability p, scale up the others."""

    def __init__(self, watched: Watched, seed: int, sample: Sample, site: int):
        self.watched, self.seed, self.sample, self.site = watched, seed, sample, site

    def __call__(self, dropout: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if dropout.training:
            return output
        keys = self.watched.keys_for(tuple(output.shape[:-1]), self.sample)
        kept = keep(keys, output.shape[-1], dropout.p, seed=self.seed, sample=self.sample, site=self.site)
        return kept.to(output.dtype).mul_(1 / (1 - dropout.p)).mul_(output)
