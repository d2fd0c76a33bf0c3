"""Functional-level epistemic uncertainty (Eq. 9) and the loss that calibrates it against correctness (Eqs. 10, 12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from uq4ct.adapters.router import LayerRouting
from uq4ct.losses.answer import Reduction, reduce
from uq4ct.losses.checks import require
from uq4ct.types import FeuTokens

FeuReduction = Literal["mass", "top1", "vector"]
Schedule = Literal["constant", "incremental"]
Target = Literal["indicator", "probability", "mixture", "shuffled"]


def functional_uncertainty(
    routing: Sequence[LayerRouting],
    mask: Bool[Tensor, "batch token"],
    reduction: FeuReduction = "mass",
    tokens: FeuTokens = "prompt",
    item: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " item *expert"]:
    """Return FEU (Eq. 9): the mean over real prompt tokens and over layers of the router's kept probabilities.

    Despite its name FEU is a CONFIDENCE: large means certain.

    * ``mass``: the sum of the kept probabilities, a number in [k/N, 1];
    * ``top1``: the largest probability, in [1/N, 1];
    * ``vector``: the kept probabilities themselves, (batch, expert), for the literal Eq. 10.

    ``tokens="last"`` reads the answer position only. Padding (``mask`` false) never counts. Where a question has
    several rows, one per choice, ``item`` is the question of each, ascending from 0 without gaps: its FEU is the mean
    of its rows', each over its own tokens, so that a long choice counts no more than a short one. Raises ValueError
    when there is no router, and when the kept values were rescaled to sum to one: that sum is constant and trains
    nothing.

    >>> p = torch.tensor([[[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]]])     # one example, two tokens, three experts
    >>> kept = torch.tensor([[[0.5, 0.3, 0.0], [0.6, 0.3, 0.0]]])
    >>> layer = LayerRouting(p, kept, p.argmax(-1))
    >>> mask = torch.tensor([[True, True]])
    >>> round(functional_uncertainty([layer], mask).item(), 4)                     # (0.8 + 0.9) / 2
    0.85
    >>> round(functional_uncertainty([layer], mask, reduction="top1").item(), 4)
    0.55
    >>> rescaled = LayerRouting(p, kept / kept.sum(-1, keepdim=True), p.argmax(-1))
    >>> functional_uncertainty([rescaled], mask)
    Traceback (most recent call last):
    ValueError: FEU needs the kept probabilities themselves (R in Eq. 9), but a layer has rescaled ones, whose sum is \
