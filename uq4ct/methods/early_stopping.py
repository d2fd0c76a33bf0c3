"""Early stopping: the checkpoint of one LoRA training that predicts the calibration questions best."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from pydantic import Field

from uq4ct.adapting import ADAPTER, is_main_process, link, load_adapter, wait_for_all
from uq4ct.encoders import without_adapters
from uq4ct.errors import UserError
from uq4ct.methods.base import Bench, LoraMethod, train_adapter
from uq4ct.passes import score_pass


class EarlyStopping(LoraMethod):
    """Train like ``lora`` and keep, of ``candidates`` evenly spaced adapters, that with the lowest calibration NLL.

    The whole run is trained and the best point chosen afterwards: what stopping there would have given. The questions
    that choose are the calibration split's, never the evaluation split's.
    """

    name: ClassVar[str] = "early_stopping"
    summary: ClassVar[str] = "LoRA at its best calibration NLL, of ten points of the run"

    candidates: int = Field(10, ge=2)

    @property
    def needs_calibration(self) -> bool:
        """The calibration questions choose."""
        return True

    @property
    def snapshots(self) -> tuple[float, ...]:
        """All candidates but the last, which is the end of the run."""
        return tuple(round(number / self.candidates, 4) for number in range(1, self.candidates))

    def fit_cost(self, questions: int, calibration: int, choices: float) -> float:
        """Each candidate answers the calibration questions."""
        return float(self.candidates * calibration)

    def fit(self, bench: Bench) -> Any:
        """Train once, score the calibration questions at each candidate and keep the best.

        Raises UserError where there is no calibration split.
        """
        if not bench.calibration:
            raise UserError("early_stopping needs a calibration split to choose by; set data.calibration_fraction: 0.1")
        trained = train_adapter(bench, self.adapter_config(bench.model), self.objective(), snapshots=self.snapshots)
        best, best_loss, base = 1.0, _loss(trained.model, bench), without_adapters(trained.model)
        for fraction, folder in trained.snapshots.items():
            candidate = load_adapter(base, folder)
            loss, base = _loss(candidate, bench), without_adapters(candidate)
            if loss < best_loss:
                best, best_loss = fraction, loss
        if best < 1 and is_main_process():
            for name in ADAPTER:
                link(trained.snapshots[best] / name, bench.folder / name)
        found = f"early_stopping: best at {best:.0%} of the run, calibration NLL {best_loss:.3f}"
        print(found, file=sys.stderr, flush=True)
        wait_for_all()
        return load_adapter(base, bench.folder)


def _loss(model: Any, bench: Bench) -> float:
    """Return the mean NLL of the calibration questions, in nats."""
    import torch

    from uq4ct.losses.answer import answer_loss

    logits, _, _, _ = score_pass(model, bench.calibration, bench.pad_token_id, 32)
    answers = torch.tensor([example["answer"] for example in bench.calibration])
    return float(answer_loss(torch.from_numpy(logits[:, 0]), answers))
