"""What is compared: the base alone, PEFT's LoRA at several ranks, our mixtures, and the reference's loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from benchmarks.speed.reference_loop import as_reference_loop
from benchmarks.speed.shapes import same_weights
from uq4ct.adapters import MixLoraConfig, linear_targets
from uq4ct.adapters.placement import lora_parameters, mixture_parameters
from uq4ct.losses.objective import Objective
from uq4ct.scoring import uq4ct_loss

PLAIN, CALIBRATED = Objective(), Objective(calibration_weight=1.0, balance_weight=0.01)
DROPOUT = 0.05
Precision = Callable[[], AbstractContextManager[object]]
MIXTURE: dict[str, Any] = {"num_experts": 8, "top_k": 2, "r": 16, "lora_alpha": 32}


def lora(base: nn.Module, rank: int, dropout: float = DROPOUT) -> nn.Module:
    """Return the base with PEFT's LoRA on the linears that the mixture adapts."""
    targets = linear_targets(base)
    options = {"lora_alpha": 2 * rank, "lora_dropout": dropout, "target_modules": targets, "task_type": "CAUSAL_LM"}
    config = LoraConfig(r=rank, **options)
    return get_peft_model(same_weights(base), config)


def mixture(base: nn.Module, dropout: float = DROPOUT, **options: Any) -> nn.Module:
    """Return the base with our mixture: routing "ffn_block" unless said otherwise."""
    config = MixLoraConfig(lora_dropout=dropout, task_type="CAUSAL_LM", **{**MIXTURE, **options})
    return get_peft_model(same_weights(base), config)


def reference(base: nn.Module, dropout: float = DROPOUT, **options: Any) -> nn.Module:
    """Return the mixture computed the public reference's way."""
    return as_reference_loop(mixture(base, dropout, **options))


def matched_rank(base: nn.Module, routing: Any = "ffn_block") -> int:
    """Return the rank of the plain LoRA that has nearest to as many trainable parameters as the mixture."""
    return round(mixture_parameters(base, routing, MIXTURE["num_experts"], MIXTURE["r"]) / lora_parameters(base))


def models(base: nn.Module, names: Sequence[str], dropout: float = DROPOUT) -> dict[str, nn.Module]:
    """Return the named arms, all on the same base weights."""
    build: dict[str, Callable[[], nn.Module]] = {
        "base": lambda: same_weights(base),
        "lora r16": lambda: lora(base, 16, dropout),
        "lora r80": lambda: lora(base, 80, dropout),
        "lora matched": lambda: lora(base, matched_rank(base), dropout),
        "lora matched to per_linear": lambda: lora(base, matched_rank(base, "per_linear"), dropout),
        "ffn_block": lambda: mixture(base, dropout),
        "per_linear": lambda: mixture(base, dropout, routing="per_linear"),
        "reference loop": lambda: reference(base, dropout),
    }
    return {name: build[name]() for name in names}


def training_step(
    model: nn.Module, batch: Mapping[str, Tensor], objective: Objective, precision: Precision = nullcontext
) -> Callable[[], None]:
    """Return one step of training: forward, loss, backward, AdamW; of the base alone: forward and backward.

    ``precision`` makes what forward pass and loss run under; backward pass and optimizer take their dtypes from there.
    """
    model.train()

    def forward() -> Tensor:
        with precision():
            return uq4ct_loss(model, batch, objective).loss

    return _training(model, forward)


def objective_of(name: str) -> Objective:
    """Return Eq. 11 whole for our mixtures, cross entropy for all others."""
    return CALIBRATED if name.startswith(("ffn_block", "per_linear")) else PLAIN


def bare_step(model: nn.Module, batch: Mapping[str, Tensor], precision: Precision = nullcontext) -> Callable[[], None]:
    """Return a training step on cross entropy that neither records the routing nor computes a loss on it."""
    extra = {"logits_to_keep": 1, "use_cache": False}

    def forward() -> Tensor:
        mask = batch["attention_mask"]
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        with precision():
            output = model(input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions, **extra)
            letters = output.logits[:, -1].float().gather(-1, batch["choice_ids"])
            return torch.nn.functional.cross_entropy(letters, batch["answer"])

    return _training(model, forward)


def _training(model: nn.Module, forward: Callable[[], Tensor]) -> Callable[[], None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True) if trained else None

    def step() -> None:
        if optimizer is None:
            with _gradients_from_the_first_projections(model):
                forward().backward()
            return
        forward().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@contextmanager
def _gradients_from_the_first_projections(model: nn.Module) -> Iterator[None]:
    """Carry gradients through the frozen base as far as adapters do: to what layer 0's q, k and v put out.

    Nothing before them trains, so that no arm computes the gradient of their input.
    """
    attention = model.get_submodule("model.layers.0.self_attn")
    projections = [attention.get_submodule(f"{role}_proj") for role in "qkv"]
    handles = [one.register_forward_hook(lambda module, args, output: output.requires_grad_()) for one in projections]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
