"""Kronecker factors of the curvature of LoRA weights, whole where a side is short and sketched where it is long.

The curvature of one weight matrix (out, in) is approximated by a Kronecker product (Martens and Grosse 2015),
H = N * E[a a^T] kron E[g g^T], of its inputs a (in) and the gradients g (out) at its output. For LoRA one side of every
matrix is the rank and the other a width of the model, often thousands: there only the leading eigenvectors are kept.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SKETCH = 6  # vectors per eigenvector that is kept: as much of the trace as an incremental SVD finds, 98 to 99 %


class Spectrum(NamedTuple):
    """The leading eigenvectors (columns) and eigenvalues of a factor, largest first; what is left counts as zero."""

    basis: Float[Tensor, "side kept"]
    values: Float[Tensor, " kept"]

    @property
    def complete(self) -> bool:
        """Whether the eigenvectors span the whole side."""
        return self.basis.shape[0] == self.basis.shape[1]


class WholeFactor:
    """Sum x x^T over vectors in float64."""

    def __init__(self, side: int, device: torch.device):
        self.sum = torch.zeros(side, side, dtype=torch.float64, device=device)

    def add(self, rows: Float[Tensor, "vector side"]) -> None:
        """Add x x^T of every row."""
        rows = rows.double()
        self.sum += rows.T @ rows

    def spectrum(self) -> Spectrum:
        """Return all eigenvectors."""
        values, basis = torch.linalg.eigh(self.sum)
        return Spectrum(basis.flip(-1), values.flip(-1).clamp(min=0.0))


class SketchedFactor:
    """Sum F = x x^T over vectors by its product with a few fixed random directions, and recover its leading part.

    One pass, side * 6 * rank numbers. The sketch F W is a sum, so that batches, their order and padding change nothing,
    unlike with a decomposition that is cut off after every batch. F is recovered as (F W) (W^T F W)^+ (F W)^T, never
    more than F itself (Nystroem; Tropp et al. 2017), exactly where F has no more than 6 * rank eigenvalues.
    """

    def __init__(self, side: int, rank: int, device: torch.device):
        self.rank = min(rank, side)
        self.directions = _directions(side, min(SKETCH * rank, side), device)
        self.sketch = torch.zeros_like(self.directions)

    def add(self, rows: Float[Tensor, "vector side"]) -> None:
        """Add x x^T of every row."""
        rows = rows.double()
        self.sketch += rows.T @ (rows @ self.directions)

    def spectrum(self) -> Spectrum:
        """Return the ``rank`` leading eigenvectors."""
        core = self.directions.T @ self.sketch
        values, vectors = torch.linalg.eigh((core + core.T) / 2)
        seen = values > 1e-12 * values.max()
        if not seen.any():
            return Spectrum(self.directions[:, : self.rank], torch.zeros_like(values[: self.rank]))
        root = self.sketch @ (vectors[:, seen] / values[seen].sqrt())
        basis, singular, _ = torch.linalg.svd(root, full_matrices=False)
        return Spectrum(basis[:, : self.rank].contiguous(), singular[: self.rank] ** 2)


@functools.lru_cache(maxsize=8)  # sides repeat from layer to layer
def _directions(side: int, width: int, device: torch.device) -> Float[Tensor, "side width"]:
    generator = torch.Generator().manual_seed(side)  # drawn on the CPU: every device gets the same directions
    directions = torch.randn(side, width, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(directions).Q.to(device)


Factor = WholeFactor | SketchedFactor


def factor(side: int, full_below: int, rank: int, device: torch.device) -> Factor:
    """Return an empty factor: whole up to and with side ``full_below``, of the given rank above."""
    return WholeFactor(side, device) if side <= full_below else SketchedFactor(side, rank, device)


class Memory(NamedTuple):
    """Bytes of all factors: whole in float32, as published code holds them; while fitting; as kept with a run."""

    whole: int
    fitting: int
    kept: int

    def __str__(self) -> str:
        whole, fitting, kept = (f"{size / 2**30:.2f} GiB" for size in self)
        return f"{fitting} while fitting, {kept} kept with the run; whole factors would take {whole}"


def memory(linears: Mapping[str, tuple[int, int]], rank: int, full_below: int = 512, kfac_rank: int = 10) -> Memory:
    """Return the memory that the factors of a LoRA take, from the (in, out) of the linears it adapts.

    One linear of Llama-2-7B, with rank 80 on it; its two long sides weigh 4096^2 numbers each, or 4096 * 10 here:

    >>> memory({"q_proj": (4096, 4096)}, rank=80)
    Memory(whole=134268928, fitting=4034560, kept=380320)
    """
    whole = fitting = kept = 0
    for features in linears.values():
        for side in (*features, rank, rank):  # A reads in, writes rank; B reads rank, writes out
            whole += 4 * side**2
            if side <= full_below:
                fitting, kept = fitting + 8 * side**2, kept + 4 * side**2 + 8 * side
            else:
                width, left = min(SKETCH * kfac_rank, side), min(kfac_rank, side)
                fitting, kept = fitting + 8 * side * width, kept + 4 * side * left + 8 * left
    return Memory(whole, fitting, kept)
