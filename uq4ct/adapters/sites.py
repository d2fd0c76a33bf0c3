"""Where adapters attach: the feed-forward network of every layer, and the other linears of a model, found by structure.

An FFN site names its projections and its activation, not one class: Llama's FFN is a module with three linears, Phi-3
fuses two of them, GPT-2 has Conv1D, OPT's two linears lie in the decoder layer itself, and BERT's in two of its parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from uq4ct.adapters.mixture import FeedForward, FfnKind, Projection
from uq4ct.errors import UserError, did_you_mean

Role = Literal["gate", "up", "gate_up", "down"]


class AdapterError(UserError, ValueError):
    """Report everything that is wrong with an adapter's configuration for a model."""


@dataclass(frozen=True)
class FfnSite:
    """Name the parts of one feed-forward network; ``projections`` maps roles to names relative to ``module``.

    ``module`` is the path of the module whose forward is the FFN. Where the FFN lies in the layer itself or is spread
    over parts of it (``in_layer``), it is the path of the layer.
    """

    module: str
    kind: FfnKind
    projections: tuple[tuple[Role, str], ...]
    activation: str
    dropout: str | None = None
    in_layer: bool = False

    @property
    def inputs(self) -> tuple[tuple[Role, str], ...]:
        """The projections that read the FFN's input."""
        return tuple((role, name) for role, name in self.projections if role != "down")

    @property
    def down(self) -> str:
        """The name of the projection back to the model's width."""
        return dict(self.projections)["down"]

    def path(self, role: Role) -> str:
        """Return the full path of a projection."""
        return f"{self.module}.{dict(self.projections)[role]}"


