"""The answer loss: cross entropy at the answer position (section 3.2 of the paper), and who was right."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from uq4ct.losses.checks import require

Reduction = Literal["mean", "sum", "none"]


def answer_loss(
    choice_logits: Float[Tensor, "batch choice"],
    answer: Int[Tensor, " batch"],
    log_normalizer: Float[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Float[Tensor, "*batch"]:
    """Return the negative log-likelihood of the gold answer, in nats.

    Without ``log_normalizer`` the softmax runs over the item's own choices, which is the distribution that is evaluated
    (``answer_loss="choices"``); with the logarithm of the vocabulary's normaliser it runs over the whole vocabulary
    (``"vocabulary"``). Choices that an item does not have are ``-inf``. Raises ValueError for an unknown answer (-100)
    or one that the item does not have.

    ``label_smoothing`` eps gives (1 - eps) NLL(gold) + eps times the mean NLL of the item's own K choices, the gold one
    included, under the same softmax: over the whole vocabulary, too, it goes to the item's own letters alone.

    >>> import torch
    >>> logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.6, 0.0]]))  # the second item has two choices
    >>> answer_loss(logits, torch.tensor([0, 1]), reduction="none").exp()
    tensor([2.0000, 1.3333])
    >>> answer_loss(logits, torch.tensor([0, 1]), log_normalizer=torch.zeros(2), reduction="none").exp()
    tensor([2.0000, 1.6667])
    >>> answer_loss(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([2.0]), label_smoothing=0.1)
    tensor(2.)
    """
    if log_normalizer is None:
        log_normalizer = choice_logits.logsumexp(dim=-1)
    gold = choice_logits.gather(-1, answer.clamp(min=0)[:, None]).squeeze(-1)
    require(
        ((answer >= 0) & ~gold.isneginf()).all(),
        "every training example needs an answer among its own choices; -100 means unknown and cannot be trained on",
    )
    target = gold
    if label_smoothing:
        own = ~choice_logits.isneginf()
        target = (1 - label_smoothing) * gold
        target = target + label_smoothing * choice_logits.masked_fill(~own, 0.0).sum(dim=-1) / own.sum(dim=-1)
    return reduce(log_normalizer - target, reduction)


def is_correct(choice_logits: Float[Tensor, "batch choice"], answer: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """Tell which examples have their gold answer as the most likely of their own choices: 1{argmax = y*} of Eq. 10.

    >>> import torch
    >>> is_correct(torch.tensor([[1.0, 2.0], [3.0, -torch.inf]]), torch.tensor([0, 0])).tolist()
    [False, True]
    """
    return choice_logits.detach().argmax(dim=-1) == answer


def reduce(per_example: Float[Tensor, " batch"], reduction: Reduction) -> Float[Tensor, "*batch"]:
    """Return the mean or the sum over examples, or the examples themselves.

    >>> import torch
    >>> reduce(torch.tensor([1.0, 3.0]), "mean").item()
    2.0
    """
    match reduction:
        case "mean":
            return per_example.mean()
        case "sum":
            return per_example.sum()
        case "none":
            return per_example
    raise ValueError(f"reduction is 'mean', 'sum' or 'none', got {reduction!r}")
