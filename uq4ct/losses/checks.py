"""State what a loss needs of its inputs without making a GPU wait for the answer."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor


def require(condition: Bool[Tensor, ""], message: str) -> None:
    """Raise ValueError unless the condition holds; on CUDA abort the kernel stream instead, so that nothing waits.

    >>> require(torch.tensor(True), "never seen")
    >>> require(torch.tensor(False), "probabilities must be positive")
    Traceback (most recent call last):
    ValueError: probabilities must be positive
    """
    if condition.is_cuda:
        torch._assert_async(condition, message)
    elif not bool(condition):
        raise ValueError(message)
