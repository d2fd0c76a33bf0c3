"""The memory of one training step: bytes that the graph keeps, and the peak of what is allocated.

Both are exact and, for the same random router, the same in every run: storages seen by autograd's hooks for saved
tensors, each once, weights left out; and the running sum of the allocator's events. The peak that the operating system
sees says nothing of a step: making the base model takes more.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed import arms, measure
from benchmarks.speed.settings import Settings
from benchmarks.speed.shapes import SHAPES, base_model, batch_of
from uq4ct.adapters.layers import use_arithmetic
from uq4ct.scoring import uq4ct_loss

MATCHED = "lora matched to per_linear"  # as many gradients of parameters as per_linear
NAMES = ["lora r80", MATCHED, "ffn_block", "ffn_block, dense", "ffn_block, autograd", "per_linear", "reference loop"]


def run(settings: Settings) -> dict[str, Any]:
    """Return for each case the two numbers of every arm and their ratios to LoRA r80."""
    cases = []
    for shape, rows, tokens, numbers_of_layers, dropouts in settings.memory:
        for layers in numbers_of_layers:
            cut = SHAPES[shape].with_layers(layers)
            base = base_model(cut, settings.device, settings.dtype)
            batch = batch_of(cut, rows, tokens, settings.device)
            for dropout, checkpointing in product(dropouts, (False, True)):
                case = {"shape": shape, "layers": layers, "rows": rows, "tokens": tokens}
                case |= {"dropout": dropout, "checkpointing": checkpointing}
                with measure.small_heap():
                    numbers = {name: _of_one(base, batch, name, dropout, checkpointing, settings) for name in NAMES}
                reference = dict(numbers["lora r80"])
                for each in numbers.values():
                    each["over lora r80"] = {key: round(each[key] / reference[key], 4) for key in reference}
                cases.append({**case, "arms": numbers})
    return {"cases": cases}


def _of_one(
    base: nn.Module, batch: dict[str, Tensor], name: str, dropout: float, checkpointing: bool, settings: Settings
) -> dict[str, Any]:
    arm, _, arithmetic = name.partition(", ")
    torch.manual_seed(0)  # which experts a random router chooses can move the peak of the sorted way
    model = arms.models(base, [arm], dropout)[arm].train()
    if arithmetic:
        use_arithmetic(model, arithmetic)  # type: ignore[arg-type]
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    objective = arms.objective_of(arm)
    step = arms.training_step(model, batch, objective, settings.precision)
    step()  # the optimizer's state is there before and after
    gc.collect()

    def loss() -> Tensor:
        with settings.precision():
            return uq4ct_loss(model, batch, objective).loss

    return {"saved": saved(model, loss), "allocated": allocated(step, settings.device)}


def saved(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Return the bytes that the graph of a loss keeps beside the model's own tensors, each storage once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss()
    return sum(kept.values())


def allocated(step: Callable[[], None], device: str = "cpu") -> int:
    """Return the largest running sum of what is allocated and freed during a step."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most
