"""The time of one training step (forward, loss, backward, AdamW) beside LoRA, the reference's loop and the base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.speed import arms, measure
from benchmarks.speed.settings import Settings
from benchmarks.speed.shapes import SHAPES, base_model, batch_of

NAMES = ["lora r80", "lora r16", "lora matched to per_linear", "base", "ffn_block", "per_linear", "reference loop"]
WITHOUT_LOSSES = "ffn_block, cross entropy alone"


def run(settings: Settings) -> dict[str, Any]:
    """Return the ratios of every arm to LoRA r80, and of the mixture to itself without the losses on its routing."""
    found = {}
    for shape, rows, tokens, rounds in settings.training:
        base = base_model(SHAPES[shape], settings.device, settings.dtype)
        batch = batch_of(SHAPES[shape], rows, tokens, settings.device)
        built = arms.models(base, NAMES)
        steps = {
            name: _with_precision(arms.training_step(model, batch, arms.objective_of(name)), settings)
            for name, model in built.items()
        }
        measured = measure.rounds(steps, rounds, device=settings.device)
        alone = {
            "ffn_block": steps["ffn_block"],
            WITHOUT_LOSSES: _with_precision(arms.bare_step(built["ffn_block"], batch), settings),
        }
        losses = measure.rounds(alone, 2 * rounds, device=settings.device)
        found[shape] = {
            "rows": rows,
            "tokens": tokens,
            "rounds": rounds,
            "matched rank": arms.matched_rank(base, "per_linear"),
            "against lora r80": measure.against(measured, "lora r80"),
            "reference loop over ffn_block": {
                clock: measure.ratio(measured, "reference loop", "ffn_block", clock) for clock in ("wall", "cpu")
            },
            "per_linear over matched lora": {
                clock: measure.ratio(measured, "per_linear", "lora matched to per_linear", clock)
                for clock in ("wall", "cpu")
            },
            "losses and record": {
                clock: measure.ratio(losses, "ffn_block", WITHOUT_LOSSES, clock) for clock in ("wall", "cpu")
            },
        }
    return found


def _with_precision(step: Callable[[], Any], settings: Settings) -> Callable[[], Any]:
    if not settings.autocast:
        return step

    def under_autocast() -> None:
        with torch.autocast(settings.device, dtype=torch.bfloat16):
            step()

    return under_autocast
