"""Compare the time of several pieces of work on a busy machine: interleaved rounds, ratios within a round, medians.

A round runs every arm once in order and once in reverse (A B B A), so that a drift of the machine's speed meets all
arms alike. A ratio is formed within a round and only then summarised. Process CPU time stands beside wall time: with
one thread it hardly notices what the neighbours do; with several it also counts the threads that wait for each other.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import comb
from typing import Any, NamedTuple

import numpy as np
import torch

Work = Callable[[], Any]


class Round(NamedTuple):
    """Hold the seconds that each arm took in one round, both ways together."""

    wall: dict[str, float]
    cpu: dict[str, float]


class Ratio(NamedTuple):
    """A median of per-round ratios and the interval around it, see ``summary``."""

    median: float
    low: float
    high: float


def rounds(arms: Mapping[str, Work], number: int, warm_up: int = 1, device: str = "cpu") -> list[Round]:
    """Return ``number`` rounds of all arms, after ``warm_up`` runs of each that do not count."""
    for work in arms.values():
        for _ in range(warm_up):
            work()
    measured = []
    with small_heap():
        for _ in range(number):
            wall, cpu = dict.fromkeys(arms, 0.0), dict.fromkeys(arms, 0.0)
            for name in [*arms, *reversed(arms)]:
                gc.collect()
                _wait(device)
                started, started_cpu = time.perf_counter(), time.process_time()
                arms[name]()
                _wait(device)
                wall[name] += time.perf_counter() - started
                cpu[name] += time.process_time() - started_cpu
            measured.append(Round(wall, cpu))
    return measured


@contextmanager
def small_heap() -> Iterator[None]:
    """Let the garbage collector pass over what is there already: looking through all of it takes up to a second."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def summary(ratios: Sequence[float]) -> Ratio:
    """Return the median and the k-th smallest and k-th largest value, k as large as 95 % coverage allows.

    The interval between them holds the median of what the rounds are drawn from with probability
    1 - 2 sum_{i<k} C(n, i) / 2^n (sign test), whatever their distribution. Fewer than 6 rounds allow no such k: then
    it is the range of the rounds.

    >>> summary([1.0, 1.3, 1.1, 1.2, 9.0, 0.1, 1.4, 1.1, 1.2])
    Ratio(median=1.2, low=1.0, high=1.4)
    """
    ordered, n = sorted(ratios), len(ratios)
    k, below = 1, 1 + n  # below: the sum up to i = k
    while 2 * below <= 0.05 * 2**n:
        k += 1
        below += comb(n, k)
    return Ratio(*(round(float(value), 4) for value in (np.median(ordered), ordered[k - 1], ordered[n - k])))


def ratio(measured: Sequence[Round], arm: str, against: str, clock: str = "wall") -> Ratio:
    """Return the median over rounds of the time of ``arm`` over that of ``against``, with its interval.

    >>> ratio([Round({"a": 3.0, "b": 2.0}, {})] * 4, "a", "b")
    Ratio(median=1.5, low=1.5, high=1.5)
    """
    return summary([getattr(one, clock)[arm] / getattr(one, clock)[against] for one in measured])


def both(measured: Sequence[Round], arm: str, against: str) -> dict[str, Ratio]:
    """Return ``ratio`` on both clocks."""
    return {clock: ratio(measured, arm, against, clock) for clock in ("wall", "cpu")}


def seconds(measured: Sequence[Round], arm: str, clock: str = "wall") -> float:
    """Return the median seconds of one run of an arm."""
    return float(np.median([getattr(one, clock)[arm] for one in measured])) / 2


def against(measured: Sequence[Round], reference: str) -> dict[str, dict[str, Any]]:
    """Return for every arm its seconds and its ratios to ``reference`` on both clocks."""
    return {
        arm: {
            "seconds": round(seconds(measured, arm), 5),
            "cpu_seconds": round(seconds(measured, arm, "cpu"), 5),
            **both(measured, arm, reference),
        }
        for arm in measured[0].wall
    }


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
