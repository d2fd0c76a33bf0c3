"""Fine-tune large language models so that their confidence can be trusted (UQ4CT and its baselines).

The public names below are imported when they are first used, so that ``import uq4ct`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uq4ct.adapters import MixLoraConfig
    from uq4ct.answering import Answer, UQModel
    from uq4ct.config import Config
    from uq4ct.errors import UserError
    from uq4ct.evaluating import evaluate
    from uq4ct.fitting import train
    from uq4ct.losses.objective import Objective
    from uq4ct.report import build_report
    from uq4ct.runs import Run
    from uq4ct.scoring import collate, score
    from uq4ct.training import CalibratedTrainer, uq4ct_loss
    from uq4ct.types import Prediction, Question

_HOMES = {
    "MixLoraConfig": "adapters",
    "Answer": "answering",
    "UQModel": "answering",
    "Config": "config",
    "UserError": "errors",
    "evaluate": "evaluating",
    "train": "fitting",
    "Objective": "losses.objective",
    "build_report": "report",
    "Run": "runs",
    "collate": "scoring",
    "score": "scoring",
    "CalibratedTrainer": "training",
    "uq4ct_loss": "training",
    "Prediction": "types",
    "Question": "types",
}

__all__ = [
    "Answer",
    "CalibratedTrainer",
    "Config",
    "MixLoraConfig",
    "Objective",
    "Prediction",
    "Question",
    "Run",
    "UQModel",
    "UserError",
    "build_report",
    "collate",
    "evaluate",
    "score",
    "train",
    "uq4ct_loss",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
