"""Train one adapter on encoded questions, or take it from where the very same training was done before.

A training is known by its content: base model, questions, adapter, loss, options and seed. With a store, methods that
need the same one (LoRA, MC dropout, Laplace, checkpoint ensemble, every post-hoc calibration) share it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from uq4ct.encoders import draw_head, with_head
from uq4ct.errors import UserError, did_you_mean
from uq4ct.manifest import alone, sha256, write_atomically, write_json

if TYPE_CHECKING:
    import torch

    from uq4ct.losses.objective import Objective

Example = Mapping[str, Any]  # an encoded question: the data set contract of CalibratedTrainer

# Options of a training that its weights do not depend on.
BOOKKEEPING = ("logging_steps", "save_steps", "save_total_limit", "report_to", "disable_tqdm")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # what PEFT writes and reads


class TrainConfig(BaseModel):
    """Training options under the names of ``transformers.TrainingArguments``; any other of its fields may be added.

    The defaults are the paper's (A.4) and, where it is silent, those of the code base it extends.

    >>> TrainConfig(learning_rate="5e-4").learning_rate
    0.0005
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    num_train_epochs: float = Field(2.0, gt=0)
    max_steps: int = -1
    per_device_train_batch_size: int = Field(16, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    lr_scheduler_type: str = "constant"
    warmup_steps: float = Field(0, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)
    logging_steps: int = Field(10, ge=1)
    save_steps: int = Field(100, ge=1)
    save_total_limit: int | None = Field(2, ge=1)

    def substance(self) -> dict[str, Any]:
        """Return as plain values the options that the trained weights depend on.

        >>> TrainConfig(save_steps=5).substance() == TrainConfig(logging_steps=1).substance()
        True
        """
        return {name: value for name, value in self.model_dump(mode="json").items() if name not in BOOKKEEPING}

    def steps(self, examples: int) -> int:
        """Return the number of optimizer steps of one process on so many examples.

        >>> TrainConfig(per_device_train_batch_size=4, num_train_epochs=2).steps(10), TrainConfig(max_steps=7).steps(10)
        (6, 7)
        """
        batch = self.per_device_train_batch_size * self.gradient_accumulation_steps
        every = math.ceil(math.ceil(examples / batch) * self.num_train_epochs)
        return self.max_steps if self.max_steps > 0 else every

    @field_validator("max_steps")
    @classmethod
    def _some_or_all_steps(cls, steps: int) -> int:
        if steps != -1 and steps < 1:
            raise ValueError(f"expected 1 or more steps, or -1 for as many as num_train_epochs take, got {steps}")
        return steps

    @model_validator(mode="after")
    def _known_to_transformers(self) -> TrainConfig:
        if not self.model_extra:
            return self
        from transformers import TrainingArguments

        known = {field.name for field in dataclasses.fields(TrainingArguments)}
        problems = []
        for name in self.model_extra:
            if name in _OURS:
                problems.append(f"'{name}' is set by uq4ct itself; {_OURS[name]}")
            elif name not in known:
                hint = did_you_mean(name, [*known, *type(self).model_fields])
                problems.append(f"'{name}' is not a field of transformers.TrainingArguments.{hint}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


_OURS = {
    "output_dir": "use output.folder",
    "seed": "use output.seed",
    "data_seed": "use output.seed",
    "remove_unused_columns": "the collator needs all columns",
    "eval_strategy": "a run is evaluated with uq4ct evaluate",
    "resume_from_checkpoint": "use --resume",
    "label_smoothing_factor": "use method label_smoothing",
    "label_names": "answers are not passed as labels",
    "average_tokens_across_devices": "each loss term carries its own exact normaliser",
    "ddp_find_unused_parameters": "every adapter parameter always receives a gradient",
    "logging_nan_inf_filter": "a NaN must stop the run",
    "include_num_input_tokens_seen": "prompts are counted by us",
}


@dataclass(frozen=True)
class Bench:
    """What a method is given to fit with: the frozen base, encoded questions, options and a folder.

    ``base`` stands for the base model, its precision and the version of this package. ``store`` is a folder in which
    trainings are kept and found again; ``snapshots`` are fractions of a training at which other methods of the campaign
    will want the adapter. ``charge`` is told the seconds of a training that was found and not done again.
    """

    model: Any  # transformers.PreTrainedModel, frozen
    pad_token_id: int
    examples: Sequence[Example]
    calibration: Sequence[Example]
    train: TrainConfig
    seed: int
    folder: Path
    resume: bool = False
    config_hash: str = ""
    base: str = ""
    store: Path | None = None
    snapshots: tuple[float, ...] = ()
    charge: Callable[[float], None] = lambda seconds: None


class Trained(NamedTuple):
    """A PEFT model with its trained adapter, in evaluation mode, and the adapter's folder at each asked fraction."""

    model: Any
    snapshots: dict[float, Path]


def train_adapter(
    bench: Bench,
    adapter_config: Any,
    objective: Objective,
    *,
    snapshots: Sequence[float] = (),
    trainer: Callable[..., Any] | None = None,
    variant: Mapping[str, Any] | None = None,
) -> Trained:
    """Train one adapter on a bench with one loss, and leave it in ``bench.folder`` in PEFT's format.

    The seed covers the adapter's initialisation, an encoder's new head, data order and dropout. ``snapshots`` are the
    fractions of the run, below 1, at which the adapter is wanted too. ``trainer`` builds another ``CalibratedTrainer``
    from the same arguments; what sets it apart must be in ``variant``, which is part of the training's identity.
    """
    adapter_config = with_head(adapter_config, bench.model)
    key = training_key(bench, adapter_config, objective, variant or {})
    wanted = sorted({*bench.snapshots, *snapshots})
    place = bench.folder if bench.store is None else bench.store / key
    place.mkdir(parents=True, exist_ok=True)
    model = None
    with alone(place / ".lock", "does the same training") if bench.store else contextlib.nullcontext():
        if not _is_trained(place, key, wanted):
            own = bench
            if bench.store:  # what a killed process left there is its own checkpoint: go on from it
                left = any(place.glob("checkpoint-*"))
                own = replace(bench, folder=place, resume=left, config_hash=key)
            model = _train(own, adapter_config, objective, wanted, trainer, key)
            if bench.store:
                remove_checkpoints(place)
        elif bench.store:
            bench.charge(json.loads((place / "training.json").read_text(encoding="utf-8"))["seconds"])
    if place != bench.folder and is_main_process():
        bench.folder.mkdir(parents=True, exist_ok=True)
        for name in (*ADAPTER, "state.safetensors", "training_log.jsonl", "training.json"):
            if (place / name).is_file():  # state.safetensors: only some trainers learn more than an adapter
                link(place / name, bench.folder / name)
    wait_for_all()
    if model is None:
        model = load_adapter(bench.model, bench.folder)
    return Trained(model, {fraction: _snapshot_folder(place, fraction) for fraction in snapshots})


def training_key(bench: Bench, adapter_config: Any, objective: Objective, variant: Mapping[str, Any]) -> str:
    """Return a SHA-256 over everything that the trained weights depend on."""
    from uq4ct.batches import fingerprint

    facts = {
        "base": bench.base,
        "data": fingerprint(bench.examples),
        "adapter": adapter_config.to_dict(),
        "objective": {"class": str(type(objective)), **dataclasses.asdict(objective)},
        "train": bench.train.substance(),
        "seed": bench.seed,
        "variant": dict(variant),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=_plain).encode()).hexdigest()


def is_main_process() -> bool:
    """Tell whether this is the first process of a training, or its only one."""
    return os.environ.get("RANK", "0") == "0"


def wait_for_all() -> None:
    """Let no process of a training go on before the main one has written its files."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def remove_checkpoints(folder: Path) -> None:
    """Remove what only an unfinished training needs."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)


def link(source: Path, target: Path) -> None:
    """Give a file a second name: a hard link where the file system has them, a copy otherwise."""
    target.unlink(missing_ok=True)  # never write through to a file that others share
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _train(
    bench: Bench,
    adapter_config: Any,
    objective: Objective,
    snapshots: Sequence[float],
    trainer: Callable[..., Any] | None,
    key: str,
) -> Any:
    import peft
    import transformers

    from uq4ct.snapshots import Snapshots, discard_beyond_missing, save_adapter
    from uq4ct.training import CalibratedTrainer

    started = time.monotonic()
    transformers.set_seed(bench.seed)
    draw_head(bench.model, bench.seed)
    model = peft.get_peft_model(bench.model, adapter_config)
    training = (trainer or CalibratedTrainer)(
        model=model,
        args=training_arguments(bench),
        train_dataset=bench.examples,
        pad_token_id=bench.pad_token_id,
        objective=objective,
        config_hash=bench.config_hash,
        callbacks=[Snapshots(bench.folder, snapshots)],
    )
    if bench.resume and training.is_world_process_zero():
        discard_beyond_missing(bench.folder, snapshots)
    wait_for_all()
    training.train(resume_from_checkpoint=bench.resume)
    # with bf16 or fp16 accelerate leaves autocast in the model's forward, and a loaded model has none: take it off
    training.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.eval()
    if training.is_world_process_zero():
        save_adapter(model, bench.folder)
        log = "".join(json.dumps(entry) + "\n" for entry in training.state.log_history)
        write_atomically(bench.folder / "training_log.jsonl", log)
        done = {"key": key, "seconds": round(time.monotonic() - started, 3)}
        write_json(bench.folder / "training.json", {**done, "sha256": _digest(bench.folder)})
    return model


def _is_trained(place: Path, key: str, snapshots: Sequence[float]) -> bool:
    """Tell whether the very same training is done there, with its adapter whole and every snapshot."""
    try:
        done = json.loads((place / "training.json").read_text(encoding="utf-8"))
        whole = done["key"] == key and done["sha256"] == _digest(place)
    except (OSError, ValueError, KeyError):
        return False
    return whole and all(_snapshot_folder(place, fraction).is_dir() for fraction in snapshots)


def _snapshot_folder(place: Path, fraction: float) -> Path:
    from uq4ct.snapshots import snapshot_folder

    return snapshot_folder(place, fraction)


def _digest(folder: Path) -> str:
    return sha256(folder / "adapter_model.safetensors")


def _plain(value: Any) -> Any:
    """Turn what PEFT's configurations hold besides plain values into some."""
    return sorted(value) if isinstance(value, (set, frozenset)) else getattr(value, "value", str(value))


def training_arguments(bench: Bench) -> Any:
    """Translate a bench's options into ``transformers.TrainingArguments``."""
    import transformers

    options = {
        "report_to": "none",
        # the Trainer would move the model to a GPU that it finds, and leave processes on CPUs on their own
        "use_cpu": bench.model.device.type == "cpu",
        **bench.train.model_dump(),
    }
    return transformers.TrainingArguments(output_dir=str(bench.folder), seed=bench.seed, **options)


def check_training_options(train: TrainConfig, device: torch.device) -> None:
    """Raise UserError where transformers refuses the value of a training option, or would train on another device."""
    import transformers

    taken = int(os.environ.get("LOCAL_RANK", 0))
    if device.type == "cuda" and device.index not in (None, taken):
        raise UserError(
            f"model.device: training takes cuda:{taken} here, not {device}; leave model.device out"
            + ("" if taken else f" and set CUDA_VISIBLE_DEVICES={device.index}")
        )
    try:
        options = {"output_dir": "unused", "use_cpu": device.type == "cpu", **train.model_dump()}
        transformers.TrainingArguments(**options)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"train: transformers refuses these options: {str(error).splitlines()[0]}") from error


