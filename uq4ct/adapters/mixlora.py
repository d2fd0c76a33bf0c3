"""The adapter as a PEFT method: its configuration, its tuner and its registration (section 4.1, defaults of A.4).

With it ``get_peft_model``, ``save_pretrained``, ``PeftModel.from_pretrained``, ``disable_adapter`` and the Trainer work
as for any other PEFT method. PEFT's registration function takes members of its own enum only, so the three plain
mappings are written directly, under a key of our own.
"""

from __future__ import annotations

import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from uq4ct.adapters.layers import (
    CANNOT_MERGE,
    AdapterLayer,
    FfnMixture,
    InLayerFfn,
    LayerSettings,
    LoraLinear,
    MixtureLinear,
)
from uq4ct.adapters.placement import Placement, place
from uq4ct.adapters.same_function import changed, on_tokens
from uq4ct.adapters.sites import AdapterError, ffn_sites_problems, flattens_tokens, linear_features, probe
from uq4ct.errors import Note


class MixtureType(str, Enum):  # noqa: UP042 (PEFT formats members as it does its own)
    """Name the method in ``adapter_config.json``; PEFT and transformers read ``.value``."""

    MIXLORA = "UQ4CT_MIXLORA"


@dataclass
class MixLoraConfig(PeftConfig):
    """Configure a mixture of LoRA experts; raise ValueError with every problem at once.

    >>> MixLoraConfig(num_experts=4, top_k=5, mixing="scaled")
    Traceback (most recent call last):
        ...
    uq4ct.adapters.sites.AdapterError: mixing: expected 'rescaled' or 'raw', got 'scaled'
    top_k: 5 is larger than the 4 experts to choose from; use 1 to 4
    """

    r: int = field(default=16, metadata={"help": "rank of every expert, and of the plain LoRA on attention"})
    lora_alpha: float = field(default=32, metadata={"help": "scaling is lora_alpha / r"})
    lora_dropout: float = field(
        default=0.05, metadata={"help": "dropout on the adapters' input, shared by all experts"}
    )
    num_experts: int | list[int] = field(
        default=8, metadata={"help": "experts per router: one number, or one per layer"}
    )
    top_k: int = field(default=2, metadata={"help": "experts kept per token"})
    routing: str = field(
        default="ffn_block", metadata={"help": "'ffn_block': one router per FFN; 'per_linear': one per linear"}
    )
    mixing: str = field(
        default="rescaled", metadata={"help": "'rescaled': weights sum to 1; 'raw': kept probabilities"}
    )
    use_rslora: bool = field(default=False, metadata={"help": "scaling is lora_alpha / sqrt(r)"})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "names, a regular expression, 'all-linear', or None: attention and FFN"}
    )
    router_init_range: float = field(default=0.02, metadata={"help": "standard deviation of the router at the start"})
    router_temperature: float = field(
        default=1.0, metadata={"help": "what the router's logits are divided by: below 1 it is surer"}
    )
    ffn_sites: dict[str, str] | None = field(
        default=None,
        metadata={"help": "names of the FFN's parts relative to a layer, for an architecture not known here"},
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules trained in full and saved with the adapter, such as a new head"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MixtureType.MIXLORA
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)
        # AutoPeftModel imports the module named here; a file from elsewhere gets no say in it.
        if not _names_transformers(self.auto_mapping):
            self.auto_mapping = None
        problems = _problems(self)
        if problems:
            raise AdapterError(problems)
        for message in _warnings(self):
            warnings.warn(message, Note, stacklevel=3)

    @property
    def scaling(self) -> float:
        """The factor s of the low-rank deltas."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def for_layer(self, num_experts: int) -> LayerSettings:
        """Return the settings of one layer."""
        top_k = min(self.top_k, num_experts)  # plain LoRA has one expert
        mixing: Any = self.mixing
        return LayerSettings(
            self.r,
            self.scaling,
            self.lora_dropout,
            num_experts,
            top_k,
            mixing,
            self.router_init_range,
            self.router_temperature,
        )


def _problems(config: MixLoraConfig) -> list[str]:
    problems = []

    def expect(fits: bool, name: str, expected: str) -> None:
        if not fits:
            problems.append(f"{name}: expected {expected}, got {getattr(config, name)!r}")

    expect(_whole(config.r), "r", "a whole number of at least 1")
    expect(_number(config.lora_alpha) and config.lora_alpha > 0, "lora_alpha", "a positive number")
    expect(_number(config.lora_dropout) and 0 <= config.lora_dropout < 1, "lora_dropout", "a number in [0, 1)")
    expect(_number(config.router_init_range) and config.router_init_range >= 0, "router_init_range", "a number >= 0")
    warm = _number(config.router_temperature) and config.router_temperature > 0
    expect(warm, "router_temperature", "a positive number")
    expect(config.routing in ("ffn_block", "per_linear"), "routing", "'ffn_block' or 'per_linear'")
    expect(config.mixing in ("rescaled", "raw"), "mixing", "'rescaled' or 'raw'")
    expect(isinstance(config.use_rslora, bool), "use_rslora", "true or false")
    expect(_whole(config.top_k), "top_k", "a whole number of at least 1")
    counts = config.num_experts if isinstance(config.num_experts, list) else [config.num_experts]
    fits = bool(counts) and all(_whole(count) for count in counts)
    expect(fits, "num_experts", "a whole number of at least 1, or a list of them")
    if fits and _whole(config.top_k) and config.top_k > min(counts):
        where = f" in layer {counts.index(min(counts))}" if isinstance(config.num_experts, list) else ""
        problems.append(
            f"top_k: {config.top_k} is larger than the {min(counts)} experts to choose from{where}; "
            f"use 1 to {min(counts)}"
        )
    targets = config.target_modules
    names = targets if isinstance(targets, list) else [targets]
    fits = targets is None or (bool(names) and all(isinstance(name, str) and name for name in names))
    expect(fits, "target_modules", "module names, a regular expression or null")
    if config.ffn_sites is not None:
        expect(isinstance(config.ffn_sites, dict), "ffn_sites", "a mapping of roles to names")
        problems += ffn_sites_problems(config.ffn_sites) if isinstance(config.ffn_sites, dict) else []
    return problems


def _warnings(config: MixLoraConfig) -> list[str]:
    counts = config.num_experts if isinstance(config.num_experts, list) else [config.num_experts]
    messages = []
    if config.top_k in counts:
        messages.append(
            f"top_k = {config.top_k} keeps every expert{'' if len(set(counts)) == 1 else ' of some layers'}: the kept "
            "probabilities sum to 1 for every token, so FEU is identically 1 there and L_cal trains nothing"
        )
    if config.top_k == 1 and config.mixing == "rescaled" and max(counts) > 1:
        messages.append(
            "top_k = 1 with rescaled weights: the weight of the one kept expert is always 1, so the router gets no "
            "gradient from cross entropy and learns from L_cal and L_b alone; mixing='raw' lets it learn from the "
            "answers too"
        )
    return messages


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _names_transformers(auto_mapping: Any) -> bool:
    library = auto_mapping.get("parent_library") if isinstance(auto_mapping, dict) else None
    return isinstance(library, str) and library.split(".")[0] == "transformers"


class MixLoraModel(BaseTuner):
    """Inject the mixture into a model and remove it again."""

    prefix = "uqmoe_"
    tuner_layer_cls = AdapterLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (declared so by PEFT)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        return peft_config  # targets are found in the model itself, in _prepare_model

    def _check_new_adapter_config(self, config: Any) -> None:
        super()._check_new_adapter_config(config)
        routings = {getattr(c, "routing", "none") for c in self.peft_config.values()}
        if len(routings) > 1:
            raise AdapterError(
                f"all adapters of one model must have the same routing, got {' and '.join(sorted(routings))}"
            )

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        modules = _base_modules(model)
        held = [m.base_layer.site if isinstance(m.base_layer, InLayerFfn) else m.site for m in _ffn_mixtures(model)]
        routing: Any = peft_config.routing
        self._placements, peft_config.target_modules = place(
            modules, routing, peft_config.target_modules, peft_config.num_experts, peft_config.ffn_sites, held
        )
        sites = [placement.site for placement in self._placements.values() if placement.site is not None]
        if not held:
            for site in sites if peft_config.ffn_sites else sites[:1]:
                probe(modules[site.module], site)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Inject; take it back and raise AdapterError where FFNs that the user named were something else.

        With deltas of zero the whole model has to compute what it did, and only that tells for a layer which does more
        between two linears of its own: ``probe`` cannot look into it.
        """
        config: Any = self.peft_config[adapter_name]
        named = config.routing == "ffn_block" and config.ffn_sites and not _ffn_mixtures(model)
        before = on_tokens(model) if named else ""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        in_layer = any(isinstance(mixture.base_layer, InLayerFfn) for mixture in _ffn_mixtures(model))
        if named and (problem := changed(model, before, needed=in_layer)):
            self.unload()
            raise AdapterError(
                "ffn_sites: with an adapter that is still zero a few tokens have to give what the base model gives, "
                f"and that does not hold here: {problem}. The layers may do more than an FFN of these parts; use "
                "routing='per_linear', which adapts its linears one by one"
            )

    def _check_target_module_exists(self, peft_config: Any, key: str) -> bool:  # type: ignore[override]
        return key in self._placements

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        placement: Placement = self._placements[current_key]
        layer = target if isinstance(target, AdapterLayer) else _wrap(target, parent, placement, self.model)
        settings = peft_config.for_layer(placement.num_experts)
        if isinstance(layer, FfnMixture):
            layer.add_adapter(adapter_name, settings, placement.roles)
        else:
            layer.add_adapter(adapter_name, settings)  # type: ignore[operator]
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            if getattr(parent, target_name) is not layer:
                self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(new_module, InLayerFfn):
            new_module.give_back(child)  # type: ignore[arg-type]
        elif not isinstance(new_module, AdapterLayer):
            if isinstance(child, MixtureLinear):
                child.forget_tokens()
            setattr(parent, child_name, new_module)  # unloading: the base module comes back as it was
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        """Refuse one adapter per row, which PEFT would otherwise drop without a word."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "adapter_names: a mixture cannot use another adapter per row; call the model once per adapter"
            )
        return nullcontext()

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(CANNOT_MERGE)

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: the weights depend on the input."""
        raise NotImplementedError(CANNOT_MERGE)


