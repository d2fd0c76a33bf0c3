"""Ask a freshly built model the questions of its own world, for its card; ``uq4ct evaluate`` is the real thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from uq4ct.tiny.questions import LETTERS, Row, render


class ZeroShot(NamedTuple):
    """Accuracy, mean confidence, and how far confidence is from the chosen answer's true probability, as fractions."""

    accuracy: float
    confidence: float
    distance: float


def ask(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row], batch: int = 200) -> ZeroShot:
    """Answer every question by the most probable of its letters."""
    letters = [tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][0] for letter in LETTERS]
    totals = torch.zeros(3, dtype=torch.float64)
    model.eval()
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        inputs = tokenizer([render(row) for row in part], return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            logits = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_to_keep=1
            ).logits[:, -1]
        for row, scores in zip(part, logits[:, letters].double(), strict=True):
            confidence, chosen = scores[: len(row["choices"])].softmax(0).max(0)
            correct = LETTERS[int(chosen)] == row["answer"]
            true = row["true_probabilities"][int(chosen)]
            totals += torch.tensor([float(correct), float(confidence), abs(float(confidence) - true)])
    return ZeroShot(*(totals / len(rows)).tolist())
