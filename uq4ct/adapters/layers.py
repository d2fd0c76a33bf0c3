"""The modules that PEFT puts in the place of a base module. They call the base modules and never read a base weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from uq4ct.adapters import no_gradient
from uq4ct.adapters.mixture import (
    LowRank,
    Mixing,
    adapt,
    ffn_mixture,
    linear_mixture,
    mixing_weights,
    route,
    sample_experts,
)
from uq4ct.adapters.router import LayerRouting, Routed
from uq4ct.adapters.sites import (
    AdapterError,
    FfnSite,
    Role,
    activation_of,
    feed_forward,
    linear_features,
    output_dropout,
    part,
)
from uq4ct.adapters.slots import Arithmetic

CANNOT_MERGE = (
    "A mixture of LoRA experts cannot be merged into the base weights: which experts act, and how much, depends on the "
    "input, so no single weight matrix computes the same function. Keep the adapter beside the base model, or use a "
    "plain LoRA."
)


@dataclass(frozen=True)
class LayerSettings:
    """Hold the numbers of one adapter at one layer."""

    rank: int
    scaling: float
    dropout: float
    num_experts: int = 1
    top_k: int = 1
    mixing: Mixing = "rescaled"
    router_init_range: float = 0.02
    router_temperature: float = 1.0


class AdapterLayer(nn.Module, BaseTunerLayer):
    """Keep the adapters of one wrapped module; subclasses own the parameters and the forward."""

    other_param_names = ("settings",)
    arithmetic: Arithmetic = "auto"

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.settings: dict[str, LayerSettings] = {}

    def current_adapter(self) -> str | None:
        """Return the adapter that acts in the forward pass, or None for the base model alone."""
        if self.disable_adapters:
            return None
        return next((name for name in self.active_adapters if name in self.settings), None)

    def dropout(self, adapter: str) -> float:
        """Return the dropout probability in force: none in eval mode."""
        return self.settings[adapter].dropout if self.training else 0.0

    def without_gradient(self, adapter: str, *parameters: Tensor) -> bool:
        """Tell whether to take the shorter way of ``no_gradient``."""
        return self.arithmetic != "autograd" and not self.dropout(adapter) and no_gradient.of(*parameters)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter; several at once have no meaning for a mixture inside a non-linear block."""
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise ValueError(f"one mixture adapter can be active at a time, got {', '.join(adapter_names)}")
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: the weights depend on the input."""
        raise NotImplementedError(CANNOT_MERGE)

    def unmerge(self) -> None:
        """Refuse: nothing was merged."""
        raise NotImplementedError(CANNOT_MERGE)

    def _finish(self, adapter: str, settings: LayerSettings) -> None:
        self.settings[adapter] = settings
        self._move_adapter_to_device_of_base_layer(adapter)
        self.set_adapter(self.active_adapters)


class LoraLinear(AdapterLayer):
    """Adapt one linear by plain LoRA: h = W0 x + s B A x (Eq. 1)."""

    adapter_layer_names: tuple[str, ...] = ("uqmoe_A", "uqmoe_B")

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.uqmoe_A = nn.ParameterDict()
        self.uqmoe_B = nn.ParameterDict()

    def add_adapter(self, adapter: str, settings: LayerSettings) -> None:
        """Create the adapter's parameters."""
        self.uqmoe_A[adapter], self.uqmoe_B[adapter] = _new_experts(self.get_base_layer(), settings)
        self._finish(adapter, settings)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the adapted output."""
        adapter = self.current_adapter()
        if adapter is None:
            return self.base_layer(x, *args, **kwargs)
        experts = LowRank(self.uqmoe_A[adapter], self.uqmoe_B[adapter])
        scaling, dropout = self.settings[adapter].scaling, self.dropout(adapter)
        if not (args or kwargs) and self.without_gradient(adapter, *experts):
            return no_gradient.adapt(self.base_layer, x, experts, scaling)
        base = self.base_layer(x, *args, **kwargs)
        return adapt(base, x, experts, scaling, dropout=dropout, by_hand=self.arithmetic != "autograd")


class RoutedLayer(AdapterLayer, Routed):
    """Own the router of a mixture."""

    uqmoe_router: nn.ParameterDict

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self._tokens: tuple[int, ...] | None = None
        self._hook: Any = None

    def router_is_trainable(self) -> bool:
        """Tell whether the router in use gets gradients."""
        adapter = self.current_adapter()
        return adapter is not None and self.uqmoe_router[adapter].requires_grad

    def route(self, hidden: Tensor, adapter: str) -> tuple[LayerRouting, Tensor]:
        """Return each token's experts, and let a recorder see the most likely ones, which they are unless drawn."""
        router, top_k = self._router(adapter), self.settings[adapter].top_k
        routing, slots = route(hidden, router, top_k)
        self.capture(routing)
        if self.draw is None:
            return routing, slots
        return sample_experts(routing.probabilities, self.draw.uniform(hidden, len(router)), top_k)

    def route_alone(self, hidden: Tensor, adapter: str) -> LayerRouting:
        """Do what ``route`` does where neither slots nor gradients are wanted."""
        if self.draw is not None:
            return self.route(hidden, adapter)[0]
        routing = no_gradient.route(hidden, self._router(adapter), self.settings[adapter].top_k)
        self.capture(routing)
        return routing

    def _router(self, adapter: str) -> Tensor:
        """Return W_r / T: the router's logits are divided by its temperature."""
        router, temperature = self.uqmoe_router[adapter], self.settings[adapter].router_temperature
        return router if temperature == 1 else router / temperature

    def remember_tokens_of(self, layer: nn.Module) -> None:
        """Note (batch, sequence) whenever ``layer`` is entered: it flattens its hidden states ahead of this module."""
        self._hook = layer.register_forward_pre_hook(self._note_tokens, with_kwargs=True)

    def forget_tokens(self) -> None:
        """Undo ``remember_tokens_of``."""
        if self._hook is not None:
            self._hook.remove()

    def _note_tokens(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        self._tokens = tuple(hidden.shape[:-1]) if isinstance(hidden, Tensor) else None

    def capture(self, routing: LayerRouting) -> None:
        """Hand the decision to the recorder, by sequence even where the layer has flattened its tokens."""
        if self._tokens is not None and routing.first.dim() < len(self._tokens):
            p, kept, first = routing
            by_sequence = (p.reshape(*self._tokens, -1), kept.reshape(*self._tokens, -1), first.reshape(self._tokens))
            routing = LayerRouting(*by_sequence)
        super().capture(routing)


class MixtureLinear(RoutedLayer):
    """Adapt one linear by a mixture with its own router: h = W0 x + s sum_k g_k B_k A_k x (section 5.2)."""

    adapter_layer_names: tuple[str, ...] = ("uqmoe_router", "uqmoe_A", "uqmoe_B")

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.uqmoe_router = nn.ParameterDict()
        self.uqmoe_A = nn.ParameterDict()
        self.uqmoe_B = nn.ParameterDict()

    def add_adapter(self, adapter: str, settings: LayerSettings) -> None:
        """Create the adapter's parameters."""
        base = self.get_base_layer()
        self.uqmoe_router[adapter] = _new_router(_features(base)[0], settings)
        self.uqmoe_A[adapter], self.uqmoe_B[adapter] = _new_experts(base, settings)
        self._finish(adapter, settings)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the adapted output and let a recorder see the routing."""
        adapter = self.current_adapter()
        if adapter is None:
            return self.base_layer(x, *args, **kwargs)
        if args or kwargs:
            raise TypeError(_more_than_the_input(self.base_layer))
        settings, experts = self.settings[adapter], LowRank(self.uqmoe_A[adapter], self.uqmoe_B[adapter])
        if self.without_gradient(adapter, self.uqmoe_router[adapter], *experts):
            gates = mixing_weights(self.route_alone(x, adapter), settings.mixing)
            return no_gradient.adapt(self.base_layer, x, experts, settings.scaling, gates)
        base = self.base_layer(x)  # ahead of the routing: see linear_mixture
        routing, _ = self.route(x, adapter)
        dropout = self.dropout(adapter)
        options: dict[str, Any] = {"mixing": settings.mixing, "scaling": settings.scaling, "dropout": dropout}
        return linear_mixture(base, x, experts, routing, by_hand=self.arithmetic != "autograd", **options)


class FfnMixture(RoutedLayer):
    """Replace an FFN by a mixture whose experts are the whole FFN with low-rank deltas (Eqs. 2, 3)."""

    def __init__(self, base_layer: nn.Module, site: FfnSite):
        super().__init__(base_layer)
        self.site = site
        roles = [role for role, _ in site.projections]
        self.adapter_layer_names = ("uqmoe_router", *(f"uqmoe_{role}_{factor}" for role in roles for factor in "AB"))
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        activation = activation_of(base_layer, site.activation)
        owned = hasattr(base_layer, site.activation.split(".")[0])
        # Kept in a tuple, out of reach of nn.Module: PEFT counts every other child of this layer as the adapter's.
        self._activation = None if owned else (activation,)

    def add_adapter(self, adapter: str, settings: LayerSettings, roles: Sequence[Role]) -> None:
        """Create the adapter's parameters for the projections of the given roles."""
        base, site = self.get_base_layer(), self.site
        width = _features(part(base, site.inputs[0][1]))[0]
        self.uqmoe_router[adapter] = _new_router(width, settings)
        for role in roles:
            A, B = _new_experts(part(base, dict(site.projections)[role]), settings)
            getattr(self, f"uqmoe_{role}_A")[adapter] = A
            getattr(self, f"uqmoe_{role}_B")[adapter] = B
        self._finish(adapter, settings)

    def experts(self, adapter: str) -> dict[Role, LowRank]:
        """Return the stacked factors of each adapted projection."""
        found: dict[Role, LowRank] = {}
        for role, _ in self.site.projections:
            A, B = getattr(self, f"uqmoe_{role}_A"), getattr(self, f"uqmoe_{role}_B")
            if adapter in A:
                found[role] = LowRank(A[adapter], B[adapter])
        return found

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the FFN's output and let a recorder see the routing."""
        adapter = self.current_adapter()
        if adapter is None:
            return self.base_layer(hidden, *args, **kwargs)
        if args or kwargs:
            raise TypeError(_more_than_the_input(self.base_layer))
        base, settings = self.base_layer, self.settings[adapter]
        routing, slots = self.route(hidden, adapter)
        activation = part(base, self.site.activation) if self._activation is None else self._activation[0]
        ffn = feed_forward(base, self.site, activation, self.experts(adapter))
        y = ffn_mixture(
            hidden,
            ffn,
            routing,
            slots,
            mixing=settings.mixing,
            scaling=settings.scaling,
            dropout=self.dropout(adapter),
            arithmetic=self.arithmetic,
        )
        return output_dropout(base, self.site, y)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
        return super()._get_base_layer_device_and_dtype(part(base_layer, self.site.down))


class InLayerFfn(nn.Module):
    """Gather an FFN whose linears lie in the layer itself or in parts of it, so that it can be wrapped as one."""

    def __init__(self, layer: nn.Module, site: FfnSite):
        super().__init__()
        if not callable(getattr(layer, site.activation.split(".")[0], None)):
            raise AdapterError(
                f"ffn_sites: activation {site.activation!r} is no part of {type(layer).__name__}; where the FFN lies "
                "in the layer itself, name the layer's own activation, which the adapter has to take over"
            )
        self.site = site
        names = dict(site.projections)
        self.up, self.down = part(layer, names["up"]), part(layer, names["down"])
        self.activation = activation_of(layer, site.activation)
        self._layer = (layer,)  # in a tuple, out of reach of nn.Module: the layer holds this module

    @classmethod
    def take(cls, layer: nn.Module, site: FfnSite) -> FfnMixture:
        """Move the FFN out of ``layer`` into a mixture at the place of its first linear."""
        gathered = cls(layer, site)
        inner = FfnSite(site.module, "plain", (("up", "up"), ("down", "down")), "activation")
        mixture = FfnMixture(gathered, inner)
        _put(layer, dict(site.projections)["up"], mixture)
        _put(layer, site.down, nn.Identity())
        _put(layer, site.activation, nn.Identity())
        mixture.remember_tokens_of(layer)
        return mixture

    def give_back(self, mixture: FfnMixture) -> None:
        """Undo ``take``."""
        (layer,) = self._layer
        _put(layer, dict(self.site.projections)["up"], self.up)
        _put(layer, self.site.down, self.down)
        _put(layer, self.site.activation, self.activation)
        mixture.forget_tokens()

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute the base FFN."""
        return self.down(self.activation(self.up(hidden)))


def _put(layer: nn.Module, name: str, value: Any) -> None:
    """Assign a part of a layer by its dotted name; a function may stand where a module stood."""
    path, _, attribute = name.rpartition(".")
    owner = part(layer, path) if path else layer
    if not isinstance(value, nn.Module):
        owner._modules.pop(attribute, None)
    setattr(owner, attribute, value)


def use_arithmetic(model: nn.Module, arithmetic: Arithmetic) -> None:
    """Choose how the adapters of a model compute; the numbers stay the same up to rounding.

    ``"autograd"`` is the plain formula everywhere, which alone can be differentiated twice; the other ways differ in
    the slots of FFN mixtures, see ``slot_activations``.
    """
    for module in model.modules():
        if isinstance(module, AdapterLayer):
            module.arithmetic = arithmetic


def _more_than_the_input(module: nn.Module) -> str:
    return f"{type(module).__name__} is called with more than its input, which a mixture cannot adapt"


def _features(module: nn.Module) -> tuple[int, int]:
    features = linear_features(module)
    if features is None:
        raise TypeError(f"{type(module).__name__} is not a linear module, so it cannot get low-rank experts")
    return features


def _new_experts(base: nn.Module, settings: LayerSettings) -> tuple[nn.Parameter, nn.Parameter]:
    """Create A and B of all experts; the fan-in of the stacked A is that of each expert, so kaiming is per expert."""
    width_in, width_out = _features(base)
    A = torch.empty(settings.num_experts * settings.rank, width_in)
    nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    return nn.Parameter(A), nn.Parameter(torch.zeros(width_out, settings.num_experts * settings.rank))


def _new_router(width: int, settings: LayerSettings) -> nn.Parameter:
    return nn.Parameter(torch.randn(settings.num_experts, width) * settings.router_init_range)
