"""Deep ensemble (Lakshminarayanan et al. 2017): several LoRAs trained on their own, probabilities averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from uq4ct.adapting import load_members, member_folders, member_name
from uq4ct.encoders import without_adapters
from uq4ct.methods.base import Bench, Example, LoraMethod, count_parameters, train_adapter
from uq4ct.passes import Progress, score_members
from uq4ct.types import Prediction


class DeepEnsemble(LoraMethod):
    """Train ``members`` LoRAs, each with its own initialisation, data order and dropout, on one base in memory.

    The paper has two readings: 3 members of the single LoRA's rank (section 5.2, the default here) and 8 of rank 16
    (A.4: ``members=8, rank=16``). The first member is the LoRA of the same seed.
    """

    name: ClassVar[str] = "deep_ensemble"
    summary: ClassVar[str] = "three LoRAs trained independently, probabilities averaged"

    members: int = Field(3, ge=1)

    @property
    def passes(self) -> int:
        """One per member."""
        return self.members

    @property
    def trainings(self) -> int:
        """One per member."""
        return self.members

    def fit(self, bench: Bench) -> Any:
        """Train the members one after the other and return all of them on one base."""
        folders = member_folders(bench.folder, self.members)
        base, config = bench.model, self.adapter_config(bench.model)
        for number, folder in enumerate(folders):
            own = replace(bench, model=base, folder=folder, seed=member_seed(bench.seed, number))
            base = without_adapters(train_adapter(own, config, self.objective()).model)
        return load_members(base, folders)

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

    def trainable_parameters(self, folder: Path) -> int:
        """Count the numbers of all members."""
        return sum(map(count_parameters, member_folders(folder, self.members)))


def member_seed(seed: int, number: int) -> int:
    """Return the seed of a member: the run's own for the first, and never that of another run for the others.

    >>> member_seed(1, 0), member_seed(1, 2)
    (1, 1020003)
    """
    return seed if number == 0 else (1_000_003 + 10_000 * number + 97_003 * (seed - 1)) % 2**32
