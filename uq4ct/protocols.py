"""What is held to when methods are compared: splits, seeds, and who gets a temperature."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from uq4ct import tasks
from uq4ct.config import Layer
from uq4ct.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Protocol:
    """What is held to when methods are compared."""

    name: str
    preset: str
    calibration: float
    split: Literal["test", "paper"]
    seeds: str  # when none are named
    fewest: int  # seeds for which the tables need no remark
    evaluated: str  # the split, in words
    caution: str = ""

    @property
    def temperature(self) -> bool:
        """Whether every method gets a second row with its temperature scaled."""
        return self.calibration > 0

    @property
    def layer(self) -> Layer:
        """The options that it sets."""
        return Layer.of({"data": {"calibration_fraction": self.calibration}}, f"--protocol {self.name}")

    def summary(self, preset: str | None, shares: Collection[float]) -> str:
        """Say in a sentence what was held to: the split, the shares of train kept for calibration, and the preset.

        Any of the options may have been set otherwise; each run's config.yaml has them all.

        >>> PROTOCOLS["sound"].summary("bayesian-lora", {0.0, 0.25})
        'the labelled test split (where there is none, validation), 0 % or 25 % of train kept for calibration, \
by method, preset bayesian-lora'
        """
        kept = " or ".join(f"{100 * share:g} %" for share in sorted(shares))
        by_method = ", by method" if len(shares) > 1 else ""
        split = f"{kept} of train kept for calibration{by_method}" if any(shares) else "no calibration split"
        options = f", preset {preset}" if preset else ""
        return f"{self.evaluated}, {split}{options}{self.caution}"


PROTOCOLS = {
    "sound": Protocol(
        "sound",
        "product",
        0.1,
        "test",
        "1,2,3,4,5",
        5,
        "the labelled test split (where there is none, validation)",
    ),
    "paper": Protocol(
        "paper",
        "paper",
        0.0,
        "paper",
        "1,2,3",
        3,
        "validation where the paper evaluates on it",
        ". That validation split was used to choose hyper-parameters, so expect numbers that flatter",
    ),
}


def protocol(name: str) -> Protocol:
    """Return a protocol by its name; raise UserError for another one."""
    if name not in PROTOCOLS:
        raise UserError(f"--protocol: '{name}' is not one of {', '.join(PROTOCOLS)}.{did_you_mean(name, [*PROTOCOLS])}")
    return PROTOCOLS[name]


def split_of(source: str, held: Protocol) -> str | None:
    """Return the split of a source that a protocol reports, None for its default one and where the source names it."""
    wanted = tasks.wanted(source)
    return wanted.task.paper_split if held.split == "paper" and wanted and not wanted.split else None
