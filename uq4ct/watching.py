"""What a training run says about itself: the terms of Eq. 11, accuracy, FEU, expert load, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from uq4ct.checkpoints import to_stderr
from uq4ct.losses.balance import expert_counts, load_entropy
from uq4ct.losses.objective import Terms
from uq4ct.scoring import Scores

MEASURES = ("ce", "balance", "calibration", "kl", "accuracy", "feu")


class Tally:
    """Sum up measures over examples, on the device, for the current update and for all updates since the last log."""

    def __init__(self, device: torch.device):
        # float64, because a float32 stops counting tokens at 16.8 million; Apple's GPUs have nothing better
        self.options: Any = {"device": device, "dtype": torch.float32 if device.type == "mps" else torch.float64}
        self.reset()

    def reset(self) -> None:
        """Start a new logging window."""
        self.update = torch.zeros(len(MEASURES) + 1, **self.options)  # the last entry counts the examples
        self.window = torch.zeros(len(MEASURES) + 1, **self.options)
        self.load = torch.zeros((), **self.options)
        self.experts: list[int] = []
        self.calibrated = False

    def add(self, losses: Sequence[Tensor], terms: Terms, scores: Scores, real: Tensor) -> None:
        """Add one micro-batch: its summed answer, balance, calibration and KL, who was right, how its tokens went."""
        correct, examples = (terms.correct & real).sum(), real.sum()
        self.calibrated = terms.calibration is not None
        feu = torch.zeros(()) if terms.feu is None else torch.where(real, terms.feu, 0.0).sum()
        sums = [part.detach().to(**self.options) for part in (*losses, correct, feu, examples)]
        self.update = self.update + torch.stack(sums)
        if scores.routing:
            load = expert_counts(scores.routing, scores.routing_mask & scores.of_rows(real)[:, None])
            self.experts = [len(layer) for layer in load]
            self.load = self.load + torch.cat(load).to(**self.options)

    def end_update(self) -> None:
        """Move the sums of the update that is about to be made into the logging window."""
        self.window, self.update = self.window + self.update, torch.zeros_like(self.update)

    def means(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Return the means over all examples of the window and all processes, and start a new window.

        ``expert_load`` is each layer's list of shares: how many of its tokens chose each expert first.
        """
        *sums, examples = sum_over_ranks(self.window).tolist()
        if not examples:
            return {}
        means: dict[str, Any] = {name: value / examples for name, value in zip(MEASURES, sums, strict=True)}
        if self.experts:
            load = sum_over_ranks(self.load).cpu().split(self.experts)
            means["expert_load_entropy"] = load_entropy(load)
            means["expert_load"] = [[round(share, 4) for share in (layer / layer.sum()).tolist()] for layer in load]
        else:
            without = {"balance", "feu"} if self.calibrated else {"balance", "feu", "calibration"}
            means = {name: value for name, value in means.items() if name not in without}
        self.reset()
        return means


class ProgressLines(transformers.TrainerCallback):
    """Print a line with step, losses and time left now and then, for logs that are not a terminal."""

    def __init__(self, seconds: float = 30.0):
        self.seconds = seconds
        self.last: Mapping[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.began = self.printed = time.monotonic()
        self.first = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Remember the latest losses."""
        if logs and "loss" in logs:
            self.last = logs

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Print, unless a line was printed less than ``seconds`` ago."""
        now, done = time.monotonic(), state.global_step >= state.max_steps
        if not state.is_world_process_zero or not (done or now - self.printed >= self.seconds):
            return
        self.printed = now
        left = (now - self.began) / (state.global_step - self.first) * (state.max_steps - state.global_step)
        losses = "".join(f", {name} {self.last[name]:.4g}" for name in ("loss", *MEASURES) if name in self.last)
        to_stderr(f"step {state.global_step} of {state.max_steps}, {clock(left)} left{losses}")


def clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds.

    >>> clock(3725.4)
    '1:02:05'
    """
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60:d}:{minutes % 60:02d}:{seconds:02d}"
