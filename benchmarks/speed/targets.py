"""What every figure was to be, and whether it is: met, missed, or not resolved where the interval holds the goal.

The goal of the curves is this benchmark's reading of "flat" and "linear": no more than a tenth off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

CLOCKS = ("wall", "cpu")
ENOUGH_ROUNDS = 6  # fewer have no interval of 95 %, see ``measure.summary``
STEP_REPORTED = ("135M",)  # a whole small model, where N r = 128 is large against the width


class Goal(NamedTuple):
    """A bound on a figure: at most or at least ``value``."""

    sign: str
    value: float

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}" if self.value >= 2 else f"{self.sign} {self.value:.2f}"

    def verdict(self, low: float, high: float) -> str:
        """Say whether a figure that lies between ``low`` and ``high`` keeps the bound.

        >>> [Goal("<=", 1.1).verdict(*interval) for interval in ((1.0, 1.1), (1.0, 1.2), (1.11, 1.2))]
        ['met', 'not resolved', 'missed']
        >>> Goal(">=", 3).verdict(1.0, 1.1)
        'missed'
        """
        kept = [value <= self.value if self.sign == "<=" else value >= self.value for value in (low, high)]
        return "met" if all(kept) else "not resolved" if any(kept) else "missed"


STEP = {
    "cpu": {"ffn_block": Goal("<=", 1.20), "per_linear": Goal("<=", 1.15), "reference": Goal(">=", 1.3)},
    "cuda": {"ffn_block": Goal("<=", 1.10), "per_linear": Goal("<=", 1.05), "reference": Goal(">=", 2)},
}
LOSSES, MEMORY, ANSWER, CURVE = Goal("<=", 1.02), Goal("<=", 1.10), Goal("<=", 1.25), Goal("<=", 1.10)
SCORING = {"per choice": Goal(">=", 3), "per choice, grouped": Goal(">=", 3), "bare forward": Goal(">=", 0.95)}
HELP_SECONDS = 0.5
MEMORY_ARMS = ("ffn_block", "ffn_block, dense", "per_linear")


class Target(NamedTuple):
    """A row of the table of targets."""

    what: str
    goal: str
    measured: str
    cpu: str
    verdict: str


def targets(results: Mapping[str, Any], device: str) -> list[Target]:
    """Return every target that the results say something about, those of memory left out."""
    return [
        *_training(results, STEP[device]),
        *_curves(results),
        *_scoring(results),
        *_latency(results),
        *_command_line(results),
    ]


def memory_targets(results: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Return for each case of memory the verdict on every arm that has a goal; both figures are exact."""
    return [(case, {arm: _exact(MEMORY, peak(case, arm)) for arm in MEMORY_ARMS}) for case in memory_cases(results)]


def memory_cases(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the measured cases of memory."""
    return results["memory"]["cases"] if "memory" in results else []


def peak(case: Mapping[str, Any], arm: str) -> float:
    """Return an arm's peak of what is allocated over that of LoRA r80."""
    return case["arms"][arm]["over lora r80"]["allocated"]


def in_cells(case: Mapping[str, Any]) -> str:
    """Return what a case of memory is, as the first cells of a row."""
    size = f"{case['shape']}, {case['rows']} x {case['tokens']} tokens"
    return f"{size} | {case['layers']} | {case['dropout']:g} | {'yes' if case['checkpointing'] else 'no'}"


def shapes(results: Mapping[str, Any], part: str) -> Iterator[tuple[str, Any]]:
    """Yield what was found for each shape."""
    return ((name, found) for name, found in results.get(part, {}).items() if name != "run")


def interval(values: Sequence[float]) -> str:
    """Return a median with its interval."""
    return f"{values[0]:.3f} ({values[1]:.3f}-{values[2]:.3f})"


def _training(results: Mapping[str, Any], goals: Mapping[str, Goal]) -> Iterator[Target]:
    for shape, found in shapes(results, "training_step"):
        for arm in ("ffn_block", "per_linear"):
            goal = None if shape in STEP_REPORTED else goals[arm]
            yield _timed(f"{shape}: step of `{arm}` / LoRA r80", goal, found["against lora r80"][arm], found["rounds"])
        loop = found["reference loop over ffn_block"]
        yield _timed(f"{shape}: step of the reference loop / `ffn_block`", goals["reference"], loop, found["rounds"])
        both = found["losses and record"]
        what = f"{shape}: step with the two losses on routing and its record / without"
        yield _timed(what, LOSSES, both, found["pairs"])


def _curves(results: Mapping[str, Any]) -> Iterator[Target]:
    curves = results["curves"]["curves"] if "curves" in results else {}
    for name in ("experts, N r = 128", "experts, N r = 128, dense"):
        if name in curves:
            number, row = max(curves[name]["points"].items(), key=lambda point: point[1]["wall"][0])
            what = f"flat in the number of {name}: the slowest, {number}, / {curves[name]['reference']}"
            yield _timed(what, CURVE, row, results["curves"]["rounds"])
    for name in ("tokens", "rows"):
        if name in curves:
            reference = curves[name]["reference"]
            most, row = list(curves[name]["points"].items())[-1]
            times = int(most) / int(reference)
            each = {clock: [value / times for value in row[clock]] for clock in CLOCKS}
            what = f"linear in {name}: time for each, {most} {name} / {reference}"
            yield _timed(what, CURVE, each, results["curves"]["rounds"])


def _scoring(results: Mapping[str, Any]) -> Iterator[Target]:
    for kind in ("letters", "options"):
        for other, goal in SCORING.items():
            if kind in results.get("scoring", {}):
                own = results["scoring"][kind]["times as fast as"][other]
                what = f"scoring {kind}: ours is so many times as fast as {other}"
                yield _timed(what, goal, own, results["scoring"]["rounds"])


def _latency(results: Mapping[str, Any]) -> Iterator[Target]:
    for shape, found in shapes(results, "latency"):
        for arm in ("ffn_block", "per_linear"):
            row = found["against base"][arm]
            yield _timed(f"{shape}: one answer, `{arm}` / base", ANSWER, row, found["rounds"])


def _command_line(results: Mapping[str, Any]) -> Iterator[Target]:
    if "command_line" in results:
        own = results["command_line"]
        measured = f"{own['seconds']} s, slowest of {own['calls']}: {own['slowest']} s"
        goal = Goal("<=", HELP_SECONDS)
        yield Target("`uq4ct --help`", f"{goal} s", measured, "", goal.verdict(own["seconds"], own["slowest"]))


def _timed(what: str, goal: Goal | None, row: Mapping[str, Sequence[float]], rounds: int) -> Target:
    """Judge by wall time, which is what a user waits for."""
    wall, cpu = (interval(row[clock]) for clock in CLOCKS)
    if goal is None:
        return Target(what, "reported", wall, cpu, "")
    verdict = goal.verdict(*row["wall"][1:]) if rounds >= ENOUGH_ROUNDS else "not resolved"
    return Target(what, str(goal), wall, cpu, verdict)


def _exact(goal: Goal, value: float) -> str:
    return goal.verdict(value, value)
