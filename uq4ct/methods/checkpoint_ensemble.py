"""Checkpoint ensemble: the last adapters of one LoRA training, probabilities averaged (Chen et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from uq4ct.adapting import ADAPTER, is_main_process, link, load_members, member_folders, member_name, wait_for_all
from uq4ct.encoders import without_adapters
from uq4ct.methods.base import Bench, Example, LoraMethod, train_adapter
from uq4ct.passes import Progress, score_members
from uq4ct.types import Prediction


class CheckpointEnsemble(LoraMethod):
    """Train like ``lora`` and keep the adapter at the end and at ``members - 1`` points before it.

    Between two members lies the fraction ``spacing`` of the run, by default a tenth: the last three of ten checkpoints,
    as in Laplace-LoRA's paper.
    """

    name: ClassVar[str] = "checkpoint_ensemble"
    summary: ClassVar[str] = "the last three checkpoints of one LoRA, probabilities averaged"

    members: int = Field(3, ge=1)
    spacing: float = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _fits_into_the_run(self) -> CheckpointEnsemble:
        if (self.members - 1) * self.spacing >= 1:
            raise ValueError(
                f"'members' {self.members} at a 'spacing' of {self.spacing} of the run reach back before its start; "
                "lower one of them"
            )
        return self

    @property
    def passes(self) -> int:
        """One per member."""
        return self.members

    @property
    def snapshots(self) -> tuple[float, ...]:
        """Where the earlier members are taken, from the newest to the oldest."""
        return tuple(round(1 - number * self.spacing, 4) for number in range(1, self.members))

    def notes_on_steps(self, steps: int) -> list[str]:
        """Say where a training is so short that several members are taken after the same step."""
        from uq4ct.snapshots import snapshot_step

        taken = {snapshot_step(fraction, steps) for fraction in self.snapshots} | {steps}
        if len(taken) == self.members:
            return []
        return [
            f"only {len(taken)} of the {self.members} members differ: a training of {steps} steps has no more points "
            f"that lie {self.spacing:g} of it apart; train longer or set a larger spacing"
        ]

    def fit(self, bench: Bench) -> Any:
        """Train once, keep the members' adapters and return all of them on one base."""
        trained = train_adapter(bench, self.adapter_config(bench.model), self.objective(), snapshots=self.snapshots)
        folders = member_folders(bench.folder, self.members)
        if is_main_process():
            for fraction, folder in zip(self.snapshots, folders[1:], strict=True):
                folder.mkdir(exist_ok=True)
                for name in ADAPTER:
                    link(trained.snapshots[fraction] / name, folder / name)
        wait_for_all()
        return load_members(without_adapters(trained.model), folders)

    def load(self, model: Any, folder: Path) -> Any:
        """Put all members back on a fresh base model."""
        return load_members(model, member_folders(folder, self.members))

    def predict(
        self,
        model: Any,
        examples: Sequence[Example],
        *,
        ids: Sequence[str],
        pad_token_id: int,
        batch_size: int = 32,
        progress: Progress | None = None,
    ) -> Prediction:
        """Score encoded questions once with each member."""
        names = [member_name(number) for number in range(self.members)]
        return score_members(
            model, names, examples, ids=ids, pad_token_id=pad_token_id, batch_size=batch_size, progress=progress
        )
