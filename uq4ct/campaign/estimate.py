"""How long the cells of a plan will take and how much disk they will need, told before anything runs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import mean
from typing import Any, Literal, NamedTuple

from uq4ct.campaign.cells import Cell, Outcome, trainings_done
from uq4ct.campaign.job import snapshots_of
from uq4ct.campaign.planning import Plan, Size

START = 3.0  # seconds to load questions and a base model
STEP = 0.05  # seconds of an optimizer step besides its arithmetic
ANSWER = 0.001  # seconds of an answer besides its arithmetic
ROW_BYTES = 1500  # of a prediction


class Estimate(NamedTuple):
    """Seconds of one cell, and where the number comes from."""

    seconds: float
    basis: Literal["measured", "like cells", "arithmetic"]


def estimate(plan: Plan, outcomes: Sequence[Outcome]) -> dict[str, Estimate]:
    """Return what each cell takes, by its name.

    A finished cell says so itself, and stands for the others of its method on its task. The rest is arithmetic at this
    machine's measured speed, corrected by how long finished cells really took; a training that cells share counts once,
    and not at all where a finished cell of another plan has made it, with fewer test sets for example; answers, which a
    post-hoc calibration takes from the method without it, count once too.
    """
    done = {outcome.cell.name: outcome.seconds for outcome in outcomes if outcome.seconds}
    like: dict[tuple[str, str], list[float]] = {}
    for cell in plan.cells:
        if seconds := done.get(cell.name):
            like.setdefault((cell.method, cell.task), []).append(seconds)
    sizes = plan.sizes
    todo = [cell for cell in plan.cells if cell.name not in done and (cell.method, cell.task) not in like]
    speed = flops_per_second(sizes[todo[0].name].hidden) if todo else 1.0
    trained, answered, raw = _trained_before(plan), set[str](), {}
    for cell in sorted(plan.cells, key=lambda cell: cell.name not in done):  # what is to run may share what is done
        own = _answers_of(cell)
        raw[cell.name] = _seconds(cell, sizes[cell.name], speed, _train(cell, trained), own not in answered)
        answered.add(own)
    correction = sum(done.values()) / sum(raw[name] for name in done) if done else 1.0
    found: dict[str, Estimate] = {}
    for cell in plan.cells:
        if seconds := done.get(cell.name):
            found[cell.name] = Estimate(seconds, "measured")
        elif some := like.get((cell.method, cell.task)):
            found[cell.name] = Estimate(mean(some), "like cells")
        else:
            found[cell.name] = Estimate(round(correction * raw[cell.name], 1), "arithmetic")
    return found


def _answers_of(cell: Cell) -> str:
    """Return what stands for a cell's raw answers: another cell may have the same."""
    method = cell.config.method
    return f"{cell.training} {method.name} {method.options()}"


def _train(cell: Cell, trained: dict[str, int]) -> int:
    """Return how many of a cell's adapters are not among those of each training, and put them there."""
    known, own = trained.get(cell.training, 0), cell.config.method.trainings
    trained[cell.training] = max(known, own)
    return max(0, own - known)


def _trained_before(plan: Plan) -> dict[str, int]:
    """Return how many adapters of each training are in the store by finished cells of other plans.

    None of those whose state on the way a cell of this plan needs: such states are not kept when a campaign is done.
    """
    own, wanted = {cell.name for cell in plan.cells}, snapshots_of(plan.cells)
    anew = {cell.training for cell in plan.cells if wanted[cell.name]}
    found: dict[str, int] = {}
    for folder in {cell.folder.parent for cell in plan.cells}:
        found |= {text: count for text, count in trainings_done(folder, own).items() if text not in anew}
    return found


def flops_per_second(hidden: int) -> float:
    """Measure a matrix product of the base model's width for a fifth of a second; the fastest one counts.

    On CPUs it runs in one thread: several wait for each other where the machine is busy, hundreds of times longer than
    the product takes. Small models gain little from more.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options: Any = {"device": device, "dtype": torch.bfloat16 if device == "cuda" else torch.float32}
    left, right = torch.ones(1024, hidden, **options), torch.ones(hidden, hidden, **options)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if device == "cuda":
        (left @ right)[0, 0].item()  # the first one loads cuBLAS, which can take longer than all of the measurement
    fastest, end = math.inf, time.perf_counter() + 0.2
    while (began := time.perf_counter()) < end or fastest == math.inf:
        (left @ right)[0, 0].item()  # wait until it is done
        fastest = min(fastest, time.perf_counter() - began)
    torch.set_num_threads(threads)
    return 2 * 1024 * hidden**2 / fastest


def disk_bytes(plan: Plan, todo: Sequence[Cell]) -> int:
    """Return about how many bytes the cells that are still to run will take: adapters, checkpoints, predictions.

    Cells that share a training have its files in common.
    """
    snapshots, trained = snapshots_of(plan.cells), _trained_before(plan)
    left = {cell.name for cell in todo}
    total = 0
    for cell in sorted(plan.cells, key=lambda cell: cell.name in left):
        new, taken = cell.training not in trained, _train(cell, trained)
        if cell.name in left:
            states = 7 * taken  # an adapter and two checkpoints of it, each with two Adam moments
            states += len(snapshots[cell.name]) if new else 0
            total += 4 * plan.sizes[cell.name].trainable * states + plan.sizes[cell.name].answers * ROW_BYTES
    return total


def _seconds(cell: Cell, size: Size, speed: float, trainings: int, answers: bool) -> float:
    """A forward pass is 2 operations per parameter and token; the backward pass through a frozen base 2, through the
    adapter 4."""
    seconds, method = START, cell.config.method
    work = size.training_tokens * (4 * size.parameters + 6 * size.trainable)
    seconds += trainings * (work / speed + STEP * size.steps)
    token = 2 * (size.parameters + size.trainable) / speed
    fitting = method.fit_cost(size.questions, size.calibration, size.choices)
    seconds += fitting * (size.question_tokens * token + ANSWER)
    answering = method.answer_cost(size.choices) * (size.answer_tokens * token + ANSWER * size.answers)
    return seconds + answering * (1.0 if answers else size.calibration / size.answers)
