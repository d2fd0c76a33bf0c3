"""The time of one answer to one prompt: our scoring with an adapter over that of the base alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.speed import arms, measure
from benchmarks.speed.settings import Settings
from benchmarks.speed.shapes import SHAPES, base_model
from uq4ct.scoring import score_all

NAMES = ["base", "lora r80", "ffn_block", "per_linear"]


def run(settings: Settings) -> dict[str, Any]:
    """Return the ratios to the base for each shape and length of prompt."""
    found = {}
    for shape, tokens, rounds in settings.latency:
        base = base_model(SHAPES[shape], settings.device, settings.dtype)
        question = [{"input_ids": [10 + i % 400 for i in range(tokens)], "choice_ids": [1, 2, 3, 4], "answer": 0}]
        built = arms.models(base, NAMES)
        works = {name: _answer(model, question) for name, model in built.items()}
        measured = measure.rounds(works, rounds, device=settings.device)
        found[shape] = {"tokens": tokens, "rounds": rounds, "against base": measure.against(measured, "base")}
    return found


def _answer(model: Any, question: list[dict]) -> Callable[[], None]:
    def work() -> None:
        score_all(model, question, 0, 1)

    return work
