"""How long and how large a measurement is: the same parts at three sizes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Size = Literal["smoke", "usual", "gpu"]

EVERY_ARM = ("lora r80", "lora r16", "lora matched to per_linear", "base", "ffn_block", "per_linear", "reference loop")
FEWER_ARMS = ("lora r80", "base", "ffn_block", "per_linear", "reference loop")


class Training(NamedTuple):
    """Say how a training step is timed; ``pairs`` are the rounds with and without the losses on the routing.

    On a GPU the model is cut to as many layers as fit with every arm beside the others, and at most ``layers``.
    """

    shape: str
    rows: int
    tokens: int
    rounds: int
    pairs: int
    arms: tuple[str, ...] = EVERY_ARM
    checkpointing: bool = False
    layers: int | None = None


class Memory(NamedTuple):
    """Say whose memory is counted: each number of layers with each dropout, with and without checkpointing."""

    shape: str
    rows: int
    tokens: int
    layers: tuple[int, ...]
    dropouts: tuple[float, ...] = (0.05, 0.0)


@dataclass(frozen=True)
class Settings:
    """Say what is run: base models with rows x tokens of a batch, rounds, device."""

    training: tuple[Training, ...]
    memory: tuple[Memory, ...]
    forward: tuple[tuple[str, int, int, int], ...]  # shape, rows, tokens, rounds
    curves: tuple[str, int, int, int]
    compiled: tuple[str, int, int, int]
    ensembles: tuple[str, int, int, int]
    together: tuple[tuple[str, int, int, int], ...]  # shape, rows, tokens, rounds
    latency: tuple[tuple[str, int, int], ...]  # shape, tokens of the prompt, rounds
    scoring: tuple[str, int, int, int]  # shape, questions by letter, questions by option, rounds
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    autocast: bool = False
    threads: int = 1
    data_root: str | None = None
    mixlora_python: str | None = None

    def precision(self) -> AbstractContextManager[object]:
        """Return what training's forward pass and loss run under: autocast to bfloat16 where the size asks for it."""
        return torch.autocast(self.device, dtype=torch.bfloat16) if self.autocast else nullcontext()


SIZES: dict[Size, Settings] = {
    "smoke": Settings(
        training=(Training("width-64", 2, 16, 1, 1),),
        memory=(Memory("width-64", 2, 16, (1, 2)),),
        forward=(("width-64", 2, 16, 1),),
        curves=("width-64", 2, 16, 1),
        compiled=("width-64", 2, 16, 1),
        ensembles=("width-64", 16, 8, 1),
        together=(("width-64", 1, 8, 1), ("width-64", 16, 8, 1)),
        latency=(("width-64", 16, 1),),
        scoring=("width-64", 8, 8, 1),
    ),
    "usual": Settings(
        training=(
            Training("width-2048", 2, 128, 12, 20),
            Training("width-4096", 2, 128, 9, 12, FEWER_ARMS),
            Training("135M", 4, 64, 7, 9, FEWER_ARMS),
        ),
        memory=(Memory("width-2048", 2, 128, (1, 2)), Memory("width-4096", 2, 128, (1,))),
        forward=(("width-2048", 2, 128, 15),),
        curves=("width-512", 2, 128, 12),
        compiled=("width-512", 2, 128, 20),
        ensembles=("width-512", 16, 64, 20),
        together=(
            *(("width-512", 1, tokens, 12) for tokens in (32, 64, 128)),
            ("width-512", 16, 64, 6),
            *(("width-2048", 1, tokens, 6) for tokens in (32, 64, 128)),
        ),
        latency=(("width-2048", 128, 15), ("135M", 128, 15)),
        scoring=("width-512", 256, 16, 6),
    ),
    "gpu": Settings(
        training=(
            Training("7B", 16, 512, 10, 10, layers=8),  # layers are alike: more of them take longer and tell no more
            Training("7B", 16, 512, 10, 10, FEWER_ARMS, checkpointing=True, layers=8),
        ),
        memory=(Memory("width-4096", 16, 512, (1, 2)),),
        forward=(("7B", 16, 512, 10),),
        curves=("width-4096", 16, 512, 10),
        compiled=("width-4096", 16, 512, 20),
        ensembles=("width-4096", 16, 512, 20),
        together=(("width-4096", 1, 128, 10), ("width-4096", 1, 512, 10), ("width-4096", 16, 128, 10)),
        latency=(("7B", 128, 20),),
        scoring=("7B", 500, 500, 5),
        device="cuda",
        dtype=torch.bfloat16,
        autocast=True,
    ),
}
