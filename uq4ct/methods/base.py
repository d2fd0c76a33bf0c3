"""What every method is: a frozen value whose fields are its hyper-parameters, with ``fit`` and ``predict``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from uq4ct.errors import UserError, did_you_mean
from uq4ct.manifest import write_atomically
from uq4ct.types import Prediction

if TYPE_CHECKING:
    from uq4ct.losses.objective import Objective

Example = Mapping[str, Any]  # an encoded question: the data set contract of CalibratedTrainer
Progress = Callable[[int, int], None]  # (items done, items in all)


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
    "label_names": "answers are not passed as labels",
    "average_tokens_across_devices": "each loss term carries its own exact normaliser",
    "ddp_find_unused_parameters": "every adapter parameter always receives a gradient",
    "logging_nan_inf_filter": "a NaN must stop the run",
    "include_num_input_tokens_seen": "prompts are counted by us",
}


@dataclass(frozen=True)
class Bench:
    """What a method is given to fit with: the frozen base, encoded questions, options and a folder."""

    model: Any  # transformers.PreTrainedModel, frozen
    pad_token_id: int
    examples: Sequence[Example]
    calibration: Sequence[Example]
    train: TrainConfig
    seed: int
    folder: Path
    resume: bool = False
    config_hash: str = ""


class Method(BaseModel):
    """A way to fine-tune a model and to predict with it. A file of this folder with one subclass is one method.

    ``fit`` writes what it learned into ``bench.folder`` and returns the model ready to predict; ``load`` builds the
    same model again from that folder; ``predict`` turns encoded questions into a ``Prediction``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    summary: ClassVar[str]
    passes: ClassVar[int] = 1  # forward passes per answer

    def fit(self, bench: Bench) -> Any:
        """Fit on the bench and return the model ready to predict."""
        return train_adapter(bench, self.adapter_config(bench.model), self.objective())

    def check(self, model: Any) -> None:
        """Raise UserError where this method cannot adapt the base model; nothing is changed."""
        self.adapter_config(model)

    def load(self, model: Any, folder: Path) -> Any:
        """Put what ``fit`` wrote into the folder back on a fresh base model."""
        return load_adapter(model, folder)

    def predict(
        self,
        model: Any,
        examples: Sequence[Example],
        *,
        ids: Sequence[str],
        pad_token_id: int,
        batch_size: int = 32,
        progress: Progress | None = None,
    ) -> Prediction:
        """Score encoded questions in one forward pass each; results do not depend on batch size or order."""
        from uq4ct.scoring import score_all

        tokens: Any = getattr(self, "feu_tokens", "prompt")  # FEU is read where it was trained, if it was
        logits, mask, feu, letter_mass = score_all(model, examples, pad_token_id, batch_size, progress, tokens)
        return Prediction(ids=tuple(ids), logits=logits, mask=mask, feu=feu, letter_mass=letter_mass)

    def adapter_config(self, model: Any) -> Any:
        """Return the PEFT configuration of this method's adapter for a base model."""
        raise TypeError(f"{self.name} has no adapter")

    def objective(self) -> Objective:
        """Return the training loss of this method."""
        raise TypeError(f"{self.name} is not trained")


class MixtureMethod(Method):
    """A method on a mixture of LoRA experts (Eqs. 2, 3, 8). Defaults are A.4 of the paper."""

    num_experts: int | tuple[int, ...] = 8  # one number, or one per layer
    top_k: int = Field(2, ge=1)
    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    routing: Literal["ffn_block", "per_linear"] = "ffn_block"
    mixing: Literal["rescaled", "raw"] = "rescaled"
    rslora: bool = False
    target_modules: tuple[str, ...] | None = None  # None: attention and FFN, found per model family
    answer_loss: Literal["choices", "vocabulary"] = "choices"
    balance_weight: float = Field(0.01, ge=0)  # alpha of Eq. 11: the 1e-2 of Eq. 13, applied once
    balance_counts: Literal["first", "top_k"] = "first"
    balance_scope: Literal["layer", "pooled"] = "layer"
    balance_probabilities: Literal["full", "kept"] = "full"

    def adapter_config(self, model: Any) -> Any:
        """Return the MixLoraConfig for a base model; raise UserError where it has no place for the mixture."""
        from uq4ct.adapters import MixLoraConfig
        from uq4ct.adapters.placement import place

        config = MixLoraConfig(
            task_type="CAUSAL_LM",
            num_experts=list(self.num_experts) if isinstance(self.num_experts, tuple) else self.num_experts,
            top_k=self.top_k,
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            routing=self.routing,
            mixing=self.mixing,
            use_rslora=self.rslora,
            target_modules=list(self.target_modules) if self.target_modules else None,
        )
        place(dict(model.named_modules()), self.routing, config.target_modules, config.num_experts)
        return config


def train_adapter(bench: Bench, adapter_config: Any, objective: Objective) -> Any:
    """Train one adapter on a bench with one loss, save it in PEFT's format and return the model in evaluation mode.

    The seed covers the adapter's initialisation as well as data order and dropout.
    """
    import peft
    import transformers

    from uq4ct.training import CalibratedTrainer

    transformers.set_seed(bench.seed)
    model = peft.get_peft_model(bench.model, adapter_config)
    trainer = CalibratedTrainer(
        model=model,
        args=training_arguments(bench),
        train_dataset=bench.examples,
        pad_token_id=bench.pad_token_id,
        objective=objective,
        config_hash=bench.config_hash,
    )
    trainer.train(resume_from_checkpoint=bench.resume)
    model.eval()
    if trainer.is_world_process_zero():
        model.save_pretrained(bench.folder)
        (bench.folder / "README.md").unlink(missing_ok=True)  # PEFT's card template says nothing about this run
        log = "".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history)
        write_atomically(bench.folder / "training_log.jsonl", log)
    return model


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


def check_training_options(train: TrainConfig, use_cpu: bool) -> None:
    """Raise UserError where transformers refuses the value of a training option."""
    import transformers

    try:
        transformers.TrainingArguments(**{"output_dir": "unused", "use_cpu": use_cpu, **train.model_dump()})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"train: transformers refuses these options: {str(error).splitlines()[0]}") from error


def load_adapter(model: Any, folder: Path) -> Any:
    """Put a saved adapter on a base model, in evaluation mode.

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
        adapted = peft.PeftModel.from_pretrained(model, str(folder))
    except SafetensorError as error:
        raise UserError(f"{path}: not readable as safetensors ({error}); restore it from a copy") from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise UserError(_not_this_adapter(path, "tensors of another size")) from error
    expected = set(peft.get_peft_model_state_dict(adapted))
    if absent := sorted(expected - saved):  # PEFT leaves them at their initial values
        raise UserError(_not_this_adapter(path, f"lacks {len(absent)} tensors, among them {absent[0]}"))
    if unknown := sorted(saved - expected):
        raise UserError(_not_this_adapter(path, f"{len(unknown)} tensors too many, among them {unknown[0]}"))
    return adapted.eval()


def _not_this_adapter(path: Path, found: str) -> str:
    return (
        f"{path}: {found}; it does not belong to {path.with_name('adapter_config.json').name} and this base model, "
        "restore the run from a copy"
    )
