"""Samples and members as rows of one batch over a pass for each: for a single prompt, and where there are more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from benchmarks.speed import arms, measure
from benchmarks.speed.settings import Settings
from benchmarks.speed.shapes import SHAPES, base_model, batch_of
from uq4ct.adapters import linear_targets
from uq4ct.adapters.dropout import adapter_dropout
from uq4ct.passes import TOKENS, adapter_of_each_row
from uq4ct.scoring import score

SAMPLES, MEMBERS = 10, ("default", "second", "third")
SAMPLES_ROWS, SAMPLES_ALL, MEMBERS_ALL = (
    f"samples, batches of {TOKENS} tokens",
    "samples, one batch",
    "members, one batch",
)


def run(settings: Settings) -> list[dict[str, Any]]:
    """Return for each case the time of batches over that of passes."""
    return [_of_one(*case, settings) for case in settings.together]


def _of_one(shape: str, rows: int, tokens: int, rounds: int, settings: Settings) -> dict[str, Any]:
    base = base_model(SHAPES[shape], settings.device, settings.dtype)
    batch = batch_of(SHAPES[shape], rows, tokens, settings.device)
    lora, members = arms.lora(base, 80).eval(), arms.lora(base, 80)
    config = LoraConfig(r=80, lora_alpha=160, lora_dropout=arms.DROPOUT, target_modules=linear_targets(base))
    for name in MEMBERS[1:]:
        members.add_adapter(name, config)  # type: ignore[operator]
    members.eval()

    def dropped(samples: tuple[int, ...]) -> AbstractContextManager[None]:
        return adapter_dropout(lora, sample=tuple(sample for sample in samples for _ in range(rows)))

    @contextmanager
    def acting(names: tuple[str, ...]) -> Iterator[None]:
        if len(names) == 1:
            members.set_adapter(names[0])  # type: ignore[operator]
            yield
            return
        with adapter_of_each_row(members, tuple(name for name in names for _ in range(rows))):
            yield

    few = max(1, TOKENS // (rows * tokens))
    works = {
        "samples": _work(lora, range(SAMPLES), 1, dropped, batch),
        SAMPLES_ROWS: _work(lora, range(SAMPLES), few, dropped, batch),
        SAMPLES_ALL: _work(lora, range(SAMPLES), SAMPLES, dropped, batch),
        "members": _work(members, MEMBERS, 1, acting, batch),
        MEMBERS_ALL: _work(members, MEMBERS, len(MEMBERS), acting, batch),
    }
    measured = measure.rounds(works, rounds, device=settings.device)
    over = {arm: measure.both(measured, arm, arm.partition(",")[0]) for arm in works if "," in arm}
    return {"shape": shape, "rows": rows, "tokens": tokens, "rounds": rounds, "over passes": over}


def _work(
    model: nn.Module,
    samples: Sequence[Any],
    together: int,
    within: Callable[[Any], AbstractContextManager[None]],
    batch: Mapping[str, Tensor],
) -> Callable[[], None]:
    groups = [tuple(samples[first : first + together]) for first in range(0, len(samples), together)]
    copied = {copies: _repeated(batch, copies) for copies in {len(group) for group in groups}}

    def work() -> None:
        for group in groups:
            with torch.inference_mode(), within(group):
                score(model, copied[len(group)])

    return work


def _repeated(batch: Mapping[str, Tensor], copies: int) -> dict[str, Tensor]:
    return {name: tensor.repeat(copies, *[1] * (tensor.dim() - 1)) for name, tensor in batch.items()}
