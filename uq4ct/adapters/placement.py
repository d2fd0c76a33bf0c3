"""Which module of a model gets which adapter: plain LoRA, a mixture on one linear, or a mixture over the whole FFN."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from uq4ct.adapters.sites import (
    AdapterError,
    FfnSite,
    Role,
    find_ffn_sites,
    layer_index,
    layers_beside,
    layers_without,
    linear_features,
    linears,
    outside_text,
)
from uq4ct.errors import did_you_mean

Routing = Literal["ffn_block", "per_linear"]
Targets = Sequence[str] | str | None


@dataclass(frozen=True)
class Placement:
    """Say what goes to one module: ``lora``, a mixture on a ``linear``, or one over the given roles of an ``ffn``."""

    kind: Literal["lora", "linear", "ffn"]
    layer: int | None
    num_experts: int = 1
    site: FfnSite | None = None
    roles: tuple[Role, ...] = ()


def place(
    modules: Mapping[str, nn.Module],
    routing: Routing,
    targets: Targets,
    num_experts: int | Sequence[int],
    ffn_sites: Mapping[str, str] | None = None,
    sites: Sequence[FfnSite] = (),
) -> tuple[dict[str, Placement], list[str] | str]:
    """Return path -> placement, and the resolved targets as they are saved.

    ``targets`` are module names as in PEFT (a suffix of the path, or a regular expression for the whole path),
    ``"all-linear"``, or None for the attention and FFN linears of every layer. ``sites`` are those an earlier adapter
    of the same model already holds. Raises AdapterError with every problem at once.
    """
    found = linears(modules)
    if routing == "ffn_block":
        sites = list(sites) or find_ffn_sites(modules, ffn_sites)
    in_ffn = {site.path(role): (site, role) for site in sites for role, _ in site.projections}
    candidates = list(dict.fromkeys([*found, *in_ffn]))
    chosen = _chosen(candidates, targets, routing, in_ffn, modules)

    placements: dict[str, Placement] = {}
    if routing == "per_linear":
        placements = {path: Placement("linear", layer_index(path)) for path in chosen}
    else:
        placements = {path: Placement("lora", layer_index(path)) for path in chosen if path not in in_ffn}
        for site in sites:
            roles = tuple(role for role, _ in site.projections if site.path(role) in chosen)
            if roles:
                path = site.path("up") if site.in_layer else site.module
                placements[path] = Placement("ffn", layer_index(path + "."), site=site, roles=roles)
        if not any(placement.kind == "ffn" for placement in placements.values()):
            names = ", ".join(name for _, name in sites[0].projections)
            raise AdapterError(
                f"target_modules {_shown(targets)} name no projection of the FFN, which routing='ffn_block' "
                f"mixes; add some of {names}, or use routing='per_linear'"
            )
    order = {path: position for position, path in enumerate(modules)}
    placements = dict(sorted(placements.items(), key=lambda item: order.get(item[0], 0)))
    return _with_experts(placements, num_experts), _saved(targets, chosen, _every_linear(modules, candidates))


def _chosen(
    candidates: list[str], targets: Targets, routing: Routing, in_ffn: Iterable[str], modules: Mapping[str, nn.Module]
) -> set[str]:
    if targets is None:
        return {path for path in candidates if routing == "per_linear" or path in in_ffn or _in_attention(path)}
    if isinstance(targets, str):
        if targets.lower() == "all-linear":
            return set(candidates)
        chosen = {path for path in candidates if re.fullmatch(targets, path)}
        if not chosen:
            raise AdapterError(
                f"target_modules {targets!r} match no linear module. Found: {', '.join(_leaves(candidates))}"
            )
        return chosen
    chosen, problems = set(), []
    for target in targets:
        matches = {path for path in candidates if _matches(path, target)}
        inside = {path for path in candidates if any(_matches(parent, target) for parent in _parents(path))}
        if not matches and target in modules and target not in candidates:
            matches = inside
        if not (matches or inside):
            near = did_you_mean(target, _leaves(candidates))
            problems.append(
                f"target_modules: {target!r} matches no linear module.{near} Found: {', '.join(_leaves(candidates))}"
            )
        chosen |= matches or inside
    if problems:
        raise AdapterError(problems)
    return chosen


def _matches(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _leaves(paths: Iterable[str]) -> list[str]:
    return sorted({path.rpartition(".")[2] for path in paths})


def _in_attention(path: str) -> bool:
    return any("attn" in name or "attention" in name for name in path.split(".")[:-1])


def _every_linear(modules: Mapping[str, nn.Module], candidates: list[str]) -> list[str]:
    """Return the candidates and every other linear of the model: a saved name must not mean one of those, too."""
    return list(dict.fromkeys([*candidates, *(path for path, module in modules.items() if linear_features(module))]))


def _saved(targets: Targets, chosen: set[str], candidates: list[str]) -> list[str] | str:
    """Return the targets to store: the user's own, or the shortest unambiguous names of what the default chose."""
    if targets is not None:
        return targets if isinstance(targets, str) else sorted(targets)
    return sorted({_shortest(path, chosen, candidates) for path in chosen})


