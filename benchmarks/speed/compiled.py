"""What ``torch.compile`` makes of a training step of one layer, on cross entropy alone: a LoRA beside the mixture."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.speed import arms, measure
from benchmarks.speed.settings import Settings
from benchmarks.speed.shapes import SHAPES, base_model, batch_of

EAGER = "lora r80"


def run(settings: Settings) -> dict[str, Any]:
    """Return the time of every step over that of the LoRA without compiling, and how often Dynamo broke a graph."""
    shape, rows, tokens, rounds = settings.compiled
    one_layer = SHAPES[shape].with_layers(1)
    base = base_model(one_layer, settings.device, settings.dtype)
    batch = batch_of(one_layer, rows, tokens, settings.device)
    steps, breaks = {}, {}
    for name in (EAGER, "ffn_block"):
        steps[name] = arms.bare_step(arms.models(base, [name])[name].train(), batch, settings.precision)
        model = arms.models(base, [name])[name].train()
        torch._dynamo.utils.counters.clear()
        model.compile()
        steps[f"{name}, compiled"] = arms.bare_step(model, batch, settings.precision)
        steps[f"{name}, compiled"]()
        breaks[name] = sum(torch._dynamo.utils.counters["graph_break"].values())
    measured = measure.rounds(steps, rounds, device=settings.device)
    found = {"shape": shape, "rows": rows, "tokens": tokens, "rounds": rounds, "graph breaks": breaks}
    return {**found, "against lora r80": measure.against(measured, EAGER)}
