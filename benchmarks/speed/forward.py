"""The time of one forward pass in evaluation, beside the base; also of the ``mixlora`` package, in its environment."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import arms, measure
from benchmarks.speed.settings import Settings
from benchmarks.speed.shapes import SHAPES, Shape, base_model, batch_of

NAMES = ["base", "lora r80", "ffn_block", "per_linear", "reference loop"]


def run(settings: Settings) -> dict[str, Any]:
    """Return the ratios to the base, with the package's own if its interpreter was named."""
    found: dict[str, Any] = {}
    for shape, rows, tokens, rounds in settings.forward:
        base = base_model(SHAPES[shape], settings.device, settings.dtype)
        ids = batch_of(SHAPES[shape], rows, tokens, settings.device)["input_ids"]
        built = {name: model.eval() for name, model in arms.models(base, NAMES).items()}
        works = {name: _forward(model, ids) for name, model in built.items()}
        measured = measure.rounds(works, rounds, device=settings.device)
        found[shape] = {
            "rows": rows,
            "tokens": tokens,
            "rounds": rounds,
            "against base": measure.against(measured, "base"),
            "mixlora package against base": _package(settings, SHAPES[shape], rows, tokens, rounds),
        }
    return found


def _forward(model: Any, ids: torch.Tensor) -> Any:
    def work() -> None:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)

    return work


def _package(settings: Settings, shape: Shape, rows: int, tokens: int, rounds: int) -> Any:
    """Run the package on an adapter of ours in its format; None where no interpreter was named, and on a GPU."""
    if settings.mixlora_python is None or settings.device != "cpu":
        return None
    from uq4ct.adapters.published import write_published

    small = shape.with_layers(1)
    with tempfile.TemporaryDirectory() as folder:
        write_published(arms.mixture(base_model(small)), Path(folder))
        sizes = {"width": shape.width, "inner": shape.inner, "heads": shape.heads, "key_heads": shape.key_heads}
        size = {"rows": rows, "tokens": tokens, "rounds": rounds, "threads": settings.threads}
        request = json.dumps({**sizes, **size, "adapter": folder})
        script = str(Path(__file__).with_name("mixlora_package.py"))
        command = [*settings.mixlora_python.split(), script, request]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:-1])}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, **{clock: measure.summary(found[clock]) for clock in ("wall", "cpu")}}
