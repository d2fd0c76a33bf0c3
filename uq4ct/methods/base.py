"""What every method is: a frozen value whose fields are its hyper-parameters, with ``fit`` and ``predict``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from uq4ct.adapting import Bench, Example, load_adapter, train_adapter
from uq4ct.encoders import kind_of
from uq4ct.errors import UserError
from uq4ct.passes import Progress, part_of, score_pass, score_samples, stack
from uq4ct.types import FeuReading, Prediction

if TYPE_CHECKING:
    from uq4ct.losses.objective import Objective


class Method(BaseModel):
    """A way to fine-tune a model and to predict with it. A file of this folder with one subclass is one method.

    ``fit`` writes what it learned into ``bench.folder`` and returns the model ready to predict; ``load`` builds the
    same model again from that folder; ``predict`` turns encoded questions into a ``Prediction``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    summary: ClassVar[str]
    # what a preset says of this kind of method alone: its options, and as "train" those of its training
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    posthoc: str | None = None  # a calibrator of uq4ct.posthoc, fitted on the calibration split

    @field_validator("posthoc")
    @classmethod
    def _known_calibrator(cls, name: str | None) -> str | None:
        from uq4ct.posthoc import calibrator

        try:
            return name if name is None else calibrator(name).name
        except UserError as error:
            raise ValueError(str(error)) from error

    @property
    def label(self) -> str:
        """The method's name as people write it, its post-hoc calibration included: ``lora+temperature``."""
        return f"{self.name}+{self.posthoc}" if self.posthoc else self.name

    @property
    def passes(self) -> int:
        """Forward passes per answer."""
        return 1

    def answer_cost(self, choices: float) -> float:
        """Return about what an answer costs, in forward passes, where a question has so many choices."""
        return float(self.passes)

    def fit_cost(self, questions: int, calibration: int, choices: float) -> float:
        """Return about what the fit costs besides training, in forward passes of one question each.

        There are so many ``questions`` to fit on and ``calibration`` questions, and a question has so many choices.
        """
        return 0.0

    @property
    def trainings(self) -> int:
        """Adapters that the fit trains one after the other, of which the first is that of the run's own seed."""
        return 1

    @property
    def snapshots(self) -> tuple[float, ...]:
        """Fractions of the training, below 1, at which this method needs the adapter too."""
        return ()

    @property
    def needs_calibration(self) -> bool:
        """Whether the fit itself, and not only a post-hoc calibration, needs a calibration split."""
        return False

    @property
    def has_router(self) -> bool:
        """Whether predictions carry FEU."""
        return False

    def unfit(self, questions: int, calibration: int) -> list[str]:
        """Return why this method, or its post-hoc calibration, cannot be fitted on so many questions of either kind.

        >>> from uq4ct.methods import find
        >>> find("lora")(posthoc="feu").unfit(900, calibration=100)[0].partition(" (")[0]
        'calibration by FEU needs a method with a router'
        """
        problems = []
        if (self.posthoc or self.needs_calibration) and not calibration:
            problems.append(
                "needs a calibration split, but none is kept; set data.calibration_fraction, for example 0.1 (the "
                "paper's preset and protocol have none)"
                + ("" if self.needs_calibration else f", or name the method {self.name}")
            )
        if self.posthoc:
            from uq4ct.posthoc import calibrator

            problems += calibrator(self.posthoc).unfit(calibration, self.has_router)
        return problems

    def options(self) -> dict[str, Any]:
        """Return the hyper-parameters as plain values, without the post-hoc calibration, which is in the label."""
        return self.model_dump(mode="json", exclude={"posthoc"})

    def notes(self, model: Any) -> list[str]:
        """Return what a user should know before this method is fitted to a base model."""
        return []

    def notes_on_steps(self, steps: int) -> list[str]:
        """Return what a user should know about this method after a training of so many steps."""
        return []

    def fit(self, bench: Bench) -> Any:
        """Fit on the bench and return the model ready to predict."""
        return train_adapter(bench, self.adapter_config(bench.model), self.objective()).model

    def check(self, model: Any) -> None:
        """Raise UserError where this method cannot adapt the base model; nothing is changed."""
        if kind_of(model) != "causal" and (problems := self.encoder_problems(model)):
            raise UserError(problems)
        self.adapter_config(model)

    def encoder_problems(self, model: Any) -> list[str]:
        """Return which of the options have no meaning for an encoder, and what to set instead."""
        problems = []
        if getattr(self, "answer_loss", None) == "vocabulary":
            problems.append(
                "method.answer_loss: vocabulary is a softmax over all tokens, and an encoder's head scores the choices "
                "alone; set method.answer_loss: choices"
            )
        if getattr(self, "feu_tokens", None) == "last":
            problems.append(
                "method.feu_tokens: last is the token before the answer, and an encoder's head reads the first one, "
                "which sees all the others; set method.feu_tokens: prompt"
            )
        return problems

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
        return stack([score_pass(model, examples, pad_token_id, batch_size, progress, self._feu_reading)], ids)

    @property
    def _feu_reading(self) -> FeuReading:
        """FEU is read as it was trained, if it was; where the loss compared vectors, which are no number, as mass."""
        trained = getattr(self, "feu_reduction", "mass")
        return FeuReading("top1" if trained == "top1" else "mass", getattr(self, "feu_tokens", "prompt"))

    def adapter_config(self, model: Any) -> Any:
        """Return the PEFT configuration of this method's adapter for a base model."""
        raise TypeError(f"{self.name} has no adapter")

    def objective(self) -> Objective:
        """Return the training loss of this method."""
        raise TypeError(f"{self.name} is not trained")

    def parameters_of(self, adapted: Any) -> int:
        """Count the numbers that a fit will train, in all of its trainings; the model has this method's adapter."""
        return self.trainings * sum(p.numel() for p in adapted.parameters() if p.requires_grad)

    def trainable_parameters(self, folder: Path) -> int:
        """Count the numbers that the fit in this folder has trained."""
        return count_parameters(folder)


