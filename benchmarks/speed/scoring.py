"""Questions scored per second: ours, a scorer that runs every choice as a text of its own, and the bare forward passes.

The per-choice scorer does what lm-evaluation-harness does for a multiple-choice task: a row per choice, rows sorted
by length, padded on the right, logits at every position, log-softmax over the vocabulary, sum over the choice's
tokens. With grouping, as the harness has it by default, choices that differ in their last token alone share a row:
all letters of a question do, texts of several tokens hardly ever. The bare arm runs the model on every text that ours
scores, from its first token on, in batches of the same questions, and throws the result away. No scorer but ours may
keep keys and values; all run in inference mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoTokenizer

from benchmarks.speed import arms, measure
from benchmarks.speed.settings import Settings
from benchmarks.speed.shapes import SHAPES, base_model
from uq4ct.data.sources import load
from uq4ct.prompts import Encoder, PromptConfig
from uq4ct.scoring import score_all

ROWS = 32
OURS, PER_CHOICE, GROUPED, BARE = "ours", "per choice", "per choice, grouped", "bare forward"


class Request(NamedTuple):
    """A choice of a question to score: what the model reads, and the choice's tokens, the last of which it does not."""

    item: int
    choice: int
    inputs: list[int]
    tokens: list[int]


def run(settings: Settings) -> dict[str, Any]:
    """Return items per second and ratios for answers by letter and by the text of the choices."""
    shape, *numbers, rounds = settings.scoring
    sizes = replace(SHAPES[shape], vocabulary=max(SHAPES[shape].vocabulary, 2048))  # the tokenizer's
    model = arms.mixture(base_model(sizes, settings.device, settings.dtype)).eval()
    found: dict[str, Any] = {"shape": shape, "rounds": rounds, "rows": ROWS}
    for kind, number in zip(("letters", "options"), numbers, strict=True):
        examples, data = _examples(settings, kind, number)
        questions = ROWS // max(len(example.get("option_ids", [[]])) for example in examples)
        works: dict[str, Callable[[], Any]] = {
            OURS: lambda some=examples, size=questions: score_all(model, some, 0, size),  # type: ignore[misc]
            PER_CHOICE: lambda some=examples: per_choice(model, some, ROWS),  # type: ignore[misc]
            GROUPED: lambda some=examples: per_choice(model, some, ROWS, grouped=True),  # type: ignore[misc]
            BARE: bare(model, examples, questions),
        }
        measured = measure.rounds(works, rounds, device=settings.device)
        others = (PER_CHOICE, GROUPED, BARE)
        found[kind] = {
            "data": data,
            "items per second": {name: round(len(examples) / measure.seconds(measured, name), 2) for name in works},
            "times as fast as": {name: measure.both(measured, name, OURS) for name in others},
        }
    return found


def per_choice(model: nn.Module, examples: list[dict], batch_size: int, grouped: bool = False) -> list[list[float]]:
    """Return the log-likelihood of every choice of every example."""
    groups: dict[Any, list[Request]] = {}
    for number, request in enumerate(_requests(examples)):
        groups.setdefault(tuple(request.inputs) if grouped else number, []).append(request)
    ordered = sorted(groups.values(), key=lambda group: -len(group[0].inputs))
    device = next(model.parameters()).device
    scores: dict[tuple[int, int], float] = {}
    for start in range(0, len(ordered), batch_size):
        some = ordered[start : start + batch_size]
        width = max(len(group[0].inputs) for group in some)
        padded = torch.tensor([group[0].inputs + [0] * (width - len(group[0].inputs)) for group in some], device=device)
        with torch.inference_mode():
            log_probs = torch.log_softmax(model(input_ids=padded, use_cache=False).logits.float(), dim=-1)
        for row, group in zip(log_probs, some, strict=True):
            for item, choice, inputs, tokens in group:
                mine = row[len(inputs) - len(tokens) : len(inputs)]
                scores[item, choice] = mine.gather(-1, torch.tensor(tokens, device=device)[:, None]).sum().item()
    return [[scores[item, choice] for choice in range(len(_choices(some)))] for item, some in enumerate(examples)]


def bare(model: nn.Module, examples: Sequence[dict], questions: int) -> Callable[[], None]:
    """Return the model's forward passes over the texts that ours scores, ``questions`` at a time, the longest first."""
    device = next(model.parameters()).device

    def texts(example: dict) -> list[list[int]]:
        return [[*example["input_ids"], *option] for option in example.get("option_ids", [[]])]

    ordered = sorted(examples, key=lambda example: -max(map(len, texts(example))))
    batches = []
    for start in range(0, len(ordered), questions):
        some = ordered[start : start + questions]
        rows = [text for example in some for text in texts(example)]
        width = max(map(len, rows))
        batches.append({
            "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device),
            "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device),
            "logits_to_keep": 1 + max(len(option) for example in some for option in example.get("option_ids", [[]])),
        })  # fmt: skip

    def work() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(**batch, use_cache=False)

    return work


def _requests(examples: Sequence[dict]) -> list[Request]:
    return [
        Request(item, choice, [*example["input_ids"], *tokens][:-1], list(tokens))
        for item, example in enumerate(examples)
        for choice, tokens in enumerate(_choices(example))
    ]


def _choices(example: dict) -> list[list[int]]:
    return example.get("option_ids") or [[token] for token in example["choice_ids"]]


def _examples(settings: Settings, kind: Any, number: int) -> tuple[list[dict], str]:
    """Return encoded test questions of OpenBookQA, or of the bundled task where no data root was given."""
    task, root = ("openbookqa", settings.data_root) if settings.data_root else ("tiny", "hub")
    questions = load(task, split="test", root=root).questions[:number]
    tokenizer = AutoTokenizer.from_pretrained(str(files("uq4ct.tiny") / "model"))
    encoder = Encoder(tokenizer, PromptConfig(scoring=kind))
    return list(encoder.encode_all(questions)), f"{task}, test, {len(questions)} questions, the bundled tokenizer"


