"""The methods of the paper's tables. A file of this folder that defines a class with its own name is a method."""

from __future__ import annotations

import importlib
import pkgutil

from uq4ct.errors import UserError, did_you_mean
from uq4ct.methods.base import Method


def names() -> list[str]:
    """List the methods.

    >>> names()
    ['lora', 'mixlora', 'uq4ct', 'zero_shot']
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def find(name: str) -> type[Method]:
    """Return the class of a method.

    Raises UserError naming the nearest method when there is none of that name.

    >>> find("uq4ct").passes
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