def load_adapter(model: Any, folder: Path, name: str = "default") -> Any:
    """Put a saved adapter on a base model, or as one more on a PEFT model; return it in evaluation mode.

    Raises UserError where the weights are not safetensors, or not those of the adapter's configuration.
    """
    import peft
    from safetensors import SafetensorError, safe_open

    import uq4ct.adapters  # noqa: F401  # makes the mixture known to PEFT

    path = folder / "adapter_model.safetensors"
    if not path.is_file():  # PEFT would look for a pickle
        raise UserError(f"{path}: missing, and an adapter is read from safetensors only; restore it from a copy")
    try:
        with safe_open(path, framework="pt") as file:
            saved = set(file.keys())
        if isinstance(model, peft.PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
        else:
            model = peft.PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    except SafetensorError as error:
        raise UserError(f"{path}: not readable as safetensors ({error}); restore it from a copy") from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise UserError(_not_this_adapter(path, "tensors of another size")) from error
    expected = set(peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    if absent := sorted(expected - saved):  # PEFT leaves them at their initial values
        raise UserError(_not_this_adapter(path, f"lacks {len(absent)} tensors, among them {absent[0]}"))
    if unknown := sorted(saved - expected):
        raise UserError(_not_this_adapter(path, f"{len(unknown)} tensors too many, among them {unknown[0]}"))
    return model.eval()


def _not_this_adapter(path: Path, found: str) -> str:
    return (
        f"{path}: {found}; it does not belong to {path.with_name('adapter_config.json').name} and this base model, "
        "restore the run from a copy"
    )


def load_members(model: Any, folders: Sequence[Path]) -> Any:
    """Put several saved adapters on one base model: "default", "member-1", ...; the first is active.

    The base is in memory once. Raises UserError as ``load_adapter`` does, for any of them.
    """
    for number, folder in enumerate(folders):
        model = load_adapter(model, folder, member_name(number))
    return model


def member_name(number: int) -> str:
    """Return PEFT's name of an ensemble's member: its first one is what PEFT loads by default."""
    return f"member-{number}" if number else "default"


def member_folders(folder: Path, members: int) -> list[Path]:
    """Return where the members of an ensemble lie: the first in the run's own folder, the others below it."""
    return [folder / f"member-{number}" if number else folder for number in range(members)]
