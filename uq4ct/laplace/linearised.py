"""A LoRA model near its trained weights: the gradient of every choice logit with respect to them, question by question.

A LoRA weight W acts as y = W x on every token, so the gradient of a logit is the sum over tokens of g x^T with g the
gradient at y. One forward pass gives all x, one backward pass per choice all g of a whole batch; gradients with respect
to the weights themselves, which would be summed over the batch, are never formed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from uq4ct.adapters.sites import layer_index
from uq4ct.errors import UserError
from uq4ct.scoring import score

Scope = Literal["all", "last_layer"]
Tokens = Literal["all_nonpad", "last"]


def lora_weights(model: nn.Module, scope: Scope = "all") -> dict[str, nn.Linear]:
    """Return the LoRA matrices of a PEFT model as linear layers, by their names in the adapter's file.

    ``last_layer`` means the LoRA of the output head where it has one, as in Laplace-LoRA's own experiments, and else
    that of the last transformer block: heads have no LoRA by default. Raises UserError where there is none, or an
    adapter that is no plain LoRA on linear layers.
    """
    sites = {path: module for path, module in model.named_modules() if _is_lora(module)}
    if not sites:
        raise UserError("Laplace needs a model with a LoRA adapter of PEFT, and this one has none")
    if scope == "last_layer":
        sites = _last(model, sites)
    weights, problems = {}, []
    for path, site in sites.items():
        adapters = [name for name in site.active_adapters if name in site.lora_A]
        plain = len(adapters) == 1 and not site.merged and not getattr(site, "lora_variant", {})
        pair = [getattr(site, side)[adapters[0]] for side in ("lora_A", "lora_B")] if plain else []
        if not pair or not all(type(linear) is nn.Linear and linear.bias is None for linear in pair):
            problems.append(
                f"{path}: Laplace needs one active, unmerged, plain LoRA on a linear layer here, found "
                f"{type(site).__name__} with active adapters {', '.join(site.active_adapters) or 'none'}"
            )
            continue
        weights.update({f"{path}.lora_A.weight": pair[0], f"{path}.lora_B.weight": pair[1]})
    if problems:
        raise UserError(problems)
    return weights


def in_last_layer(paths: Mapping[str, Any]) -> list[str]:
    """Return the paths that lie in the last of the numbered layers among them.

    >>> in_last_layer({"model.layers.0.mlp": 0, "model.layers.1.mlp": 0, "lm_head": 0})
    ['model.layers.1.mlp']
    """
    layers = {path: layer_index(path) for path in paths}
    last = max((layer for layer in layers.values() if layer is not None), default=None)
    return [path for path, layer in layers.items() if layer is not None and layer == last]


def _is_lora(module: nn.Module) -> bool:
    return isinstance(getattr(module, "lora_A", None), nn.ModuleDict) and hasattr(module, "active_adapters")


def _last(model: Any, sites: Mapping[str, nn.Module]) -> dict[str, Any]:
    head = model.get_base_model().get_output_embeddings()
    names = [path for path, module in sites.items() if module is head] or in_last_layer(sites)
    if not names:
        raise UserError("scope 'last_layer' needs a LoRA on the head or inside numbered layers; use scope='all'")
    return {name: sites[name] for name in names}


class Linearised:
    """One batch at the trained weights: choice logits, inputs of every LoRA weight, gradients on demand.

    ``logits`` (item, choice) with ``-inf`` for choices that an item does not have, and ``log_normalizer`` (item,) are
    those of ``Scores``. The tokens of an item are those of all its rows: one row for letters or for a classifier, one
    per option text or per pair that an encoder scores. The forward pass's graph lives as long as this object.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, nn.Linear], batch: Mapping[str, Tensor]):
        self._batch = batch
        self._rows = batch["input_ids"][..., 0].numel()
        with torch.enable_grad(), _recorded(weights) as calls:
            scores = score(model, batch)
        if missing := weights.keys() - calls.keys():
            raise RuntimeError(f"the forward pass does not use {', '.join(sorted(missing))}")
        self._outputs = [calls[name][1] for name in weights]
        self._scores = scores
        self._of_row: tuple[Tensor, ...] = ()
        self.logits: Float[Tensor, "item choice"] = scores.choice_logits.detach()
        normalizer = scores.log_normalizer
        self.log_normalizer: Float[Tensor, " item"] | None = None if normalizer is None else normalizer.detach()
        self.inputs: list[Float[Tensor, "item token in"]] = [self._by_item(calls[name][0]) for name in weights]

    def gradients(self, direction: Float[Tensor, "item choice"]) -> list[Float[Tensor, "item token out"]]:
        """Return the gradient of each item's ``sum_k direction_k logit_k`` at the output of every weight.

        Where every choice has a row of its own, all of them come from a single backward pass, as rows do not see each
        other.
        """
        direction = direction.to(self.logits.dtype)
        if self._batch["input_ids"].dim() == 2:
            return [self._by_item(gradient) for gradient in self._backward(direction)]
        if not self._of_row:
            self._of_row = tuple(map(self._by_row, self._backward(torch.ones_like(direction))))
        share = direction.reshape(self._rows, 1, 1)
        return [self._by_item(gradient * share) for gradient in self._of_row]

    def choice_gradients(self) -> list[list[Float[Tensor, "item token out"]]]:
        """Return the gradients of each choice logit, by choice and weight."""
        choices = torch.eye(self.logits.shape[1], device=self.logits.device)
        return [self.gradients(choice.expand_as(self.logits)) for choice in choices]

    def positions(self, tokens: Tokens, number: int) -> Bool[Tensor, "item token"]:
        """Mark the tokens that count, among those that a weight saw, ``number`` per item.

        ``all_nonpad`` are all real ones, ``last`` those after which a logit is read.
        """
        mask = self._batch["attention_mask"].bool()
        if tokens == "last":
            mask = torch.zeros_like(mask)
            window = self._batch["answer_window"]
            mask[..., mask.shape[-1] - window.shape[-1] :] = window
        if mask.dim() == 3:
            mask = mask & self._batch["choice_mask"][..., None]
        seen = number * len(mask) // self._rows  # a head may see the last positions alone
        return mask[..., mask.shape[-1] - seen :].reshape(len(self.logits), -1)

    def _backward(self, direction: Float[Tensor, "item choice"]) -> tuple[Tensor, ...]:
        direction = direction.masked_fill(~self._batch["choice_mask"], 0.0)
        return torch.autograd.grad(
            self._scores.choice_logits, self._outputs, direction, retain_graph=True, materialize_grads=True
        )

    def _by_item(self, of_tokens: Tensor) -> Float[Tensor, "item token side"]:
        """Give what a layer saw, whose tokens some models flatten, a dimension for items, and enough precision."""
        of_tokens = self._by_row(of_tokens.to(torch.promote_types(of_tokens.dtype, torch.float32)))
        return of_tokens.reshape(len(self.logits), -1, of_tokens.shape[-1])

    def _by_row(self, of_tokens: Tensor) -> Float[Tensor, "row token side"]:
        """Give every choice of the batch a row: an encoder has none for the choices that an item does not have."""
        if len(of_tokens) == self._rows or self._scores.item is None:
            return of_tokens.reshape(self._rows, -1, of_tokens.shape[-1])
        full = of_tokens.new_zeros(self._rows, *of_tokens.shape[1:])
        full[self._batch["choice_mask"].flatten()] = of_tokens
        return full


@contextmanager
def _recorded(weights: Mapping[str, nn.Linear]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Yield the dict that the forward passes inside fill with (input, output) of every weight."""
    calls: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if name in calls:
                raise UserError(f"{name}: used twice in one forward pass, which Laplace does not support")
            calls[name] = (args[0].detach(), output)

        return hook

    trained = {name: linear.weight.requires_grad for name, linear in weights.items()}
    handles = [linear.register_forward_hook(note(name)) for name, linear in weights.items()]
    try:
        for linear in weights.values():
            linear.weight.requires_grad_(True)  # so that there is a graph; the weights' own gradients are not computed
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        for name, linear in weights.items():
            linear.weight.requires_grad_(trained[name])
