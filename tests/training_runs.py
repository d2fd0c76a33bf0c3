"""Small training runs that the tests start, some of them in processes of their own."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from training_toys import mixture, questions

from uq4ct.losses.objective import Objective
from uq4ct.training import CalibratedTrainer, Interrupted
from uq4ct.variational.ivon import IvonTrainer

CALIBRATED = Objective(calibration_weight=1.0, balance_weight=0.01)
WITHOUT_BALANCE = Objective(calibration_weight=1.0)


def arguments(folder: Path, **options: Any) -> transformers.TrainingArguments:
    usual = {"use_cpu": True, "report_to": "none", "learning_rate": 1e-2, "lr_scheduler_type": "linear", "seed": 3}
    return transformers.TrainingArguments(str(folder), **{**usual, "save_strategy": "no", **options})


def run(folder: Path, model: Any = None, examples: Any = None, objective: Objective = CALIBRATED, resume: Any = None,
        trainer: Callable[..., CalibratedTrainer] = CalibratedTrainer, callbacks: Any = None, config_hash: str = "",
        **options: Any) -> CalibratedTrainer:  # fmt: skip
    """Train a mixture with dropout for a few steps and return its trainer."""
    model = mixture(dropout=0.2) if model is None else model
    examples = questions(22) if examples is None else examples
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1}
    made = trainer(
        model,
        arguments(folder, **{**sizes, **options}),
        examples,
        objective=objective,
        callbacks=callbacks,
        config_hash=config_hash,
    )
    made.train(resume_from_checkpoint=resume)
    return made


def digests(checkpoint: Path) -> dict[str, str]:
    """Return the SHA-256 of everything in a checkpoint that decides how training goes on."""
    names = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    return {name: sha256((checkpoint / name).read_bytes()).hexdigest() for name in names}


# ---- one update, however it is cut into micro-batches


class Penalised(CalibratedTrainer):
    """Add half the squared norm of the adapter to the loss of each update."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, penalty=half_square, **options)


def half_square(model: torch.nn.Module) -> torch.Tensor:
    return torch.stack([(p**2).sum() / 2 for p in model.parameters() if p.requires_grad]).sum()


IVON = partial(IvonTrainer, ivon={"lr": 0.05, "ess": 1e5, "hess_init": 0.1, "clip_radius": 1.0})

EFFECTIVE, EXAMPLES = 8, 19  # two whole updates and one of three examples


def update(folder: Path, accumulation: int, processes: int, uneven: bool, checkpointing: bool,
           trainer: Callable[..., CalibratedTrainer] = CalibratedTrainer,
           objective: Objective = WITHOUT_BALANCE) -> torch.Tensor:  # fmt: skip
    """Return how one epoch of plain SGD in float64 moves the adapter, as one vector."""
    model = mixture(dtype=torch.float64)
    before = flat(model)
    lengths, choices = ((4, 24), (2, 6)) if uneven else ((9, 9), (4, 4))
    trained = run(
        folder,
        model,
        questions(EXAMPLES, lengths=lengths, choices=choices),
        objective,
        trainer=trainer,
        per_device_train_batch_size=EFFECTIVE // accumulation // processes,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
        optim="sgd",
        learning_rate=0.05,
        max_grad_norm=0.0,
        gradient_checkpointing=checkpointing,
    )
    assert trained.state.global_step == 3
    return flat(model) - before


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]).clone()


def cuts(processes: int) -> list[tuple[int, int, bool, bool]]:
    return [(accumulation, processes, uneven, checkpointing) for accumulation in (1, 2, 4)
            for uneven in (False, True) for checkpointing in (False, True)]  # fmt: skip


def updates_of_two_processes(rank: int, port: int, folder: Path) -> None:
    """Write the updates of every two-process cut, and what its loggers saw; runs on both ranks."""
    join_group(rank, port)
    torch.save({cut: update(folder, *cut) for cut in cuts(2)}, folder / f"updates-{rank}.pt")
    balanced = Objective(calibration_weight=1.0, balance_weight=0.5)
    torch.save(update(folder, 2, 2, True, False, objective=balanced), folder / f"balanced-{rank}.pt")
    torch.save(update(folder, 2, 2, True, False, trainer=Penalised), folder / f"penalised-{rank}.pt")
    torch.save(update(folder, 2, 2, True, False, trainer=IVON), folder / f"ivon-{rank}.pt")
    logged = run(folder, mixture(), questions(9), num_train_epochs=1, per_device_train_batch_size=2)
    (folder / f"logs-{rank}.json").write_text(json.dumps(logged.state.log_history))
    logged.evaluate(questions(7, seed=9))
    (folder / f"evaluation-{rank}.json").write_text(json.dumps(logged.state.log_history[-1]))
    stopped_and_resumed(rank, folder / "stopped")


def stopped_and_resumed(rank: int, folder: Path) -> None:
    """Let a signal reach one rank only: both must stop after the same update, and go on from its checkpoint."""
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    whole = run(folder / "whole", **options).state.global_step
    stop = At(2, lambda trainer: os.kill(os.getpid(), 15) if rank == 1 else None)
    with pytest.raises(Interrupted) as interrupted:
        run(folder / "cut", callbacks=[stop], **options)
    assert interrupted.value.code == 143
    assert interrupted.value.checkpoint.name == "checkpoint-3"
    run(folder / "cut", resume=True, **options)
    ends = [flat_file(folder / name / f"checkpoint-{whole}") for name in ("whole", "cut")]
    assert ends[0] == ends[1], "two processes do not resume to the same bytes"


def flat_file(checkpoint: Path) -> dict[str, str]:
    names = ("adapter_model.safetensors", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth")
    return {name: sha256((checkpoint / name).read_bytes()).hexdigest() for name in names}


def join_group(rank: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    quiet()


# ---- a run that is killed

KILLED = {"save_strategy": "steps", "save_steps": 1, "max_steps": 30, "save_total_limit": 2}


def run_to_the_end(folder: Path) -> None:
    """Train thirty steps, from the last good checkpoint if there is one."""
    quiet()
    run(folder, resume=True, **KILLED)


class At(transformers.TrainerCallback):
    """Do something at the beginning of the update after ``step`` completed ones."""

    def __init__(self, step: int, action: Callable[[Any], Any], **where: Any):
        self.step, self.action, self.where = step, action, where

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == self.step:
            self.action(model)


def signal_twice(folder: Path) -> None:
    """Send this process SIGINT twice during one update, the second time slowly; it must not reach the end of it."""
    quiet()

    def twice(_: Any) -> None:
        os.kill(os.getpid(), 2)
        time.sleep(1.1)
        os.kill(os.getpid(), 2)

    run(folder, callbacks=[At(1, twice)])
    (folder / "survived").touch()


def quiet() -> None:
    torch.set_num_threads(1)
    gc.freeze()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    transformers.logging.set_verbosity_error()


def processes() -> Any:
    """Return a multiprocessing context whose processes need not import anything again."""
    here = str(Path(__file__).parent)
    if here not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_runs"])
    return context
