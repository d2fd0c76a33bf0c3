"""What is compared: the base alone, PEFT's LoRA at several ranks, our mixtures, and the reference's loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def models(base: nn.Module, names: list[str], dropout: float = DROPOUT) -> dict[str, nn.Module]:
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


def training_step(model: nn.Module, batch: Mapping[str, Tensor], objective: Objective) -> Callable[[], None]:
    """Return one step of training: forward, loss, backward, AdamW; of the base alone: forward and backward."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    if not trained:
        return lambda: _backward_through(model, batch)
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> None:
        uq4ct_loss(model, batch, objective).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def objective_of(name: str) -> Objective:
    """Return Eq. 11 whole for our mixtures, cross entropy for all others."""
    return CALIBRATED if name.startswith(("ffn_block", "per_linear")) else PLAIN


def _backward_through(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """Carry gradients through the frozen base to its embeddings, as an adapter in the first layer makes it do."""
    embeddings = model.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda module, args, output: output.detach().requires_grad_())
    try:
        uq4ct_loss(model, batch, PLAIN).loss.backward()
    finally:
        handle.remove()


def bare_step(model: nn.Module, batch: Mapping[str, Tensor]) -> Callable[[], None]:
    """Return a training step on cross entropy that neither records the routing nor computes a loss on it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    extra = {"logits_to_keep": 1, "use_cache": False}

    def step() -> None:
        mask = batch["attention_mask"]
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        logits = model(input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions, **extra).logits[:, -1]
        letters = logits.float().gather(-1, batch["choice_ids"])
        torch.nn.functional.cross_entropy(letters, batch["answer"]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
