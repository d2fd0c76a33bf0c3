"""Fine-tuning by the objective of Eq. 11: a ``transformers.Trainer`` with exact normalisers that resumes bit for bit.

Cross entropy and calibration are divided by the number of EXAMPLES in the whole effective batch (all accumulation
steps, all processes), so neither accumulation nor data parallelism nor padding changes their gradient. The load balance
is that of each micro-batch across all processes, weighed by its share of the examples.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import peft
import torch
import transformers
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers.trainer_utils import TrainOutput

from uq4ct.adapters.router import Routed
from uq4ct.batches import EffectiveBatches, check_examples, fingerprint, held_out, loader
from uq4ct.checkpoints import (
    checkpoints,
    discard,
    keep_newest,
    last_good_checkpoint,
    refuse_other_run,
    seal,
    step_of,
    to_stderr,
)
from uq4ct.errors import UserError
from uq4ct.interruption import Interrupted, StopSignal
from uq4ct.losses.answer import answer_loss, is_correct
from uq4ct.losses.objective import Objective
from uq4ct.manifest import verify_manifest
from uq4ct.scoring import Example, check_lengths, collate, length, padding_side_of, score, score_all, uq4ct_loss
from uq4ct.watching import ProgressLines, Tally

__all__ = ["CalibratedTrainer", "Diverged", "Interrupted", "uq4ct_loss"]

T = TypeVar("T")
Penalty = Callable[[nn.Module], Tensor]  # a term of the loss that depends on the weights alone


class Diverged(UserError):
    """A loss term, the gradient or a weight became NaN or infinite; nothing of that update was saved."""

    def __init__(self, step: int, term: str, value: float, rows: Sequence[int], checkpoint: Path | None):
        self.step, self.term, self.checkpoint = step, term, checkpoint
        examples = f" (training examples {', '.join(map(str, rows[:16]))})" if rows else ""
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint before it"
        super().__init__(
            f"step {step}{examples}: {term} is {value}; training stopped, {kept}. Lower the learning rate, clip "
            "gradients (max_grad_norm) or train in float32 or bfloat16"
        )


class CalibratedTrainer(transformers.Trainer):
    """Train an adapter by Eq. 11 on encoded questions.

    ``train_dataset`` is a sequence of encoded examples (``input_ids``, ``choice_ids`` or ``option_ids``, ``answer``),
    for ``uq4ct.scoring.collate``. The loss is ``objective``, or Eq. 11 with the two weights, and once per update
    ``penalty(model)``, logged as ``kl``. ``config_hash`` stands for whatever else, the penalty included, a checkpoint
    must have in common with the run that resumes it. ``args`` is copied: remove_unused_columns,
    ddp_find_unused_parameters, logging_nan_inf_filter and ignore_data_skip are set to False, and gradient checkpointing
    is non-reentrant. Each checkpoint is sealed by a manifest, and only then older ones are
    deleted (``save_total_limit``).

    Raises UserError at once for an example, a model or an argument that cannot work, and ``Diverged`` or
    ``Interrupted`` while training. Needs one process per GPU (``torchrun``): DataParallel is never used.
    """

    loss_is_scaled_for_ga = True  # our terms are normalised over the whole effective batch already

    def __init__(
        self,
        model: nn.Module,
        args: transformers.TrainingArguments | None = None,
        train_dataset: Sequence[Example] | None = None,
        eval_dataset: Sequence[Example] | None = None,
        *,
        calibration_weight: float = 1.0,
        balance_weight: float = 0.01,
        objective: Objective | None = None,
        penalty: Penalty | None = None,
        pad_token_id: int | None = None,
        config_hash: str = "",
        **options: Any,
    ):
        self.objective: Objective = objective or Objective(calibration_weight, balance_weight)
        self.penalty = penalty
        self.pad_token_id = pad_token_id or 0  # masked everywhere, so any id that the model knows will do
        self.config_hash = config_hash
        args, self.checkpoints_to_keep = _own_arguments(args or transformers.TrainingArguments("trainer_output"))
        if self.objective.needs_router and not any(isinstance(module, Routed) for module in model.modules()):
            raise UserError(
                f"calibration_weight={self.objective.calibration_weight} and balance_weight="
                f"{self.objective.balance_weight} need a router, but the model has none; wrap it with a MixLoraConfig, "
                "or pass objective=Objective() for a plain adapter"
            )
        if self.objective.calibration_target == "shuffled" and args.per_device_train_batch_size < 2:
            raise UserError(
                "calibration_target 'shuffled' takes the indicator of another question of the micro-batch; set "
                "train.per_device_train_batch_size: 2 or more"
            )
        if train_dataset is not None:
            check_examples(train_dataset)
            check_lengths(model, train_dataset)
            if self.objective.calibration_questions != "all" and len(train_dataset) < self.objective.held_out_every:
                raise UserError(
                    f"there are {len(train_dataset)} training questions, too few to hold out one in "
                    f"{self.objective.held_out_every} for the calibration; set calibration_questions to all"
                )
        own = functools.partial(collate, pad_token_id=self.pad_token_id, padding_side=padding_side_of(model))
        options.setdefault("data_collator", own)
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **options)
        self._tally = Tally(self.args.device)
        self._stop = StopSignal()
        self._stopping = 0  # the signal that all processes agreed to follow
        self._rows: list[int] = []
        self._shares: tuple[Tensor, ...] = ()  # of this update: how many examples, of the answer loss, of calibration
        self._held_out: Tensor | None = None  # the examples that the answer loss leaves out in this epoch, if any
        self._saved = -1
        self.add_callback(_Hooks(self))
        if self.args.disable_tqdm:
            self.remove_callback(transformers.PrinterCallback)
            self.add_callback(ProgressLines())

    # ---- data: the same effective batches whatever the accumulation and the number of processes

    def get_train_dataloader(self) -> Any:
        """Return this process's loader; accelerate does not prepare it, as it repeats examples to fill up ranks."""
        self.batches = EffectiveBatches(
            len(self._examples),
            self.args.per_device_train_batch_size,
            self.args.gradient_accumulation_steps,
            self.args.world_size,
            self.args.process_index,
            seed=self._data_seed,
            shuffle=self._shuffled,
            drop_last=self.args.dataloader_drop_last,
            lengths=[length(self._examples[row]) for row in range(len(self._examples))],
        )
        return loader(
            self._examples,
            self.batches,
            cast(Any, self.data_collator),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: Any) -> tuple[list, Tensor]:
        """Return the micro-batches of the next update and its number of examples over all of them and all processes."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        self._rows = torch.cat([batch["row"] for batch in batches]).tolist()
        counts = []
        for batch in batches:
            real = batch["row"] >= 0
            held = None if self._held_out is None else self._held_out[batch["row"]]
            own = (real, real) if held is None else (real & ~held, real & held)
            batch["of_answer"], batch["of_calibration"] = own
            counts.append([part.sum() for part in (real, *own)])
        sums = self._sum_over_ranks(torch.tensor(counts).to(device))
        for batch, number in zip(batches, sums[:, 0], strict=True):
            batch["micro_step_examples"] = number
        self._shares = tuple(sums.sum(dim=0).clamp(min=1))
        return batches, sums[:, 0].sum()

    def begin_epoch(self, epoch: int) -> None:
        """Shuffle for this epoch, and choose the examples that its answer loss leaves out for the calibration."""
        self.batches.set_epoch(epoch)
        which, every = self.objective.calibration_questions, self.objective.held_out_every
        turn = epoch if which == "rotating" else None
        self._held_out = None if which == "all" else held_out(len(self._examples), every, self._data_seed, turn)

    # ---- loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's part of the loss (Eq. 11): parts of all micro-batches and processes sum to it."""
        batch = dict(inputs)
        real, micro_step_examples = batch.pop("row") >= 0, batch.pop("micro_step_examples")
        of_answer, of_calibration = batch.pop("of_answer"), batch.pop("of_calibration")
        scores = score(model, batch)
        shared = self._sum_over_ranks if self.args.world_size > 1 else None
        terms = self.objective.terms(*scores[:2], batch["answer"], *scores[2:4], real, shared, scores.item)
        zero = terms.answer.new_zeros(())
        # a filler weighs nothing; where() and not a product, so that nothing of it can leak
        everyone, fitted, apart = (number.to(terms.answer.dtype) for number in self._shares)
        # each term is the mean over its own examples: its sum as if it had all of the update's
        answer = torch.where(of_answer, terms.answer, 0.0).sum() * (everyone / fitted)
        calibration = zero
        if terms.calibration is not None:
            calibration = torch.where(of_calibration, terms.calibration, 0.0).sum() * (everyone / apart)
        balance = zero if terms.balance is None else terms.balance * micro_step_examples
        # weighed by this part's share of the examples, so that one whole penalty is in each update
        penalty = zero if self.penalty is None else self.penalty(model) * real.sum()
        self._tally.add((answer, balance, calibration, penalty), terms, scores, real)
        loss = self.objective.combine(answer, balance, calibration, self.state.global_step) + penalty
        # data parallelism averages gradients over processes, we need their sum
        loss = loss * self.args.world_size / cast(Tensor, num_items_in_batch)
        return (loss, scores) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score encoded examples in evaluation mode and return their loss over the choices, accuracy and mean FEU."""
        examples: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        mine = [examples[row] for row in range(self.args.process_index, len(examples), self.args.world_size)]
        sums = torch.zeros(4, dtype=torch.float64)
        if mine:
            batch_size = self.args.per_device_eval_batch_size
            scored, _, feu, _ = score_all(cast(nn.Module, self.model), mine, self.pad_token_id, batch_size)
            logits, answer = torch.from_numpy(scored[:, 0]), torch.tensor([example["answer"] for example in mine])
            loss, right = answer_loss(logits, answer, reduction="sum"), is_correct(logits, answer).sum()
            sums += torch.tensor([loss, right, math.nan if feu is None else feu.sum(), len(mine)])
        *totals, number = self._sum_over_ranks(sums.to(self.args.device)).tolist()
        named = zip(("loss", "accuracy", "feu"), totals, strict=True)
        metrics = {f"{metric_key_prefix}_{name}": value / number for name, value in named if math.isfinite(value)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- watching: sums per update and per logging window, one synchronisation per update

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms, accuracy, FEU, beta and expert load of all examples since the last log, over all processes."""
        if "loss" in logs and (means := self._tally.means(self._sum_over_ranks)):
            if self.penalty is None:
                means.pop("kl")
            logs = {**logs, **means}
            if "calibration" in means:
                logs["beta"] = self.objective.beta(self.state.global_step - 1)  # of the last update
        super().log(logs, start_time)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Trainer asks for the norm once per update, after the last backward and before the optimizer's step: the one
        # place where everything of this update is known and nothing has been changed yet
        norm = super()._get_grad_norm(model, grad_norm)
        self._check_update(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        return norm

    def _check_update(self, grad_norm: Any) -> None:
        """Stop on NaN or infinity, and agree with the other processes whether a signal asks to stop."""
        norm = torch.as_tensor(grad_norm).to(**self._tally.options).reshape(1)
        asked = torch.tensor([self._stop.received], **self._tally.options)
        *values, asked_to_stop = self._sum_over_ranks(torch.cat([self._tally.update[:4], norm, asked])).tolist()
        self._tally.end_update()
        if asked_to_stop:
            self._stopping = self._stop.received or signal.SIGTERM
        scaler = getattr(self.accelerator, "scaler", None)  # float16: the scaler skips an update that overflows
        names = ("cross entropy", "load balance", "calibration", "KL divergence", "gradient norm")
        for term, value in zip(names[: 4 if scaler is not None else 5], values, strict=False):
            if not math.isfinite(value):
                self._diverged(self.state.global_step + 1, term, value)

    def _check_weights(self) -> None:
        named = cast(nn.Module, self.model).named_parameters()
        trainable = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        finite = torch.stack([p.detach().isfinite().all() for _, p in trainable]).tolist()
        for (name, parameter), fine in zip(trainable, finite, strict=True):
            if not fine:
                value = parameter.detach()[~parameter.detach().isfinite()][0].item()
                self._diverged(self.state.global_step, f"weight {name}", value)

    def _diverged(self, step: int, term: str, value: float) -> None:
        good = last_good_checkpoint(self._folder, say=lambda line: None)
        raise Diverged(step, term, value, [row for row in self._rows if row >= 0], good)

    # ---- checkpoints, signals, resume

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **options: Any) -> TrainOutput:
        """Train, from the start or from a checkpoint: ``True`` for the newest good one in ``output_dir``, or its path.

        A resumed run continues bit for bit (same machine, versions and processes). Raises UserError for a checkpoint of
        another configuration, CorruptFolder for a named one that is damaged, ``Diverged``, and ``Interrupted`` after
        SIGTERM or SIGINT; a second signal ends the process at once.
        """
        checkpoint = self._on_main_process(lambda: self._find_checkpoint(resume_from_checkpoint))
        if checkpoint is not None and (finished := self._finished(checkpoint)):
            return finished
        self._stopping, self._saved = 0, -1
        with self._stop:
            output = super().train(str(checkpoint) if checkpoint else None, *args, **options)
        self._check_weights()
        if self._stopping:
            raise Interrupted(self._stopping, self._folder / f"checkpoint-{self.state.global_step}")
        if self._stop.received:  # it came when there was no update left to stop: let it do what it does outside
            signal.raise_signal(self._stop.received)
        return output

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self._saved == self.state.global_step:  # asked for twice, e.g. by a signal and by the end of an epoch
            return
        self._check_weights()
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            discard(folder)  # an unfinished or damaged one of the same step
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            seal(folder, {**self._facts, **self._notes})
            keep_newest(folder, self.checkpoints_to_keep, self.state.best_model_checkpoint)
        self._saved = self.state.global_step

    def _find_checkpoint(self, wanted: Any) -> Path | None:
        folder = self._folder
        if not wanted:
            if found := checkpoints(folder):
                raise UserError(
                    f"{found[-1]}: a checkpoint of an earlier run; pass resume_from_checkpoint=True to continue it, "
                    "delete it, or choose another output_dir"
                )
            return None
        checkpoint = last_good_checkpoint(folder) if wanted is True else Path(wanted)
        if checkpoint is None:
            to_stderr(f"{folder}: no checkpoint to continue from, starting at step 0")
            return None
        manifest = verify_manifest(checkpoint)
        refuse_other_run(manifest, self._facts, checkpoint)
        for name, now in self._notes.items():
            if (then := manifest.get(name)) != now:
                to_stderr(f"{checkpoint}: {name} was {then} and is {now} now; the run continues, but not bit for bit")
        to_stderr(f"{checkpoint}: continuing after step {step_of(checkpoint)}")
        return checkpoint

    def _finished(self, checkpoint: Path) -> TrainOutput | None:
        """Load a checkpoint of the very last step and return; Trainer itself would train one step too many."""
        state = transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < state.max_steps:
            return None
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        return TrainOutput(state.global_step, math.nan, {})

    @functools.cached_property
    def _facts(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the run that continues it."""
        micro_step = self.args.per_device_train_batch_size * self.args.world_size
        return {
            "config_hash": self.config_hash,
            "objective": dataclasses.asdict(self.objective),
            "data": fingerprint(self._examples),
            "data_seed": self._data_seed,
            "effective_batch": micro_step * self.args.gradient_accumulation_steps,
        }

    @property
    def _notes(self) -> dict[str, Any]:
        """What may differ, at the price of bit-exactness."""
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
        micro_batch = self.args.per_device_train_batch_size
        return {"processes": self.args.world_size, "micro_batch": micro_batch, **versions}

    @property
    def _folder(self) -> Path:
        return Path(cast(str, self.args.output_dir))

    @property
    def _examples(self) -> Sequence[Example]:
        if self.train_dataset is None:
            raise UserError("CalibratedTrainer: training needs train_dataset, a sequence of encoded examples")
        return cast(Sequence[Example], self.train_dataset)

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    @property
    def _shuffled(self) -> bool:
        return getattr(self.args, "train_sampling_strategy", "random") == "random"

    # ---- processes

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        if self.args.world_size > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
        return values

    def _on_main_process(self, find: Callable[[], T]) -> T:
        """Run a function once and give its result, or its exception, to every process."""
        outcome: list[Any] = [None, None]
        if self.is_world_process_zero():
            try:
                outcome[0] = find()
            except Exception as error:
                outcome[1] = error
        if self.args.world_size > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


class _Hooks(transformers.TrainerCallback):
    """Tell the sampler its epoch, and stop at the end of an update when all processes agreed to."""

    def __init__(self, trainer: CalibratedTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.begin_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer._stopping:
            control.should_save = control.should_training_stop = True


def _own_arguments(args: transformers.TrainingArguments) -> tuple[transformers.TrainingArguments, int | None]:
    """Return a copy of the arguments with what this trainer decides itself, and how many checkpoints to keep."""
    problems = []
    if args.auto_find_batch_size:
        problems.append("auto_find_batch_size=True changes the experiment; lower per_device_train_batch_size instead")
    if args.save_only_model:
        problems.append("save_only_model=True leaves nothing to resume from; leave it out")
    if (strategy := getattr(args, "train_sampling_strategy", "random")) not in ("random", "sequential"):
        problems.append(f"train_sampling_strategy: expected 'random' or 'sequential', got '{strategy}'")
    args, keep = copy.copy(args), args.save_total_limit
    for prefix in ("activation", "gradient"):  # two names of one option, depending on the version of transformers
        if getattr(args, f"{prefix}_checkpointing", False):
            options = dict(getattr(args, f"{prefix}_checkpointing_kwargs", None) or {})
            if options.get("use_reentrant"):
                problems.append(
                    f"{prefix}_checkpointing_kwargs: use_reentrant=True silently loses the gradient of the calibration "
                    "loss; leave it out or pass False"
                )
            setattr(args, f"{prefix}_checkpointing_kwargs", {**options, "use_reentrant": False})
    if problems:
        raise UserError(problems)
    if args.n_gpu > 1:
        to_stderr(f"using one of {args.n_gpu} GPUs; start with torchrun to use them all")
        args._n_gpu = 1
    args.remove_unused_columns = args.ddp_find_unused_parameters = False
    args.logging_nan_inf_filter = args.ignore_data_skip = False
    args.save_total_limit = None  # Trainer would delete an old checkpoint before the new one is sealed
    args.disable_tqdm = args.disable_tqdm or not sys.stderr.isatty()
    return args, keep
