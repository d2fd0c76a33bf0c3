"""How time and kept memory of a training step of one layer depend on experts, rank, slots, tokens and rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.speed import arms, measure
from benchmarks.speed.memory import saved
from benchmarks.speed.settings import Settings
from benchmarks.speed.shapes import SHAPES, base_model, batch_of
from uq4ct.adapters.layers import use_arithmetic
from uq4ct.adapters.slots import Arithmetic
from uq4ct.scoring import uq4ct_loss


class Point(NamedTuple):
    """One mixture on one batch: options of ``arms.mixture``, and rows x tokens."""

    options: dict[str, Any]
    rows: int
    tokens: int


class Curve(NamedTuple):
    """Points by name, one of which the others are divided by, and how their slots are computed."""

    name: str
    reference: str
    points: dict[str, Point]
    arithmetic: Arithmetic = "auto"


def run(settings: Settings) -> dict[str, Any]:
    """Return for each curve the points with their ratio to the curve's reference point."""
    shape, rows, tokens, rounds = settings.curves
    one_layer = SHAPES[shape].with_layers(1)
    base = base_model(one_layer, settings.device, settings.dtype)
    found: dict[str, Any] = {"shape": shape, "size": [rows, tokens], "rounds": rounds, "curves": {}}
    for curve in curves(rows, tokens):
        steps, kept = {}, {}
        for name, point in curve.points.items():
            batch = batch_of(one_layer, point.rows, point.tokens, settings.device)
            model = arms.mixture(base, **point.options)
            use_arithmetic(model, curve.arithmetic)
            steps[name] = arms.training_step(model, batch, arms.CALIBRATED, settings.precision)
            with settings.precision():
                kept[name] = saved(model, lambda m=model, b=batch: uq4ct_loss(m, b, arms.CALIBRATED).loss)  # type: ignore[misc]
        measured = measure.against(measure.rounds(steps, rounds, device=settings.device), curve.reference)
        points = {name: {**row, "saved": kept[name]} for name, row in measured.items()}
        found["curves"][curve.name] = {"reference": curve.reference, "points": points}
    return found


def curves(rows: int, tokens: int) -> Iterator[Curve]:
    """Yield every curve; points of a flat one differ in the number of experts alone, at the same N r."""
    counts = {str(n): {"num_experts": n, "top_k": min(n, 2)} for n in (1, 2, 4, 8, 16, 32, 64)}
    equally_large = {n: {**counts[n], "r": 128 // int(n), "lora_alpha": 256 // int(n)} for n in counts}

    def on_the_batch(options: dict[str, dict[str, Any]]) -> dict[str, Point]:
        return {name: Point(some, rows, tokens) for name, some in options.items()}

    yield Curve("experts, N r = 128", "8", on_the_batch(equally_large))
    yield Curve("experts, N r = 128, dense", "8", on_the_batch(equally_large), "dense")
    yield Curve("experts of rank 16", "8", on_the_batch(counts))
    yield Curve("experts of rank 16, dense", "8", on_the_batch(counts), "dense")
    yield Curve("rank", "16", on_the_batch({str(r): {"r": r, "lora_alpha": 2 * r} for r in (4, 8, 16, 32, 64)}))
    yield Curve("slots", "2", on_the_batch({str(k): {"top_k": k} for k in (1, 2, 3, 4, 8)}))
    yield Curve("slots, dense", "2", on_the_batch({str(k): {"top_k": k} for k in (1, 2, 3, 4, 8)}), "dense")
    lengths = (tokens // 2, tokens, 2 * tokens, 4 * tokens)
    yield Curve("tokens", str(tokens), {str(t): Point({}, rows, t) for t in lengths})
    yield Curve("rows", str(rows), {str(b): Point({}, b, tokens) for b in (1, rows, 2 * rows, 4 * rows)})
