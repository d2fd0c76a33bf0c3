"""The methods of the paper's tables. A file of this folder that defines a class with its own name is a method."""

from __future__ import annotations

import importlib
import pkgutil

from uq4ct.errors import UserError, did_you_mean
from uq4ct.methods.base import Method


def names() -> list[str]:
    """List the methods.

    >>> {"lora", "uq4ct", "zero_shot"} <= set(names())
    True
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def find(name: str) -> type[Method]:
    """Return the class of a method.

    Raises UserError naming the nearest method when there is none of that name.

    >>> find("uq4ct")().passes
    1
    """
    if name not in names():
        raise UserError(f"method '{name}' is not known.{did_you_mean(name, names())} Methods: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    (method,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__dict__.get("name") == name
    )
    return method


def parse(label: str) -> tuple[type[Method], str | None]:
    """Split a method as people write it into its class and the name of its post-hoc calibration.

    Raises UserError where either is not known.

    >>> kind, suffix = parse("lora+temperature")
    >>> kind.name, suffix
    ('lora', 'temperature')
    """
    name, plus, suffix = label.partition("+")
    kind = find(name)
    if plus:
        from uq4ct.posthoc import calibrator

        return kind, calibrator(suffix).name
    return kind, None
