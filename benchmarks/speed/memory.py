"""The memory of one training step: bytes that the graph keeps, and the peak of what is allocated, in a process per arm.

Both are exact and the same in every run: storages seen by autograd's hooks for saved tensors, each once, weights left
out; and the running sum of the allocator's events. The peak that the operating system sees says nothing of a step:
making the base model takes more.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed import arms
from benchmarks.speed.settings import Settings
from benchmarks.speed.shapes import SHAPES, base_model, batch_of
from uq4ct.adapters.layers import use_arithmetic
from uq4ct.scoring import uq4ct_loss

NAMES = ["lora r80", "ffn_block", "ffn_block, dense", "ffn_block, autograd", "per_linear", "reference loop"]


def run(settings: Settings) -> dict[str, Any]:
    """Return the three numbers of each arm, with and without checkpointing, and their ratios to LoRA r80."""
    found: dict[str, Any] = {}
    for shape, rows, tokens in settings.memory:
        for checkpointing in (False, True):
            numbers = {name: _in_a_process(name, shape, rows, tokens, checkpointing, settings) for name in NAMES}
            for each in numbers.values():
                each["over lora r80"] = {
                    key: round(value / numbers["lora r80"][key], 4)
                    for key, value in each.items()
                    if isinstance(value, int) and numbers["lora r80"][key]
                }
            found[f"{shape}, {'with' if checkpointing else 'without'} checkpointing"] = {
                "rows": rows,
                "tokens": tokens,
                "arms": numbers,
            }
    return found


def _in_a_process(name: str, shape: str, rows: int, tokens: int, checkpointing: bool, settings: Settings) -> Any:
    request = [name, shape, rows, tokens, checkpointing, settings.device, settings.autocast]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.speed.memory", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_one(
    name: str, shape: str, rows: int, tokens: int, checkpointing: bool, device: str, autocast: bool
) -> dict[str, int]:
    """Return the bytes of one arm's training step."""
    dtype = torch.bfloat16 if autocast else torch.float32
    base = base_model(SHAPES[shape], device, dtype)
    batch = batch_of(SHAPES[shape], rows, tokens, device)
    arm, _, arithmetic = name.partition(", ")
    model = arms.models(base, [arm])[arm].train()
    if arithmetic:
        use_arithmetic(model, arithmetic)  # type: ignore[arg-type]
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    objective = arms.objective_of(arm)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def loss() -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            return uq4ct_loss(model, batch, objective).loss

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    if device != "cpu":
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return {"saved": _saved(model, loss), "allocated": torch.cuda.max_memory_allocated() - before}
    step()
    return {"saved": _saved(model, loss), "allocated": _allocated(step)}


def _saved(model: nn.Module, loss: Any) -> int:
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


def _allocated(step: Any) -> int:
    """Return the largest running sum of what is allocated and freed during a step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure_one(*json.loads(sys.argv[1]))))