class MatchedTo(BaseModel):
    """The mixture whose number of trainable parameters a plain LoRA is matched to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_experts: int = Field(8, ge=1)
    rank: int = Field(16, ge=1)
    routing: Literal["ffn_block", "per_linear"] = "ffn_block"

    def __str__(self) -> str:
        return f"{self.num_experts} experts of rank {self.rank} ({self.routing})"


class LoraMethod(Method):
    """A method on one plain LoRA (Eq. 1), or several. By default it has as many parameters as the paper's mixture."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"rank": 80},
        "bayesian-lora": {"target_modules": ("q_proj", "v_proj", "lm_head")},
    }

    rank: int | None = Field(None, ge=1)  # None: the nearest by parameter count to `matched_to`
    alpha: float | None = Field(None, gt=0)  # None: twice the rank
    dropout: float = Field(0.05, ge=0, lt=1)
    rslora: bool = False
    target_modules: tuple[str, ...] | None = None  # None: attention and FFN, found per model family
    answer_loss: Literal["choices", "vocabulary"] = "choices"
    matched_to: MatchedTo = MatchedTo(num_experts=8, rank=16)

    def adapter_config(self, model: Any) -> Any:
        """Return PEFT's LoraConfig on the same linears that the mixtures adapt, or on the given ones.

        Raises UserError where one of them is not there: PEFT is content with the others.
        """
        from peft import LoraConfig

        from uq4ct.adapters import linear_targets
        from uq4ct.adapters.placement import lora_targets

        leaves = {path.rpartition(".")[2] for path, _ in model.named_modules()}
        if absent := [name for name in self.target_modules or () if name.rpartition(".")[2] not in leaves]:
            usual = ", ".join(linear_targets(model))
            raise UserError(
                f"method.target_modules: the model has no module {', '.join(absent)}; expected names such as {usual}"
            )
        rank = self.matched_rank(model)
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=rank,
            lora_alpha=self.alpha or 2 * rank,  # type: ignore[arg-type]  # any number works
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            target_modules=lora_targets(model, self.target_modules) if self.target_modules else linear_targets(model),
        )

    def objective(self) -> Objective:
        """Return L = CE."""
        from uq4ct.losses.objective import Objective

        return Objective(answer_loss=self.answer_loss)

    def matched_rank(self, model: Any) -> int:
        """Return the rank: the given one, or that whose parameter count is nearest to the mixture's."""
        if self.rank is not None:
            return self.rank
        per_rank, mixture = self._counts(model)
        return max(1, round(mixture / per_rank))

    def notes(self, model: Any) -> list[str]:
        """Say which rank was chosen, and how near its parameter count is to the mixture's."""
        if self.rank is not None:
            return []
        per_rank, mixture = self._counts(model)
        rank = self.matched_rank(model)
        return [
            f"{self.name}: rank {rank} has {rank * per_rank:,} trainable parameters, the nearest to the {mixture:,} of "
            f"{self.matched_to}; method.rank sets another"
        ]

    def _counts(self, model: Any) -> tuple[int, int]:
        from uq4ct.adapters.placement import lora_parameters, mixture_parameters

        mixture = mixture_parameters(model, self.matched_to.routing, self.matched_to.num_experts, self.matched_to.rank)
        return lora_parameters(model, self.target_modules), mixture


