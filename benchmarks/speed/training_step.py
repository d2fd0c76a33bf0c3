"""The time of one training step (forward, loss, backward, AdamW) beside LoRA, the reference's loop and the base."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.speed import arms, measure
from benchmarks.speed.settings import Settings, Training
from benchmarks.speed.shapes import SHAPES, base_model, batch_of

WITHOUT_LOSSES = "ffn_block, cross entropy alone"


def run(settings: Settings) -> dict[str, Any]:
    """Return the ratios of every arm to LoRA r80, and of the mixture to itself without the losses on its routing."""
    return {_name(case): _measured(case, settings) for case in settings.training}


def most_that_fit(attempt: Callable[[int], None], most: int) -> int:
    """Return the largest number up to ``most`` at which ``attempt`` does not run out of memory; 1 must not.

    >>> def attempt(layers):
    ...     if layers > 5:
    ...         raise torch.OutOfMemoryError
    >>> most_that_fit(attempt, 32)
    5
    """
    fits, too_many = 0, most + 1
    number = most
    while too_many - fits > 1:
        _forget_what_is_over()
        try:
            attempt(number)
            fits = number
        except torch.OutOfMemoryError:
            too_many = number
        number = (fits + too_many) // 2
    _forget_what_is_over()
    if not fits:
        raise torch.OutOfMemoryError("not even one layer fits")
    return fits


def _forget_what_is_over() -> None:
    """Free the GPU memory of models that nothing but a cycle of references holds."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _name(case: Training) -> str:
    return f"{case.shape}, with checkpointing" if case.checkpointing else case.shape


def _measured(case: Training, settings: Settings) -> dict[str, Any]:
    layers = SHAPES[case.shape].layers
    if settings.device != "cpu":
        layers = most_that_fit(lambda number: _steps_twice(case, number, settings), min(layers, case.layers or layers))
    base, steps = _steps(case, layers, settings)
    pair = {"ffn_block": steps["ffn_block"], WITHOUT_LOSSES: steps.pop(WITHOUT_LOSSES)}
    measured = measure.rounds(steps, case.rounds, device=settings.device)
    losses = measure.rounds(pair, case.pairs, device=settings.device)
    found = {
        "layers": layers,
        "rows": case.rows,
        "tokens": case.tokens,
        "rounds": case.rounds,
        "pairs": case.pairs,
        "against lora r80": measure.against(measured, "lora r80"),
        "losses and record": measure.both(losses, "ffn_block", WITHOUT_LOSSES),
    }
    for arm, other in (("reference loop", "ffn_block"), ("per_linear", "lora matched to per_linear")):
        if {arm, other} <= set(steps):
            found[f"{arm} over {other}"] = measure.both(measured, arm, other)
    return {**found, "matched rank": arms.matched_rank(base, "per_linear")}


def _steps(case: Training, layers: int, settings: Settings) -> tuple[nn.Module, dict[str, Callable[[], None]]]:
    shape = SHAPES[case.shape].with_layers(layers)
    base = base_model(shape, settings.device, settings.dtype)
    batch = batch_of(shape, case.rows, case.tokens, settings.device)
    built = arms.models(base, case.arms)
    if case.checkpointing:
        for model in built.values():
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    steps = {
        name: arms.training_step(model, batch, arms.objective_of(name), settings.precision)
        for name, model in built.items()
    }
    return base, {**steps, WITHOUT_LOSSES: arms.bare_step(built["ffn_block"], batch, settings.precision)}


def _steps_twice(case: Training, layers: int, settings: Settings) -> None:
    """Run every step twice: the second time with the optimizer's state of all arms in memory."""
    _, steps = _steps(case, layers, settings)
    for step in [*steps.values(), *steps.values()]:
        step()