def _wrap(target: nn.Module, parent: nn.Module, placement: Placement, model: nn.Module) -> AdapterLayer:
    if (site := placement.site) is not None:
        return InLayerFfn.take(model.get_submodule(site.module), site) if site.in_layer else FfnMixture(target, site)
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if linear_features(base) is None:
        raise AdapterError(f"{type(base).__name__} is not a linear module, so it cannot get low-rank experts")
    if placement.kind == "lora":
        return LoraLinear(target)
    mixture = MixtureLinear(target)
    if flattens_tokens(parent):
        mixture.remember_tokens_of(parent)
    return mixture


def _base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return path -> module as if no adapter were there, so that a second adapter finds what the first one found."""
    return {
        path.replace(".base_layer", ""): module
        for path, module in model.named_modules()
        if not isinstance(module, BaseTunerLayer)
    }


def _ffn_mixtures(model: nn.Module) -> list[FfnMixture]:
    return [module for module in model.modules() if isinstance(module, FfnMixture)]


def register() -> None:
    """Make PEFT know the method; importing ``uq4ct.adapters`` does it."""
    PEFT_TYPE_TO_CONFIG_MAPPING[MixtureType.MIXLORA] = MixLoraConfig  # type: ignore[index]
    PEFT_TYPE_TO_TUNER_MAPPING[MixtureType.MIXLORA] = MixLoraModel  # type: ignore[index]
    PEFT_TYPE_TO_PREFIX_MAPPING[MixtureType.MIXLORA] = MixLoraModel.prefix  # type: ignore[index]