class VariationalMethod(LoraMethod):
    """A method that learns a Gaussian over LoRA weights: means in the adapter, deviations in ``state.safetensors``.

    It predicts with ``samples`` draws, the same ones for every question, or with the means alone for ``samples=0``.
    """

    samples: int = Field(10, ge=0)

    @property
    def passes(self) -> int:
        """One per draw."""
        return max(self.samples, 1)

    def trainer(self) -> Callable[..., Any]:
        """Return what builds this method's trainer, from the arguments of ``CalibratedTrainer``."""
        raise NotImplementedError

    def fit(self, bench: Bench) -> Any:
        """Train and return the posterior."""
        options = {name: value for name, value in self.options().items() if name != "samples"}
        trained = train_adapter(
            bench,
            self.adapter_config(bench.model),
            self.objective(),
            trainer=self.trainer(),
            variant={"method": self.name, **options},
        )
        return self._posterior(trained.model, bench.folder)

    def load(self, model: Any, folder: Path) -> Any:
        """Put means and standard deviations back on a fresh base model."""
        return self._posterior(load_adapter(model, folder), folder)

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
        """Score encoded questions with each draw of the weights; the means are in place again afterwards."""
        if not self.samples:
            return stack([score_pass(model.model, examples, pad_token_id, batch_size, progress)], ids)
        parts = []
        for sample in range(self.samples):
            with model.sampled(sample):
                part = part_of(progress, sample, self.samples)
                parts.append(score_pass(model.model, examples, pad_token_id, batch_size, part))
        return stack(parts, ids)

    @staticmethod
    def _posterior(model: Any, folder: Path) -> Any:
        from uq4ct.variational.posterior import Posterior

        return Posterior.load(model, folder)


class MixtureMethod(Method):
    """A method on a mixture of LoRA experts (Eqs. 2, 3, 8). Defaults are A.4 of the paper."""

    # an expert sees k of N tokens and is small: at a LoRA's learning rate it falls behind (docs/study.md)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "product": {"train": {"learning_rate": 5e-4}},
        "encoder": {"train": {"learning_rate": 1e-3}},
    }

    num_experts: int | tuple[int, ...] = 8  # one number, or one per layer
    top_k: int = Field(2, ge=1)
    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    routing: Literal["ffn_block", "per_linear"] = "ffn_block"
    mixing: Literal["rescaled", "raw"] = "rescaled"
    rslora: bool = False
    target_modules: tuple[str, ...] | None = None  # None: attention and FFN, found per model family
    ffn_sites: dict[str, str] | None = None  # names of the FFN's parts relative to a layer, where it is not known
    answer_loss: Literal["choices", "vocabulary"] = "choices"
    balance_weight: float = Field(0.01, ge=0)  # alpha of Eq. 11: the 1e-2 of Eq. 13, applied once
    balance_counts: Literal["first", "top_k"] = "first"
    balance_scope: Literal["layer", "pooled"] = "layer"
    balance_probabilities: Literal["full", "kept"] = "full"
    router_temperature: float = Field(1.0, gt=0)  # what the router's logits are divided by
    router_samples: int = Field(1, ge=1)  # passes, each with experts drawn by the router; 1: the most likely ones

    @property
    def has_router(self) -> bool:
        """It has one."""
        return True

    def options(self) -> dict[str, Any]:
        """Return the hyper-parameters, ``ffn_sites`` only where it is set: the others' runs were made without it.

        >>> from uq4ct.methods import find
        >>> "ffn_sites" in find("uq4ct")().options()
        False
        """
        options = super().options()
        if self.ffn_sites is None:
            del options["ffn_sites"]
        return options

    def notes(self, model: Any) -> list[str]:
        """Say where some layers get no router, so that neither FEU nor the losses on it know anything of them."""
        from uq4ct.adapters.placement import routed_layers

        routed, layers = routed_layers(model, self.routing, self.target_modules, self.ffn_sites)
        if routed == layers:
            return []
        return [f"{self.name}: routers on {routed} of {layers} layers; FEU is the mean over those"]

    @property
    def passes(self) -> int:
        """One per sample of the routing."""
        return self.router_samples

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
        """Score encoded questions by the most likely experts, or ``router_samples`` times by drawn ones.

        FEU is the mean over passes of how sure the routers were (Eq. 9), as ``sample_routing`` records it.
        """
        if self.router_samples == 1:
            return super().predict(
                model, examples, ids=ids, pad_token_id=pad_token_id, batch_size=batch_size, progress=progress
            )
        from uq4ct.adapters.router import sample_routing

        return score_samples(
            model,
            range(self.router_samples),
            lambda sample: sample_routing(model, sample=sample),
            examples,
            ids=ids,
            pad_token_id=pad_token_id,
            batch_size=batch_size,
            progress=progress,
            feu=self._feu_reading,
        )

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
            router_temperature=self.router_temperature,
            use_rslora=self.rslora,
            target_modules=list(self.target_modules) if self.target_modules else None,
            ffn_sites=self.ffn_sites,
        )
        place(dict(model.named_modules()), self.routing, config.target_modules, config.num_experts, config.ffn_sites)
        return config


def count_parameters(folder: Path, file: str = "adapter_model.safetensors") -> int:
    """Count the numbers in the adapter of a folder, 0 where there is none; only the file's header is read."""
    from math import prod

    from safetensors import safe_open

    if not (folder / file).is_file():
        return 0
    with safe_open(folder / file, framework="np") as tensors:
        return sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118, no iterator