always 1 and trains nothing; pass LayerRouting.kept as the router recorded it
    """
    if not routing:
        raise ValueError("FEU needs a router: the model has none, or its adapter is disabled")
    kept = [_kept_of(layers) for layers in _by_experts(routing)]
    match reduction:
        case "mass":
            confidence = torch.cat([layers.sum(dim=-1) for layers in kept]).mean(dim=0)
        case "top1":
            confidence = torch.cat([layers.amax(dim=-1) for layers in kept]).mean(dim=0)
        case "vector":
            confidence = _alone(kept).mean(dim=0)
        case _:
            raise ValueError(f"FEU reduction is 'mass', 'top1' or 'vector', got {reduction!r}")
    of_rows = _mean_over_tokens(confidence, _last(mask) if tokens == "last" else mask)
    return of_rows if item is None else _mean_over_rows(of_rows, item)


def calibration_loss(
    feu: Float[Tensor, " batch *expert"],
    correct: Bool[Tensor, " batch"] | Float[Tensor, " batch"],
    reduction: Reduction = "mean",
) -> Float[Tensor, "*batch"]:
    """Return Eq. 10, L_cal: the squared distance of FEU from the correctness indicator, which is detached.

    A probability of being right may stand in for the indicator. A ``vector`` FEU is compared with the broadcast
    indicator and summed over experts, up to N times larger.

    >>> calibration_loss(torch.tensor([0.75, 0.75]), torch.tensor([True, False]), reduction="none").tolist()
    [0.0625, 0.5625]
    >>> calibration_loss(torch.tensor([[0.75, 0.0]]), torch.tensor([True])).item()
    1.0625
    """
    if feu.dim() == 1:
        return reduce((correct.detach().to(feu.dtype) - feu) ** 2, reduction)
    return reduce(((correct.detach().to(feu.dtype)[:, None] - feu) ** 2).sum(dim=-1), reduction)


def mixture_loss(
    feu: Float[Tensor, " batch"],
    gold: Float[Tensor, " batch"],
    choices: Int[Tensor, " batch"],
    floor: Float[Tensor, ""] | float,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*batch"]:
    """Return -log(a p + (1 - a) / K): the log loss of an answer that FEU mixes with a guess among K choices.

    ``gold`` is the probability p of the right choice, detached, and a = (FEU - floor) / (1 - floor) with ``floor`` the
    smallest value that FEU can have. Not in the paper: where Eq. 10 asks FEU to equal the indicator, this asks it to be
    high where the answer is better than a guess, by as much as it is. The guess keeps a thousandth even where FEU is 1,
    so that one wrong answer cannot own an update. Raises ValueError for a floor of 1: such an FEU never varies.

    >>> loss = mixture_loss(torch.tensor([1.0, 0.25]), torch.tensor([0.5, 0.5]), torch.tensor([4, 4]), 0.25, "none")
    >>> [round(p, 5) for p in (-loss).exp().tolist()]
    [0.49975, 0.25]
    """
    require(torch.as_tensor(floor) < 1, "mixing with a guess needs experts to choose from: FEU is 1 for all questions")
    share = ((feu - floor) / (1 - floor)).clamp(0.0, 0.999)
    return reduce(-(share * gold.detach() + (1 - share) / choices).log(), reduction)


def schedule(kind: Schedule, step: int) -> float:
    """Return the factor on the calibration weight after t completed optimizer steps: 1, or Eq. 12's min(1, t / 50).

    >>> [schedule("incremental", step) for step in (0, 25, 50, 51)], schedule("constant", 0)
    ([0.0, 0.5, 1.0, 1.0], 1.0)
    """
    match kind:
        case "constant":
            return 1.0
        case "incremental":
            return min(1.0, step / 50)
    raise ValueError(f"the calibration schedule is 'constant' or 'incremental', got {kind!r}")


def _by_experts(routing: Sequence[LayerRouting]) -> list[list[LayerRouting]]:
    """Put layers with the same number of experts together, so that a step is done once for all of them."""
    found: dict[int, list[LayerRouting]] = {}
    for layer in routing:
        found.setdefault(layer.kept.shape[-1], []).append(layer)
    return list(found.values())


def _kept_of(layers: Sequence[LayerRouting]) -> Float[Tensor, "layer batch token expert"]:
    """Return R of layers with equally many experts."""
    # k = N keeps everything and sums to 1 rightly, so the sum proves nothing: compare with the probabilities themselves
    # (and say so only of numbers: a NaN is reported as what it is, by whoever watches the loss)
    kept = torch.stack([layer.kept for layer in layers])
    apart = (kept.detach() - torch.stack([layer.probabilities.detach() for layer in layers])).abs()
    require(
        ~((kept.detach() != 0) & (apart > 1e-5)).any(),
        "FEU needs the kept probabilities themselves (R in Eq. 9), but a layer has rescaled ones, whose sum is "
        "always 1 and trains nothing; pass LayerRouting.kept as the router recorded it",
    )
    return kept


def _alone(kept: Sequence[Tensor]) -> Float[Tensor, "layer batch token expert"]:
    experts = sorted(layers.shape[-1] for layers in kept)
    if len(experts) > 1:
        raise ValueError(f"a vector FEU needs the same number of experts in every layer, got {experts}; use 'mass'")
    return kept[0]


def _last(mask: Bool[Tensor, "batch token"]) -> Bool[Tensor, "batch token"]:
    from_the_end = mask.flip(-1).cumsum(dim=-1).flip(-1)
    return mask & (from_the_end == 1)


def _mean_over_rows(values: Float[Tensor, " row *expert"], item: Int[Tensor, " row"]) -> Float[Tensor, " item *expert"]:
    rows = item.bincount()
    total = values.new_zeros(len(rows), *values.shape[1:]).index_add(0, item, values)
    return total / rows.to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))


def _mean_over_tokens(
    values: Float[Tensor, "batch token *expert"], mask: Bool[Tensor, "batch token"]
) -> Float[Tensor, " batch *expert"]:
    weight = mask.to(values.dtype).reshape(*mask.shape, *[1] * (values.dim() - 2))
    return (values * weight).sum(dim=1) / weight.sum(dim=1)