# Child names that mark an FFN: kind, projections by role, activation, dropout after the down projection. Read in the
# modelling files of Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma 2, Gemma 3, Phi-3, Phi, GPT-2, GPT-NeoX, OPT, DistilBERT
# and ModernBERT; other models that use the same names are accepted after `probe` has shown that their FFN computes the
# same function.
_STRUCTURES: tuple[tuple[FfnKind, tuple[tuple[Role, str], ...], str, str | None], ...] = (
    ("gated", (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")), "act_fn", None),
    ("fused", (("gate_up", "gate_up_proj"), ("down", "down_proj")), "activation_fn", None),
    ("plain", (("up", "fc1"), ("down", "fc2")), "activation_fn", None),
    ("plain", (("up", "c_fc"), ("down", "c_proj")), "act", "dropout"),
    ("plain", (("up", "dense_h_to_4h"), ("down", "dense_4h_to_h")), "act", None),
    ("plain", (("up", "lin1"), ("down", "lin2")), "activation", "dropout"),
    ("fused", (("gate_up", "Wi"), ("down", "Wo")), "act", None),
)
# BERT and its kin: the first half of the FFN is one part of the layer, the second another, which goes on with dropout,
# residual and norm. Known by class, because `probe` cannot look into a layer.
_TWO_PARTS: tuple[tuple[Role, str], ...] = (("up", "intermediate.dense"), ("down", "output.dense"))
_LAYERS_OF_TWO_PARTS = frozenset(
    f"{family}Layer"
    for family in ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "Deberta", "DebertaV2", "MPNet")
)
# DeBERTa's attention calls these on its table of relative positions as well as, or instead of, the tokens: a router
# there would route positions, and no token would have a decision of its own.
_READ_POSITIONS = {
    "deberta": ("pos_proj", "pos_q_proj", "head_logits_proj", "head_weights_proj"),
    "deberta_v2": ("query_proj", "key_proj", "pos_query_proj", "pos_key_proj"),
}
_NOT_TEXT = re.compile(r"(^|[._])(vision|visual|image|audio|speech)([._]|$)")
_LAYER = re.compile(r"^(?P<layer>(?:.*?\.)?(?P<index>\d+))\.(?P<rest>.+)$")
_OUTERMOST = re.compile(r"^((?:.*?\.)?\d+)(?:\.|$)")


def linear_features(module: Any) -> tuple[int, int] | None:
    """Return (in, out) of a linear, quantised or not, or None for any other module.

    >>> linear_features(nn.Linear(3, 5)), linear_features(nn.GELU())
    ((3, 5), None)
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # GPT-2's linear with a transposed weight
        return module.nx, module.nf
    if "Linear" in type(module).__name__:  # GPTQ, AWQ, HQQ, EETQ, ...: their own classes
        for names in (("in_features", "out_features"), ("infeatures", "outfeatures")):
            if all(isinstance(getattr(module, name, None), int) for name in names):
                return getattr(module, names[0]), getattr(module, names[1])
    return None


def flattens_tokens(layer: nn.Module) -> bool:
    """Tell whether a decoder layer, as OPT's, holds its FFN's linears itself and calls them on flattened tokens."""
    return type(layer).__name__ == "OPTDecoderLayer"


def reads_positions(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether a linear of DeBERTa's attention reads relative positions, which are no tokens."""
    parent, _, name = path.rpartition(".")
    attention = type(modules.get(parent))
    family = attention.__module__.rpartition(".modeling_")[2]
    return attention.__name__ == "DisentangledSelfAttention" and name in _READ_POSITIONS.get(family, ())


def layer_index(path: str) -> int | None:
    """Return the number of the layer a path lies in, or None outside the layers.

    >>> layer_index("model.layers.11.mlp.down_proj"), layer_index("lm_head")
    (11, None)
    """
    match = _LAYER.match(path)
    return int(match["index"]) if match else None


def outside_text(path: str) -> bool:
    """Tell whether a path leads into another part of a multimodal model than its text model, such as a vision tower.

    >>> outside_text("model.vision_tower.encoder.layers.0.mlp.fc1"), outside_text("model.language_model.layers.0.mlp")
    (True, False)
    """
    return _NOT_TEXT.search(path) is not None


def linears(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """Return path -> (in, out) of every linear inside a numbered layer of the text model, in the model's order.

    Those that read something other than tokens are left out (``reads_positions``).
    """
    features = {
        path: linear_features(module)
        for path, module in modules.items()
        if layer_index(path) is not None and not outside_text(path) and not reads_positions(path, modules)
    }
    return {path: shape for path, shape in features.items() if shape is not None}


def find_ffn_sites(modules: Mapping[str, nn.Module], named: Mapping[str, str] | None = None) -> list[FfnSite]:
    """Find the feed-forward network of every layer, by structure or as ``named`` in the configuration.

    ``named`` gives names relative to a layer, for example ``{"gate": "mlp.w1", "up": "mlp.w3", "down": "mlp.w2",
    "activation": "mlp.act"}``; the activation may also be a name such as ``"silu"``; layers without these parts have no
    site then. Raises AdapterError that lists the linears found when there is none, and the layers without one where
    sites are found by structure: FEU and the losses would silently be those of the other layers.
    """
    if named:
        return _named_sites(modules, named)
    sites = []
    for path, module in modules.items():
        match = _LAYER.match(path)
        is_layer = bool(re.search(r"(^|\.)\d+$", path))
        if outside_text(path) or not (is_layer or (match and "." not in match["rest"])):
            continue  # one level below a layer only: the shared expert of a real mixture model is not the layer's FFN
        if is_layer and type(module).__name__ in _LAYERS_OF_TWO_PARTS:
            activation = "intermediate.intermediate_act_fn"
            sites.append(FfnSite(path, "plain", _TWO_PARTS, activation, in_layer=True))
            continue
        for kind, projections, activation, dropout in _STRUCTURES:
            children = {name: getattr(module, name, None) for _, name in projections}
            if not all(isinstance(child, nn.Module) and linear_features(child) for child in children.values()):
                continue
            if not callable(getattr(module, activation, None)):
                continue
            if is_layer and not flattens_tokens(module):
                continue  # other layers may do more between the two linears, and `probe` cannot look into a layer
            if dropout is not None and not isinstance(getattr(module, dropout, None), nn.Module):
                dropout = None
            sites.append(FfnSite(path, kind, projections, activation, dropout, in_layer=is_layer))
    if not sites:
        raise AdapterError(_unknown_architecture(modules))
    if without := layers_without(modules, [site.module for site in sites]):
        raise AdapterError(_unknown_layers(modules, sites[0], without))
    if chunked := next((site for site in sites if getattr(modules[site.module], "chunk_size_feed_forward", 0)), None):
        raise AdapterError(
            f"{chunked.module}: chunk_size_feed_forward cuts the tokens of the FFN into parts, and a router must see "
            "all of them at once; set it to 0 in the model's config.json"
        )
    return sites


def _unknown_architecture(modules: Mapping[str, nn.Module]) -> str:
    return (
        "routing='ffn_block' needs the feed-forward network of every layer, and no known structure was found. Linear "
        f"modules: {_listing(modules)}. Name the FFN's parts relative to a layer, e.g. ffn_sites={{'gate': 'mlp.w1', "
        "'up': 'mlp.w3', 'down': 'mlp.w2', 'activation': 'silu'} (without 'gate' for a two-layer FFN, 'gate_up' for a "
        "fused one), or use routing='per_linear', which works on any linear."
    )


def _unknown_layers(modules: Mapping[str, nn.Module], site: FfnSite, without: list[str]) -> str:
    total = len(layers_beside(modules, [site.module]))
    shown = without if len(without) < 6 else [*without[:3], "...", without[-1]]
    layer = _layer_of(site.module)
    prefix = f"{site.module}.".removeprefix(f"{layer}.")
    named = {role: prefix + name for role, name in (*site.projections, ("activation", site.activation))}
    return (
        f"routing='ffn_block' needs the feed-forward network of every layer, and {len(without)} of {total} layers have "
        f"none of a known structure: {', '.join(shown)}. Name the FFN's parts relative to a layer; ffn_sites={named}, "
        f"as in {layer}, puts routers on the layers that have these parts alone, and FEU is the mean over those. Or "
        "use routing='per_linear', which works on any linear; a plain LoRA needs target_modules and a rank."
    )


def layers_beside(modules: Mapping[str, nn.Module], paths: Iterable[str]) -> list[str]:
    """Return the layers that the given paths lie in and all others of the same stacks, in the model's order.

    >>> layers_beside(dict.fromkeys(["h.0", "h.1", "h.1.mlp.experts.0", "vision.0"], nn.Identity()), ["h.0.mlp"])
    ['h.0', 'h.1']
    """
    stacks = {_layer_of(path).rpartition(".")[0] for path in paths}
    return [path for path in modules if path == _layer_of(path) and path.rpartition(".")[0] in stacks]


def layers_without(modules: Mapping[str, nn.Module], paths: Iterable[str]) -> list[str]:
    """Return the layers of the same stacks that none of the paths lies in."""
    paths = list(paths)
    covered = {_layer_of(path) for path in paths}
    return [layer for layer in layers_beside(modules, paths) if layer not in covered]


def _layer_of(path: str) -> str:
    """Return the path of the outermost numbered layer that a path leads to or into, or an empty string."""
    match = _OUTERMOST.match(path)
    return match[1] if match else ""


def _listing(modules: Mapping[str, nn.Module]) -> str:
    patterns = {re.sub(r"(^|(?<=\.))\d+(?=\.)", "*", path) for path in linears(modules)}
    return ", ".join(sorted(patterns)) or "none inside numbered layers"


def ffn_sites_problems(named: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with an explicit ``ffn_sites``, as sentences.

    >>> ffn_sites_problems({"up": "mlp.w1", "down": "mlp.w2", "activation": "gelu"})
    []
    """
    roles = set(named)
    if not all(isinstance(value, str) and value for value in named.values()):
        return [f"ffn_sites: every value must be a module name relative to a layer, got {dict(named)}"]
    if roles not in (
        {"gate", "up", "down", "activation"},
        {"gate_up", "down", "activation"},
        {"up", "down", "activation"},
    ):
        return [
            "ffn_sites: expected the keys gate, up, down, activation (gated), gate_up, down, activation (fused) or "
            f"up, down, activation (two layers), got {', '.join(sorted(roles)) or 'none'}"
        ]
    return []


def _named_sites(modules: Mapping[str, nn.Module], named: Mapping[str, str]) -> list[FfnSite]:
    known: tuple[Role, ...] = ("gate", "up", "gate_up", "down")
    roles = [role for role in known if role in named]
    kind: FfnKind = "gated" if "gate" in named else "fused" if "gate_up" in named else "plain"
    parent = _common_parent([named[role] for role in roles])
    sites = []
    for path in modules:
        if outside_text(path) or not re.search(r"(^|\.)\d+$", path):
            continue
        if not all(f"{path}.{named[role]}" in modules for role in roles):
            continue
        module = f"{path}.{parent}" if parent else path
        names: tuple[tuple[Role, str], ...] = tuple((role, named[role].removeprefix(f"{parent}.")) for role in roles)
        activation = named["activation"].removeprefix(f"{parent}.")
        sites.append(FfnSite(module, kind, names, activation, in_layer=not parent))
    if not sites:
        raise AdapterError(
            f"ffn_sites: no layer holds all of {', '.join(named[r] for r in roles)}. "
            f"Linear modules: {_listing(modules)}"
        )
    if sites[0].in_layer and kind != "plain":
        raise AdapterError(
            "ffn_sites: a gated FFN whose linears lie in the decoder layer itself cannot be adapted as a block; use "
            "routing='per_linear'"
        )
    return sites


def _common_parent(names: list[str]) -> str:
    parents = [name.split(".")[:-1] for name in names]
    common = []
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def part(module: nn.Module, name: str) -> Any:
    """Return the attribute of a dotted name; unlike ``get_submodule`` it may be a function, and can be traced."""
    found: Any = module
    for attribute in name.split("."):
        found = getattr(found, attribute)
    return found


def activation_of(module: nn.Module, name: str) -> Any:
    """Return the activation stored as ``name`` in the FFN's module, or the one transformers knows by that name."""
    try:
        return part(module, name)
    except AttributeError:
        pass
    from transformers.activations import ACT2FN

    if name in ACT2FN:
        return ACT2FN[name]
    raise AdapterError(
        f"ffn_sites: activation {name!r} is neither a part of {type(module).__name__} nor an activation that "
        f"transformers knows.{did_you_mean(name, list(ACT2FN))}"
    )


def feed_forward(
    module: nn.Module, site: FfnSite, activation: Any, experts: Mapping[Role, Any] | None = None
) -> FeedForward:
    """Bind a site to a module and, per role, to the experts of its projections."""
    experts = experts if experts is not None else {}
    inputs = tuple(Projection(part(module, name), experts.get(role)) for role, name in site.inputs)
    return FeedForward(site.kind, inputs, activation, Projection(part(module, site.down), experts.get("down")))


def output_dropout(module: nn.Module, site: FfnSite, y: torch.Tensor) -> torch.Tensor:
    """Apply the dropout that the base FFN applies after its down projection, if it has one."""
    return y if site.dropout is None else part(module, site.dropout)(y)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Compute with a module for a look, without gradients: random numbers and every training flag come back."""
    was_training = {m: m.training for m in module.modules()}
    on_gpu = any(parameter.device.type == "cuda" for parameter in module.parameters())
    devices = list(range(torch.cuda.device_count())) if on_gpu else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        for m, training in was_training.items():
            m.training = training


def probe(module: nn.Module, site: FfnSite) -> None:
    """Check on random numbers that the FFN computes what the site says, dropout included; raise AdapterError if not.

    A model may use known names for another function (a residual inside, a second norm, a clamp), and an adapter built
    on the wrong function would silently replace it. Skipped where the weights are not there to compute with.
    """
    parameters = list(module.parameters())
    if site.in_layer or any(p.device.type == "meta" or p.numel() == 0 for p in parameters):
        return
    width = linear_features(part(module, site.down))
    floating = next((p for p in parameters if p.is_floating_point()), None)
    if width is None or floating is None:
        return
    x = torch.randn(1, 2, width[1], generator=torch.Generator().manual_seed(0)).to(floating.device, floating.dtype)
    try:
        with undisturbed(module):
            module.train()
            torch.manual_seed(0)
            expected = module(x)
            torch.manual_seed(0)
            ffn = feed_forward(module, site, activation_of(module, site.activation))
            found = ffn.down.base(ffn.activate([projection.base(x) for projection in ffn.inputs]))
            found = output_dropout(module, site, found)
    except (TypeError, RuntimeError) as error:
        raise AdapterError(_not_this_function(module, site, str(error))) from error
    if not isinstance(expected, torch.Tensor) or expected.shape != found.shape:
        raise AdapterError(_not_this_function(module, site, "its output has another form"))
    difference = (expected - found).abs().max().item()
    if not difference <= 0.02 * expected.abs().max().item() + 1e-6:
        raise AdapterError(_not_this_function(module, site, f"outputs differ by {difference:.3g} on random input"))


def _not_this_function(module: nn.Module, site: FfnSite, reason: str) -> str:
    return (
        f"{site.module} ({type(module).__name__}) has the parts of a {site.kind} FFN but does not compute one "
        f"({reason}); use routing='per_linear', which adapts its linears one by one"
    )
