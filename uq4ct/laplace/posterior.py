"""The Gaussian around trained LoRA weights: its curvature, its evidence, and how it makes the logits vary.

The precision of a weight matrix is P = H + I / s2 with H = N E[a a^T] kron E[g g^T] and s2 the prior variance of every
weight. In the eigenvectors of both factors H is diagonal, its eigenvalues are the products of theirs, and no matrix
larger than a factor is ever inverted. Where a factor keeps its leading eigenvectors only, H is zero on the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from uq4ct.errors import UserError
from uq4ct.laplace.factors import Spectrum

VARIANCES = (1e-8, 1e8)  # between which the most probable prior variance is searched


class Block(NamedTuple):
    """The curvature of one weight matrix: the mean factor of its inputs, the summed one of its output's gradients."""

    inputs: Spectrum
    outputs: Spectrum

    @property
    def eigenvalues(self) -> Float[Tensor, "out in"]:
        """The eigenvalues of H that are not zero by construction."""
        return torch.outer(self.outputs.values, self.inputs.values)

    def covariance(
        self,
        inputs: Float[Tensor, "item token in"],
        gradients: Float[Tensor, "item choice token out"],
        variances: Sequence[float],
    ) -> Float[Tensor, "variance item choice choice"]:
        """Return J P^-1 J^T for each prior variance, as a sum of squares: never less than zero.

        J_k is the sum over tokens of g_k x^T. Along eigenvector i the weights' variance is s2 / (1 + s2 h_i), outside
        of those that were kept it is s2. Turned in the precision of the arguments, squared in float64.
        """
        left, right = (side.basis.to(inputs) for side in (self.outputs, self.inputs))
        outside = torch.zeros(())
        complete = self.outputs.complete and self.inputs.complete
        if complete and _turn_tokens(inputs, gradients):
            along = (gradients @ left).mT @ (inputs @ right)[:, None]
        else:
            jacobian = gradients.mT @ inputs[:, None]
            along = left.T @ jacobian @ right
            if not complete:
                rest = (jacobian - left @ along @ right.T).flatten(2).double()
                outside = rest @ rest.mT
        along, curvature = along.flatten(2).double(), self.eigenvalues.flatten().to(along.device)
        return torch.stack([
            variance * outside + (along * (variance / (1 + variance * curvature))) @ along.mT
            for variance in variances
        ])  # fmt: skip


def _turn_tokens(inputs: Tensor, gradients: Tensor) -> bool:
    """Return whether turning every token into the eigenvectors is less work than turning the Jacobians."""
    (_, tokens, wide), (_, choices, _, out) = inputs.shape, gradients.shape
    return tokens * (wide**2 + choices * out**2) < choices * out * wide * (out + wide)


@dataclass(frozen=True)
class Posterior:
    """The curvature of every weight in scope, the fit of the trained weights, and the prior variance once chosen.

    ``log_likelihood`` is that of the training answers at the trained weights theta, ``squared_norm`` is ||theta||^2
    over the weights in scope; others are taken as known.
    """

    blocks: Mapping[str, Block]
    log_likelihood: float
    squared_norm: float
    prior_variance: float = 1.0

    @cached_property
    def eigenvalues(self) -> Float[Tensor, " eigenvalue"]:
        """The eigenvalues of H over all blocks that are not zero by construction, float64."""
        return torch.cat([block.eigenvalues.flatten().double().cpu() for block in self.blocks.values()])

    def log_evidence(self, variance: float) -> float:
        """Return Laplace's approximation of log p(training answers | prior variance s2).

        LL - ||theta||^2 / (2 s2) - 1/2 log det(s2 H + I): the normalisers of prior and posterior leave the last term.
        """
        volume = torch.log1p(variance * self.eigenvalues).sum().item()
        return self.log_likelihood - self.squared_norm / (2 * variance) - volume / 2

    def evidence_slope(self, variance: float) -> float:
        """Return the derivative of the log evidence with respect to log s2; it only ever falls as s2 grows."""
        return self.squared_norm / (2 * variance) - self.determined(variance) / 2

    def determined(self, variance: float) -> float:
        """Return how many directions the data determine more than the prior does (MacKay's gamma)."""
        scaled = variance * self.eigenvalues
        return (scaled / (1 + scaled)).sum().item()

    def most_probable_variance(self) -> float:
        """Return the prior variance of the largest evidence: the root of its slope, by bisection in log s2.

        The evidence is concave in log s2, so there is one maximum; it is an end of the range ``VARIANCES`` where the
        slope has no root inside.
        """
        low, high = map(math.log, VARIANCES)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.evidence_slope(math.exp(middle)) > 0 else (low, middle)
        return math.exp((low + high) / 2)

    def times(self, factor: float) -> Posterior:
        """Return what ``factor`` times as many questions of the same kind would give: curvature and likelihood grow."""
        blocks = {
            name: block._replace(outputs=block.outputs._replace(values=factor * block.outputs.values))
            for name, block in self.blocks.items()
        }
        return replace(self, blocks=blocks, log_likelihood=factor * self.log_likelihood)

    def with_prior(self, variance: float) -> Posterior:
        """Return the posterior under another prior variance."""
        return replace(self, prior_variance=variance)

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it as named tensors, for a file."""
        scalars = ("log_likelihood", "squared_norm", "prior_variance")
        named = {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in scalars}
        for name, block in self.blocks.items():
            for side, spectrum in zip(("inputs", "outputs"), block, strict=True):
                named[f"{name}:{side}.basis"] = spectrum.basis.cpu()
                named[f"{name}:{side}.values"] = spectrum.values.cpu()
        return named

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]) -> Posterior:
        """Build it again from its tensors, for weights of the given shapes (out, in).

        Raises UserError where they are another adapter's.
        """
        parts = dict(tensors)
        names = {name.rpartition(":")[0] for name in parts} - {""}
        try:
            scalars = {name: parts[name].item() for name in ("log_likelihood", "squared_norm", "prior_variance")}
            blocks = {
                name: Block(*(Spectrum(parts[f"{name}:{side}.basis"], parts[f"{name}:{side}.values"])
                              for side in ("inputs", "outputs")))
                for name in shapes if name in names
            }  # fmt: skip
        except KeyError as error:
            raise UserError(f"tensor {error} of the posterior is missing") from error
        found = {name: (len(block.outputs.basis), len(block.inputs.basis)) for name, block in blocks.items()}
        wrong = sorted(names - found.keys()) + [name for name, shape in found.items() if shape != shapes[name]]
        if wrong:
            raise UserError(f"the posterior of '{wrong[0]}' belongs to no weight of this adapter, or has another size")
        return cls(blocks, **scalars)