def _shortest(path: str, chosen: set[str], candidates: list[str]) -> str:
    """Return the linear's own name, its name within the layer, or its path: the first that means chosen ones alone.

    A vision tower has layers with a ``self_attn.q_proj`` too, and a name is all that PEFT's LoRA goes by.
    """
    names = (path.rpartition(".")[2], re.sub(r"^(?:.*?\.)?\d+\.", "", path))
    alone = (name for name in names if all(other in chosen for other in candidates if _matches(other, name)))
    return next(alone, path)


def _with_experts(placements: dict[str, Placement], num_experts: int | Sequence[int]) -> dict[str, Placement]:
    if isinstance(num_experts, int):
        counts = {placement.layer: num_experts for placement in placements.values()}
    else:
        layers = list(dict.fromkeys(p.layer for p in placements.values() if p.kind != "lora"))
        if len(layers) != len(num_experts):
            raise AdapterError(
                f"num_experts has {len(num_experts)} entries, but {len(layers)} layers get a mixture; "
                "give one per layer"
            )
        counts = dict(zip(layers, num_experts, strict=True))
    return {
        path: Placement(p.kind, p.layer, 1 if p.kind == "lora" else counts[p.layer], p.site, p.roles)
        for path, p in placements.items()
    }


def _shown(targets: Targets) -> str:
    return repr(targets) if isinstance(targets, str) else ", ".join(targets or ())


def linear_targets(model: nn.Module) -> list[str]:
    """Return the attention and FFN linears that the mixture adapts by default, so that a plain LoRA can take the same.

    Raises AdapterError naming the candidates for an architecture that is not known.
    """
    _, targets = place(dict(model.named_modules()), "ffn_block", None, 1)
    return [targets] if isinstance(targets, str) else targets


def lora_targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return names for PEFT that mean the given target modules in the text model and nothing outside it.

    A name that a vision tower has too stands for its paths in the text model. Raises AdapterError for one that is found
    outside alone.
    """
    names: list[str] = []
    for target in targets:
        meant = [path for path, _ in model.named_modules() if _matches(path, target)]
        text = [path for path in meant if not outside_text(path)]
        if meant and not text:
            raise AdapterError(
                f"target_modules: {target!r} lies outside the text model, e.g. {meant[0]}, and no text passes there; "
                f"expected names such as {', '.join(linear_targets(model))}"
            )
        names += [target] if text == meant else text
    return names


def lora_linears(model: nn.Module, targets: Sequence[str] | None = None) -> dict[str, tuple[int, int]]:
    """Return path -> (in, out) of the linears that a plain LoRA adapts: the targets, or those of ``linear_targets``.

    They are those of the text model: whatever else a multimodal model has sees no text.
    """
    names = targets or linear_targets(model)
    shapes = {
        path: linear_features(module)
        for path, module in model.named_modules()
        if not outside_text(path) and any(_matches(path, name) for name in names)
    }
    return {path: shape for path, shape in shapes.items() if shape is not None}


def lora_parameters(model: nn.Module, targets: Sequence[str] | None = None, per_input: int = 1) -> int:
    """Count the parameters of a plain LoRA of rank 1 on the target linears: in + out of each, r times that for rank r.

    ``per_input`` is the number of parameters per entry of A, 2 where it has a mean and a standard deviation.

    >>> lora_parameters(nn.ModuleDict({"q_proj": nn.Linear(3, 5), "k_proj": nn.Linear(3, 3)}), ["q_proj"])
    8
    """
    return sum(per_input * inputs + outputs for inputs, outputs in lora_linears(model, targets).values())


def mixture_parameters(model: nn.Module, routing: Routing, num_experts: int, rank: int) -> int:
    """Count the parameters of a mixture on its default targets: rank (in + out) per expert and linear, and the routers.

    A plain LoRA counts as one expert without a router; a router has one row of its input's width per expert. Raises
    AdapterError for an architecture that is not known.
    """
    modules = dict(model.named_modules())
    placements, _ = place(modules, routing, None, num_experts)
    total = 0
    for path, placement in placements.items():
        paths = [path] if placement.site is None else [placement.site.path(role) for role in placement.roles]
        shapes = [linear_features(modules[each]) or (0, 0) for each in paths]
        total += placement.num_experts * rank * sum(map(sum, shapes))
        total += 0 if placement.kind == "lora" else placement.num_experts * shapes[0][0]
    return total


def routed_layers(
    model: nn.Module, routing: Routing, targets: Targets, ffn_sites: Mapping[str, str] | None = None
) -> tuple[int, int]:
    """Count the layers that get a router, and those there are: FEU is a mean over the former."""
    modules = dict(model.named_modules())
    placements, _ = place(modules, routing, targets, 1, ffn_sites)
    routed = [path for path, placement in placements.items() if placement.kind != "lora"]
    layers = len(layers_beside(modules, routed))
    return layers - len(layers_without(modules, routed)), layers
