"""How time and kept memory of a training step of one layer depend on experts, rank, slots, tokens and rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.speed import arms, measure
from benchmarks.speed.memory import _saved
from benchmarks.speed.settings import Settings
from benchmarks.speed.shapes import SHAPES, base_model, batch_of
from uq4ct.scoring import uq4ct_loss


def run(settings: Settings) -> dict[str, Any]:
    """Return for each curve the points with their ratio to the curve's reference point."""
    shape, rows, tokens, rounds = settings.curves
    one_layer = SHAPES[shape].with_layers(1)
    base = base_model(one_layer, settings.device, settings.dtype)
    found: dict[str, Any] = {"shape": shape, "size": [rows, tokens], "rounds": rounds, "curves": {}}
    for name, reference, points in _curves(rows, tokens):
        steps, saved = {}, {}
        for point, (options, size) in points.items():
            batch = batch_of(one_layer, *size, settings.device)
            model = arms.mixture(base, **options).train()
            steps[point] = arms.training_step(model, batch, arms.CALIBRATED)
            saved[point] = _saved(model, lambda m=model, b=batch: uq4ct_loss(m, b, arms.CALIBRATED).loss)
        measured = measure.rounds(steps, rounds, device=settings.device)
        found["curves"][name] = {
            "reference": reference,
            "points": {
                point: {**row, "saved": saved[point]} for point, row in measure.against(measured, reference).items()
            },
        }
    return found


def _curves(rows: int, tokens: int) -> Iterator[tuple[str, str, dict[str, tuple[dict[str, Any], tuple[int, int]]]]]:
    """Yield each curve's name, reference point and points: options of the mixture and size of the batch."""
    size = (rows, tokens)
    numbers = (1, 2, 4, 8, 16, 32, 64)
    counts = {str(n): {"num_experts": n, "top_k": min(n, 2)} for n in numbers}
    equally_large = {n: {**counts[n], "r": 128 // int(n), "lora_alpha": 256 // int(n)} for n in counts}
    yield "experts, N r = 128", "8", {n: (options, size) for n, options in equally_large.items()}
    yield "experts of rank 16", "8", {n: (options, size) for n, options in counts.items()}
    yield "rank", "16", {str(r): ({"r": r, "lora_alpha": 2 * r}, size) for r in (4, 8, 16, 32, 64)}
    yield "slots", "2", {str(k): ({"top_k": k}, size) for k in (1, 2, 3, 4, 8)}
    yield "tokens", str(tokens), {str(t): ({}, (rows, t)) for t in (tokens // 2, tokens, 2 * tokens, 4 * tokens)}
    yield "rows", str(rows), {str(b): ({}, (b, tokens)) for b in (1, rows, 2 * rows, 4 * rows)}
