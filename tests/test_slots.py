"""The ways of computing an FFN's slots against each other: gradients, dropout, dtypes, memory, PyTorch's environments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from training_toys import mixture, questions

from uq4ct.adapters.mixture import keep_mask, route
from uq4ct.adapters.slots import Branch, slot_activations
from uq4ct.adapters.sorted_slots import order_by_expert
from uq4ct.losses.objective import Objective
from uq4ct.scoring import collate, uq4ct_loss

TOKENS, INNER, EXPERTS, RANK = 7, 6, 5, 2
HAND_MADE = ["dense", "sorted"]


def gated(pre):
    return F.silu(pre[0]) * pre[1]


class Slots:
    """Random inputs of ``slot_activations``, each a leaf that wants a gradient."""

    def __init__(self, top_k: int = 2, dtype: torch.dtype = torch.float64, base: torch.dtype | None = None):
        torch.manual_seed(0)

        def leaf(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(shape, dtype=of).requires_grad_()

        wide = EXPERTS * RANK
        self.branches = [
            Branch(leaf(TOKENS, INNER, of=base or dtype), leaf(TOKENS, wide), leaf(INNER, wide)) for _ in range(2)
        ]
        self.down = leaf(wide, INNER)
        self.logits = leaf(TOKENS, EXPERTS, of=torch.float64 if dtype == torch.float64 else torch.float32)
        self.top_k = top_k
        self.keep = None

    @property
    def leaves(self) -> list[torch.Tensor]:
        return [*(part for branch in self.branches for part in branch), self.down, self.logits]

    def __call__(self, arithmetic: str, activate=gated) -> tuple[torch.Tensor, torch.Tensor]:
        _, slots = route(torch.eye(EXPERTS, dtype=self.logits.dtype)[None].expand(TOKENS, -1, -1)[:, 0], self.logits[:EXPERTS].detach(), self.top_k)
        chosen = slots.movedim(-2, 0)
        weights = (chosen * self.logits.softmax(-1)).sum(-1)
        return slot_activations(self.branches, activate, chosen, weights, self.down, self.keep, arithmetic)

    def gradients(self, arithmetic: str) -> list[torch.Tensor]:
        mixed, adapted = self(arithmetic)
        (mixed.float().sin().sum() + adapted.float().cos().sum()).backward()
        found = [leaf.grad for leaf in self.leaves]
        for leaf in self.leaves:
            leaf.grad = None
        return found
