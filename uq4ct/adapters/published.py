"""Read and write adapters in the published format of MixLoRA (the ``mixlora`` package and its trainer MoE-PEFT).

Such a folder holds ``adapter_config.json`` and ``adapter_model.bin``, a pickle with one tensor per expert. The pickle
is read on request only, and then as tensors alone. Folders written before version 0.2, with their own names, are read
too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from uq4ct.adapters.layers import FfnMixture, LoraLinear
from uq4ct.adapters.mixlora import MixLoraConfig
from uq4ct.adapters.sites import AdapterError

_LEGACY_PROJECTIONS = {"w1_proj": "gate_proj", "w2_proj": "down_proj", "w3_proj": "up_proj"}
_LEGACY_ROUTER = re.compile(r"^(mixlora\.layers\.\d+)\.gate\.weight$")
_LEGACY_EXPERT = re.compile(r"^(mixlora\.layers\.\d+)\.experts\.(\d+)\.(\w+)\.(lora_[AB]\.weight)$")
_IN_LAYER = re.compile(r"^.*?(?P<layer>\d+)\.(?P<part>(?:self_attn|mlp)(?:\.\w+)?)$")


def load_published(
    model: nn.Module, folder: str | Path, adapter_name: str = "default", *, allow_pickle: bool = False
) -> PeftModel:
    """Put the adapter of a published folder on a base model.

    Raises AdapterError that lists every setting the format has and this method has not, and every tensor that is
    missing or does not fit.
    """
    settings, tensors = read_published(folder, allow_pickle=allow_pickle)
    config = config_from_published(settings, model)
    adapted = get_peft_model(model, config, adapter_name)
    ours = dict(_tensors(adapted, adapter_name))
    problems = [f"{folder}: tensor {key} is missing" for key in ours.keys() - tensors.keys()]
    problems += [f"{folder}: the model has no place for tensor {key}" for key in tensors.keys() - ours.keys()]
    problems += [
        f"{folder}: {key}: expected shape {tuple(ours[key].shape)}, got {tuple(tensors[key].shape)}"
        for key in ours.keys() & tensors.keys()
        if ours[key].shape != tensors[key].shape
    ]
    if problems:
        adapted.unload()
        shown = sorted(problems)[:10]
        raise AdapterError([*shown, f"... and {len(problems) - 10} more"] if len(problems) > 10 else shown)
    for key, place in ours.items():
        place.copy_(tensors[key])
    return adapted


def write_published(
    model: PeftModel, folder: str | Path, adapter_name: str = "default", *, lora_dropout: float | None = None
) -> None:
    """Write an adapter so that the ``mixlora`` package reads it.

    The package refuses a dropout of 0 and never switches dropout off, not even in evaluation: ``lora_dropout=1e-30``
    gives exact outputs there. Raises AdapterError where the format cannot say what the adapter does.
    """
    config: Any = model.peft_config[adapter_name]
    problems = [
        f"the published format knows {name} {known!r} only, got {getattr(config, name)!r}"
        for name, known in (("routing", "ffn_block"), ("mixing", "rescaled"), ("router_temperature", 1.0))
        if getattr(config, name) != known
    ]
    counts = config.num_experts if isinstance(config.num_experts, list) else [config.num_experts]
    if len(set(counts)) > 1:
        problems.append(f"the published format knows one number of experts for all layers, got {counts}")
    if config.lora_alpha != int(config.lora_alpha):
        problems.append(f"the published format knows whole lora_alpha only, got {config.lora_alpha}")
    if problems:
        raise AdapterError(problems)
    tensors = {key: value.detach().to("cpu", torch.float32).clone() for key, value in _tensors(model, adapter_name)}
    settings = {
        "bias": "none",
        "peft_type": "MIXLORA",
        "task_type": getattr(config.task_type, "value", config.task_type) or "CAUSAL_LM",
        "base_model_name_or_path": config.base_model_name_or_path or "",
        "r": config.r,
        "lora_alpha": int(config.lora_alpha),
        "lora_dropout": config.lora_dropout if lora_dropout is None else lora_dropout,
        "target_modules": sorted(_targets(tensors)),
        "routing_strategy": "mixlora",
        "num_experts": counts[0],
        "top_k": config.top_k,
        "act_fn": _activation(model),  # optional by the format, but the package fails without
        **({"use_rslora": True} if config.use_rslora else {}),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def read_published(folder: str | Path, *, allow_pickle: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings and tensors of a published folder under today's names."""
    folder = Path(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    if not allow_pickle:
        raise AdapterError(
            f"{folder / 'adapter_model.bin'} is a pickle; pass allow_pickle=True to read it. Only tensors are "
            "unpickled (weights_only), but do so for files you trust"
        )
    tensors = torch.load(folder / "adapter_model.bin", map_location="cpu", weights_only=True)
    settings["target_modules"] = [_LEGACY_PROJECTIONS.get(name, name) for name in _names(settings)]
    if settings.get("routing_strategy") == "mixtral":
        settings["routing_strategy"] = "mixlora"
    return settings, {_modern(key): value for key, value in tensors.items()}


def config_from_published(settings: Mapping[str, Any], model: nn.Module) -> MixLoraConfig:
    """Translate published settings; raise AdapterError with everything that has no counterpart."""
    problems = []
    expected = {
        "peft_type": ("MIXLORA",),
        "routing_strategy": ("mixlora",),
        "bias": ("none", None),
        "use_dora": (False, None),
    }
    for name, known in expected.items():
        if settings.get(name) not in known:
            problems.append(f"{name}: {settings.get(name)!r} is not supported, only {known[0]!r}")
    for name, value in (settings.get("expert_lora") or {}).items():
        if name in ("r", "lora_alpha", "use_rslora", "use_dora") and value != settings.get(name, False):
            problems.append(f"expert_lora: {name} {value!r} differs from the attention's {settings.get(name, False)!r}")
    activation = _activation(model)
    if settings.get("act_fn") not in (None, activation):
        problems.append(f"act_fn: {settings['act_fn']!r} differs from the base model's {activation!r}")
    problems += [
        f"{name}: missing" for name in ("r", "lora_alpha", "lora_dropout", "num_experts") if name not in settings
    ]
    if problems:
        raise AdapterError([f"adapter_config.json: {problem}" for problem in problems])
    present = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    return MixLoraConfig(
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["lora_dropout"],
        num_experts=settings["num_experts"],
        top_k=settings.get("top_k", 2),
        use_rslora=settings.get("use_rslora", False),
        target_modules=[name for name in _names(settings) if name in present],
        task_type=settings.get("task_type"),
    )


def _tensors(model: nn.Module, adapter: str) -> Iterator[tuple[str, Tensor]]:
    """Yield published key -> view into our stacked parameters, so that one walk serves reading and writing."""
    for path, module in model.named_modules():
        if not (isinstance(module, (FfnMixture, LoraLinear)) and adapter in module.settings):
            continue
        match = _IN_LAYER.match(path)
        if match is None:
            raise AdapterError(
                f"{path}: the published format names modules of layers.N.self_attn and layers.N.mlp only; this "
                "architecture has other names, keep the adapter in PEFT's format"
            )
        key = f"mixlora.layers.{match['layer']}.{match['part']}"
        if isinstance(module, LoraLinear):
            yield f"{key}.lora_A.weight", module.uqmoe_A[adapter].data
            yield f"{key}.lora_B.weight", module.uqmoe_B[adapter].data
            continue
        yield f"{key}.moe_gate.weight", module.uqmoe_router[adapter].data
        rank, names = module.settings[adapter].rank, dict(module.site.projections)
        for role, experts in module.experts(adapter).items():
            for e in range(module.settings[adapter].num_experts):
                mine = slice(e * rank, (e + 1) * rank)
                yield f"{key}.{names[role]}.experts.{e}.lora_A.weight", experts.A.data[mine]
                yield f"{key}.{names[role]}.experts.{e}.lora_B.weight", experts.B.data[:, mine]


def _targets(keys: Mapping[str, Tensor]) -> set[str]:
    return {key.split(".")[4] for key in keys if not key.endswith("moe_gate.weight")}


def _activation(model: nn.Module) -> str | None:
    config = getattr(model, "config", None)
    return getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)


def _names(settings: Mapping[str, Any]) -> list[str]:
    targets = settings.get("target_modules") or []
    return [name for name, wanted in targets.items() if wanted] if isinstance(targets, dict) else list(targets)


def _modern(key: str) -> str:
    """Translate a name of before version 0.2.

    >>> _modern("mixlora.layers.3.experts.1.w2_proj.lora_A.weight"), _modern("mixlora.layers.3.gate.weight")
    ('mixlora.layers.3.mlp.down_proj.experts.1.lora_A.weight', 'mixlora.layers.3.mlp.moe_gate.weight')
    """
    if match := _LEGACY_ROUTER.match(key):
        return f"{match[1]}.mlp.moe_gate.weight"
    if match := _LEGACY_EXPERT.match(key):
        layer, expert, name, factor = match.groups()
        return f"{layer}.mlp.{_LEGACY_PROJECTIONS.get(name, name)}.experts.{expert}.{factor}"
    return key
