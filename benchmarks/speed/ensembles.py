"""What one more sample costs: a pass of MC dropout or a member of an ensemble, against a plain pass of the LoRA."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig

from benchmarks.speed import arms, measure, together
from benchmarks.speed.settings import Settings
from benchmarks.speed.shapes import SHAPES, base_model, batch_of
from uq4ct.adapters import linear_targets
from uq4ct.adapters.dropout import adapter_dropout
from uq4ct.adapters.router import sample_routing
from uq4ct.scoring import score

PASS, HASHED, OWN, MEMBER, MIXTURE, DRAWN = (
    "a pass",
    "a pass of MC dropout",
    "a pass with PyTorch's own dropout",
    "a pass of a member after a switch",
    "a pass of the mixture",
    "a pass with drawn experts",
)


def run(settings: Settings) -> dict[str, Any]:
    """Return the time of each kind of pass over a plain one, and the bytes that three members add to one base."""
    shape, rows, tokens, rounds = settings.ensembles
    base = base_model(SHAPES[shape], settings.device, settings.dtype)
    batch = batch_of(SHAPES[shape], rows, tokens, settings.device)
    lora, training, members = arms.lora(base, 80).eval(), arms.lora(base, 80).train(), arms.lora(base, 80).eval()
    config = LoraConfig(r=80, lora_alpha=160, lora_dropout=0.05, target_modules=linear_targets(base))
    for name in ("second", "third"):
        members.add_adapter(name, config)  # type: ignore[operator]
    members.eval()
    mixture = arms.mixture(base).eval()

    def plain(model: Any = lora) -> None:
        with torch.inference_mode():
            score(model, batch)

    def hashed() -> None:
        with adapter_dropout(lora, sample=1):
            plain()

    def drawn() -> None:
        with sample_routing(mixture, sample=1):
            plain(mixture)

    def switched() -> None:
        members.set_adapter("second")  # type: ignore[operator]
        plain(members)
        members.set_adapter("default")  # type: ignore[operator]

    works = {
        PASS: plain,
        HASHED: hashed,
        OWN: lambda: plain(training),
        MEMBER: switched,
        MIXTURE: lambda: plain(mixture),
        DRAWN: drawn,
    }
    measured = measure.rounds(works, rounds, device=settings.device)
    own = {parameter.data_ptr() for parameter in base.parameters()}
    added = sum(p.nbytes for p in members.parameters() if p.data_ptr() not in own)
    return {
        "shape": shape,
        "rows": rows,
        "tokens": tokens,
        "rounds": rounds,
        "against a pass": measure.against(measured, PASS),
        "drawn over most likely experts": measure.both(measured, DRAWN, MIXTURE),
        "bytes": {"base": sum(p.nbytes for p in base.parameters()), "three members beside it": added},
        "together": together.run(settings),
    }
