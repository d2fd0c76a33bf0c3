"""Make the model and train it on rows of text and questions for a stated time, then write it as a hub folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.english.tokens import ANSWER, TEXT, Row
from uq4ct.tiny.pretraining import untrained_llama


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how; the defaults are what the study used."""

    hidden: int = 512
    feed_forward: int = 1376
    layers: int = 6
    heads: int = 8
    row: int = 256  # tokens
    batch: int = 256  # rows, half of them text
    learning_rate: float = 1.5e-3
    warm_up: int = 200  # steps; then linearly to nothing at the end of the time
    weight_decay: float = 0.1
    dropout: float = 0.1  # after each attention and feed-forward block: the text is read many times
    weights: tuple[float, float, float] = (1.0, 0.3, 20.0)  # of a token of text, of a question, and of its answer
    seed: int = 1
    compiled: bool = True


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make the untrained model."""
    return untrained_llama(
        tokenizer,
        recipe.seed,
        hidden=recipe.hidden,
        feed_forward=recipe.feed_forward,
        layers=recipe.layers,
        heads=recipe.heads,
    )


def pretrain(
    model: LlamaForCausalLM,
    text: Row,
    questions: Row,
    recipe: Recipe,
    minutes: float,
    say: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Train until the time is over; return what was done. The rate follows the clock: no two trainings are the same.

    ``say`` is told about every ten seconds: minutes, step, loss of text (nats a token), and the share of answers right,
    both over the steps since it was told last.
    """
    device = next(model.parameters()).device
    handles = [_with_dropout(block, recipe.dropout) for block in _blocks(model)]
    draw = torch.Generator(device=device).manual_seed(recipe.seed)
    rows = [_Rows(tokens, kinds, recipe.row, device) for tokens, kinds in (text, questions)]
    rows[1].begin_at(model.config.bos_token_id)
    weights = torch.tensor(recipe.weights, device=device)
    optimizer = torch.optim.AdamW(
        _groups(model, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.95), fused=device.type == "cuda"
    )
    run: nn.Module = torch.compile(model) if recipe.compiled else model  # type: ignore[assignment]
    begun, told, step, seen = time.monotonic(), time.monotonic(), 0, torch.zeros(4, device=device)
    history: list[dict[str, Any]] = []
    model.train()
    while (passed := (time.monotonic() - begun) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, (step + 1) / recipe.warm_up) * (1 - passed)
        parts = [row.batch(recipe.batch // 2, draw) for row in rows]
        tokens, kinds = (torch.cat(pair) for pair in zip(*parts, strict=True))
        with torch.autocast(device.type, torch.bfloat16):
            logits = run(input_ids=tokens[:, :-1], use_cache=False).logits
        targets, kind = tokens[:, 1:], kinds[:, 1:]
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        weight = weights[kind.flatten()]
        (loss @ weight / weight.sum()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seen += _tally(logits, loss.detach(), targets, kind)
        if time.monotonic() - told > 10:
            told = time.monotonic()
            history.append(_told(seen, step, (told - begun) / 60))
            say(history[-1])
            seen.zero_()
    for handle in handles:
        handle.remove()
    model.eval()
    return {
        "minutes": (time.monotonic() - begun) / 60,
        "steps": step,
        "tokens read": step * recipe.batch * recipe.row,
        "tokens of text": len(text[0]),
        "made questions": int((questions[1] == ANSWER).sum()),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "recipe": asdict(recipe),
        "history": history,
    }


def write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, made: dict[str, Any], folder: Path) -> None:
    """Write weights in bfloat16, in pieces of at most 16 MB, the tokenizer, and how they came to be."""
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="16MB")
    tokenizer.save_pretrained(folder)
    (folder / "made.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


class _Rows:
    """Cut rows of tokens from one long row, on the device that trains."""

    def __init__(self, tokens: Any, kinds: Any, length: int, device: torch.device):
        self._tokens = torch.from_numpy(tokens.astype("int32")).to(device)
        self._kinds = torch.from_numpy(kinds).to(device)
        self._within = torch.arange(length + 1, device=device)
        self._starts: Tensor | None = None

    def begin_at(self, token: int) -> None:
        """Let rows begin where a document does."""
        starts = torch.nonzero(self._tokens == token).flatten()
        self._starts = starts[starts < len(self._tokens) - len(self._within)]

    def batch(self, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the tokens of rows, (count, length + 1), and what they are."""
        last = len(self._tokens) - len(self._within) if self._starts is None else len(self._starts)
        starts = torch.randint(last, (count,), generator=draw, device=self._tokens.device)
        places = (starts if self._starts is None else self._starts[starts])[:, None] + self._within
        return self._tokens[places].long(), self._kinds[places].long()


def _blocks(model: LlamaForCausalLM) -> list[nn.Module]:
    return [block for layer in model.model.layers for block in (layer.self_attn.o_proj, layer.mlp.down_proj)]


def _with_dropout(block: nn.Module, p: float) -> Any:
    return block.register_forward_hook(
        lambda module, _, output: nn.functional.dropout(output, p, training=module.training)
    )


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _tally(logits: Tensor, loss: Tensor, targets: Tensor, kind: Tensor) -> Tensor:
    """Return loss and count of the tokens of text, right answers and answers."""
    text, answer = (kind == TEXT).flatten(), (kind == ANSWER).flatten()
    right = (logits.detach().argmax(dim=-1) == targets).flatten() & answer
    return torch.stack([loss[text].sum(), text.sum(), right.sum(), answer.sum()]).float()


def _told(seen: Tensor, step: int, minutes: float) -> dict[str, Any]:
    loss, text, right, answers = seen.tolist()
    return {"minutes": minutes, "step": step, "text": loss / max(text, 1), "answers right": right / max(answers, 1)}
