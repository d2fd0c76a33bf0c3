"""A run as a model of lm-evaluation-harness: its base model with its adapter, under the harness's own prompts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401  # first: the harness registers its own models only while it knows none
import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from uq4ct.answering import UQModel
from uq4ct.errors import UserError
from uq4ct.runs import Run

_log = logging.getLogger(__name__)


@register_model("uq4ct")
class UQLM(HFLM):
    """Score the harness's tasks with a run: log-likelihoods, rolling log-likelihoods, and generation.

    Everything is computed by the harness's own ``HFLM``, so a run without an adapter (``zero_shot``) has the numbers of
    ``--model hf``. Prompts are the harness's, not the run's; the run's post-hoc calibration is of its own choices'
    logits, and is not applied. ``pretrained``, the run's folder, has the harness's name, by which it names results;
    ``options`` are those of ``HFLM`` for a model in memory, such as ``max_length``.

    Raises UserError where the run cannot be loaded, or its method is more than one forward pass.
    """

    def __init__(
        self,
        pretrained: str | Path,
        base: str | None = None,
        batch_size: int | str = 8,
        device: str | None = None,
        **options: Any,
    ):
        opened = Run.open(Path(pretrained))
        loaded = UQModel.load(opened, base=base)
        method = loaded.config.method
        if method.passes != 1 or not isinstance(loaded.model, torch.nn.Module):
            raise UserError(
                f"{pretrained}: '{method.label}' predicts with more than one forward pass of one model, and lm-eval "
                "sees one; score its questions with `uq4ct evaluate`"
            )
        if method.posthoc:
            _log.warning("%s: '%s' is measured without +%s", pretrained, method.label, method.posthoc)
        # The harness's command line asks for cuda:0 wherever it runs, and its own models then take the processor.
        absent = device is None or (device.startswith("cuda") and not torch.cuda.is_available())
        model = loaded.model if absent else loaded.model.to(device)
        super().__init__(
            pretrained=model,
            tokenizer=loaded.encoder.tokenizer,
            backend="causal",
            batch_size=batch_size,
            **options,
        )
        loaded.check_fingerprint(opened)  # HFLM ties weights and sets a padding token: the answers are still the run's
        self._facts, self._method = opened.facts, method
        self.run_folder = str(pretrained)

    def get_model_info(self) -> dict[str, Any]:
        """Return what results files say of the model; nothing is asked of the hub."""
        base = self._facts["base"]
        return {
            "model_num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "model_dtype": base["dtype"],
            "model_revision": base.get("revision") or "",
            "model_sha": base["fingerprint"],
            "uq4ct_run": self.run_folder,
            "uq4ct_method": self._method.name,
            "uq4ct_suffix_not_applied": self._method.posthoc,
            "uq4ct_base": base["name"],
        }
