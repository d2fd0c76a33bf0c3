"""What is fitted on the calibration split after training: calibrators, a file of this folder each, and abstention."""

from __future__ import annotations

import importlib
import pkgutil

from uq4ct.errors import UserError, did_you_mean
from uq4ct.posthoc.base import Calibrator


def names() -> list[str]:
    """List the calibrators.

    >>> names()
    ['familiarity', 'feu', 'temperature', 'vector']
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in ("base", "abstain"))


def calibrator(name: str) -> type[Calibrator]:
    """Return the class of a calibrator.

    Raises UserError naming the nearest calibrator when there is none of that name.

    >>> calibrator("temperature").summary
    'one temperature'
    """
    if name not in names():
        raise UserError(f"calibrator '{name}' is not known.{did_you_mean(name, names())} Known: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Calibrator) and value.__dict__.get("name") == name
    )
    return found
