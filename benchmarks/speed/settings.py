"""How long and how large a measurement is: the same parts at three sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Size = Literal["smoke", "usual", "gpu"]


@dataclass(frozen=True)
class Settings:
    """Say what is run: base models with rows x tokens of a batch, rounds, device."""

    training: tuple[tuple[str, int, int, int], ...]  # shape, rows, tokens, rounds
    memory: tuple[tuple[str, int, int], ...]
    forward: tuple[tuple[str, int, int, int], ...]
    curves: tuple[str, int, int, int]
    latency: tuple[tuple[str, int, int], ...]  # shape, tokens of the prompt, rounds
    scoring: tuple[str, int, int]  # shape, questions, rounds
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    autocast: bool = False
    data_root: str | None = None
    mixlora_python: str | None = None


SIZES: dict[Size, Settings] = {
    "smoke": Settings(
        training=(("width-64", 2, 16, 1),),
        memory=(("width-64", 2, 16),),
        forward=(("width-64", 2, 16, 1),),
        curves=("width-64", 2, 16, 1),
        latency=(("width-64", 16, 1),),
        scoring=("width-64", 8, 1),
    ),
    "usual": Settings(
        training=(("width-2048", 2, 128, 5), ("width-4096", 2, 128, 4), ("135M", 4, 64, 4)),
        memory=(("width-2048", 2, 128),),
        forward=(("width-2048", 2, 128, 5),),
        curves=("width-512", 2, 128, 5),
        latency=(("width-2048", 128, 10), ("135M", 128, 10)),
        scoring=("width-512", 128, 5),
    ),
    "gpu": Settings(
        training=(("7B", 16, 512, 10),),
        memory=(("width-4096", 16, 512),),
        forward=(("7B", 16, 512, 10),),
        curves=("width-4096", 16, 512, 10),
        latency=(("7B", 128, 20),),
        scoring=("7B", 500, 5),
        device="cuda",
        dtype=torch.bfloat16,
        autocast=True,
    ),
}
