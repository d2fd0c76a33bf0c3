"""Questions scored per second: ours, a scorer that runs every choice as a text of its own, and the bare forward passes.

The per-choice scorer does what lm-evaluation-harness does for a multiple-choice task: a row per choice, rows sorted
by length, padded on the right, logits at every position, log-softmax over the vocabulary, sum over the choice's
tokens. The bare arm runs the model on the very batches that ours makes, sorted by length, and throws the result away.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from benchmarks.speed import arms, measure
from benchmarks.speed.settings import Settings
from benchmarks.speed.shapes import SHAPES, base_model
from uq4ct.data.sources import load
from uq4ct.prompts import Encoder, PromptConfig
from uq4ct.scoring import collate, score_all

BATCH = 32
OURS, PER_CHOICE, ONE_ROW, BARE = "ours", "per choice", "per choice, one row for its letters", "bare forward"


def run(settings: Settings) -> dict[str, Any]:
    """Return items per second and ratios for answers by letter and by the text of the choices."""
    shape, number, rounds = settings.scoring
    sizes = replace(SHAPES[shape], vocabulary=max(SHAPES[shape].vocabulary, 2048))  # the tokenizer's
    base = base_model(sizes, settings.device, settings.dtype)
    model = arms.mixture(base).eval()
    found: dict[str, Any] = {"shape": shape, "questions": number, "rounds": rounds, "batch": BATCH}
    for kind in ("letters", "options"):
        examples, found["data"] = _examples(settings, kind, number)
        works = {
            OURS: lambda examples=examples: score_all(model, examples, 0, BATCH),
            PER_CHOICE: lambda examples=examples: per_choice(model, examples, BATCH),
            BARE: _bare(model, examples),
        }
        if kind == "letters":
            works[ONE_ROW] = lambda examples=examples: per_choice(model, examples, BATCH, one_row=True)
        measured = measure.rounds(works, rounds, device=settings.device)
        found[kind] = {
            "items per second": {name: round(number / measure.seconds(measured, name), 2) for name in works},
            "times as fast as": {
                name: {clock: measure.ratio(measured, name, OURS, clock) for clock in ("wall", "cpu")}
                for name in works
                if name != OURS
            },
        }
    return found


def per_choice(model: nn.Module, examples: list[dict], batch_size: int, one_row: bool = False) -> list[list[float]]:
    """Return the log-likelihood of every choice of every example; ``one_row`` reads all letters from one row."""
    requests = []
    for item, example in enumerate(examples):
        choices = example.get("option_ids") or [[token] for token in example["choice_ids"]]
        if one_row:
            requests.append((item, list(range(len(choices))), example["input_ids"], [tokens[0] for tokens in choices]))
        else:
            requests += [(item, [number], example["input_ids"], tokens) for number, tokens in enumerate(choices)]
    requests.sort(key=lambda request: -len(request[2]) - len(request[3]))
    device = next(model.parameters()).device
    scores: dict[tuple[int, int], float] = {}
    for start in range(0, len(requests), batch_size):
        some = requests[start : start + batch_size]
        inputs = [prompt if one_row else [*prompt, *tokens][:-1] for _, _, prompt, tokens in some]
        width = max(map(len, inputs))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in inputs], device=device)
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=padded).logits.float(), dim=-1)
        for row, ids, (item, numbers, prompt, tokens) in zip(log_probs, inputs, some, strict=True):
            if one_row:
                values = row[len(prompt) - 1, tokens].tolist()
            else:
                mine = row[len(ids) - len(tokens) : len(ids)]
                values = [mine.gather(-1, torch.tensor(tokens, device=device)[:, None]).sum().item()]
            scores.update({(item, number): value for number, value in zip(numbers, values, strict=True)})
    counts = [len(example.get("option_ids") or example["choice_ids"]) for example in examples]
    return [[scores[item, number] for number in range(count)] for item, count in enumerate(counts)]


def _bare(model: nn.Module, examples: list[dict]) -> Any:
    def length(example: dict) -> int:
        return len(example["input_ids"]) + max(map(len, example.get("option_ids", [[]])))

    ordered = sorted(examples, key=length, reverse=True)
    batches = [collate(ordered[start : start + BATCH], 0) for start in range(0, len(ordered), BATCH)]
    device = next(model.parameters()).device
    rows = [
        {
            "input_ids": batch["input_ids"].flatten(0, -2).to(device),
            "attention_mask": batch["attention_mask"].flatten(0, -2).to(device),
            "logits_to_keep": batch["answer_window"].shape[-1],
            "use_cache": False,
        }
        for batch in batches
    ]

    def work() -> None:
        with torch.inference_mode():
            for row in rows:
                model(**row)

    return work


def _examples(settings: Settings, kind: Any, number: int) -> tuple[list[dict], str]:
    """Return encoded test questions of OpenBookQA, or of the bundled task where no data root was given."""
    task, root = ("openbookqa", settings.data_root) if settings.data_root else ("tiny", "hub")
    questions = load(task, split="test", root=root).questions[:number]
    tokenizer = AutoTokenizer.from_pretrained(str(files("uq4ct.tiny") / "model"))
    encoder = Encoder(tokenizer, PromptConfig(scoring=kind))
    return list(encoder.encode_all(questions)), f"{task}, test, {len(questions)} questions, the bundled tokenizer"


