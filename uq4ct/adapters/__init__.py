"""The mixture of LoRA experts. Importing this package registers the method in PEFT."""

from uq4ct.adapters.mixlora import MixLoraConfig, MixLoraModel, register
from uq4ct.adapters.placement import linear_targets
from uq4ct.adapters.router import LayerRouting, RecordedRouting, record_routing
from uq4ct.adapters.sites import AdapterError

__all__ = [
    "AdapterError",
    "LayerRouting",
    "MixLoraConfig",
    "MixLoraModel",
    "RecordedRouting",
    "linear_targets",
    "record_routing",
    "register",
]

register()
