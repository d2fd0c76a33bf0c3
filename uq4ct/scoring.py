"""Read a model's answers: one forward pass, the logits of each question's own choices, and what the routers did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from uq4ct.adapters.router import LayerRouting, record_routing
from uq4ct.continuations import longest_by_short_factors, option_logits, why_whole_texts
from uq4ct.encoders import Kind, has_segments, kind_of, positions_taken
from uq4ct.errors import UserError
from uq4ct.forward import base_of, forward
from uq4ct.losses.balance import expert_counts
from uq4ct.losses.calibration import functional_uncertainty
from uq4ct.losses.checks import require
from uq4ct.losses.objective import Objective
from uq4ct.types import AS_IN_EQ_9, FeuReading

Example = Mapping[str, Any]
Batch = dict[str, Tensor]
Row = TypeVar("Row")


class Scores(NamedTuple):
    """What one forward pass says about a batch.

    ``choice_logits`` are float32 (float64 for a float64 model), ``-inf`` where an item has no such choice.
    ``log_normalizer`` is the logsumexp over the vocabulary at the answer position, so that
    ``exp(logsumexp(choice_logits) - log_normalizer)`` is the letter mass; for option texts, whose choice logits are
    summed log-likelihoods, it is 0, and for an encoder, which has no vocabulary to answer from, None. ``routing_mask``
    marks the real prompt tokens; where an encoder reads a question in several rows, ``item`` is the question of each.
    """

    choice_logits: Float[Tensor, "batch choice"]
    log_normalizer: Float[Tensor, " batch"] | None
    routing: tuple[LayerRouting, ...]
    routing_mask: Bool[Tensor, "row token"]
    item: Int[Tensor, " row"] | None = None

    def of_rows(self, of_items: Tensor) -> Tensor:
        """Give every row of the routing what its question has."""
        return of_items if self.item is None else of_items[self.item]


class Losses(NamedTuple):
    """The loss of one batch (Eq. 11), ready for ``backward``, and what to log; None where there is no router."""

    loss: Float[Tensor, ""]
    answer: Float[Tensor, ""]
    balance: Float[Tensor, ""] | None
    calibration: Float[Tensor, ""] | None
    accuracy: Float[Tensor, ""]
    feu: Float[Tensor, ""] | None
    expert_counts: list[Float[Tensor, " expert"]]


def uq4ct_loss(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    objective: Objective = Objective(calibration_weight=1.0, balance_weight=0.01),  # noqa: B008, a frozen value
    step: int = 0,
) -> Losses:
    """Return the UQ4CT loss of one collated batch, for training loops of your own; ``step`` counts completed updates.

    Every term is the mean over this batch. With gradient accumulation or several processes weigh each batch by its
    share of the examples, as ``CalibratedTrainer`` does. Raises ValueError for an objective whose calibration needs
    questions of its own, which a batch does not tell.
    """
    if objective.calibration_questions != "all":
        raise ValueError(f"calibration_questions '{objective.calibration_questions}' needs CalibratedTrainer")
    scores = score(model, batch)
    terms = objective.terms(*scores[:2], batch["answer"], *scores[2:4], item=scores.item)
    answer, zero = terms.answer.mean(), terms.answer.new_zeros(())
    calibration = None if terms.calibration is None else terms.calibration.mean()
    loss = objective.combine(
        answer,
        zero if terms.balance is None else terms.balance,
        zero if calibration is None else calibration,
        step,
    )
    return Losses(
        loss,
        answer,
        terms.balance,
        calibration,
        terms.correct.float().mean(),
        None if terms.feu is None else terms.feu.mean(),
        expert_counts(scores.routing, scores.routing_mask),
    )


def collate(examples: Sequence[Example], pad_token_id: int, padding_side: str = "left") -> Batch:
    """Return encoded examples as one padded batch of tensors.

    Letters (``choice_ids``): ``input_ids`` and ``attention_mask`` (batch, token), ``choice_ids`` and ``choice_mask``
    (batch, choice), ``answer`` (batch). Options (``option_ids``): ``input_ids``, ``attention_mask`` and
    ``option_mask``, true on the option's own tokens, (batch, choice, token), with ``choice_mask`` and ``answer`` as
    before. Both carry ``answer_window``, true where a logit is needed, over only as many last positions as needed: its
    width tells how many logits to compute without waiting for the device. ``padding_side`` as ``padding_side_of`` says.

    >>> batch = collate([{"input_ids": [5, 6, 7], "choice_ids": [1, 2, 3], "answer": 2},
    ...                  {"input_ids": [5, 6], "choice_ids": [1, 2], "answer": 0}], pad_token_id=0)
    >>> batch["input_ids"].tolist(), batch["choice_mask"].tolist(), batch["answer"].tolist()
    ([[5, 6, 7], [0, 5, 6]], [[True, True, True], [True, True, False]], [2, 0])
    >>> batch["answer_window"].tolist()
    [[True], [True]]
    """
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side is 'left' or 'right', got {padding_side!r}")
    kinds = {"option_ids" if "option_ids" in example else "choice_ids" for example in examples}
    if len(kinds) != 1:
        raise ValueError("one batch holds either examples with 'choice_ids' or with 'option_ids', not both")
    pad = _collate_options if kinds == {"option_ids"} else _collate_letters
    batch = pad(examples, pad_token_id, padding_side)
    return {**batch, "answer": torch.tensor([example["answer"] for example in examples])}


def score(model: nn.Module, batch: Mapping[str, Tensor]) -> Scores:
    """Score the choices of a collated batch in one forward pass; gradients flow if they are enabled.

    The model may be any causal LM, wrapped by PEFT or DDP or not. Logits are computed at the answer position only where
    the model can (``logits_to_keep``), the softmax is float32 whatever the model's dtype, and position ids follow the
    mask where the model takes them, so that padding changes nothing. Of an encoder the head's scores are read.

    In evaluation mode and without gradients a prompt is computed once, and its option texts continue it in passes of
    their own, for every model where that is exact (``uq4ct.continuations.why_whole_texts``).
    """
    if (kind := kind_of(base_of(model))) != "causal":
        return _score_by_head(model, batch, kind)
    if "option_mask" in batch:
        without_gradients = not (torch.is_grad_enabled() or model.training)
        if without_gradients and why_whole_texts(model) is None:
            choice_logits, routing, prompt = option_logits(model, batch)
            return Scores(choice_logits, torch.zeros_like(choice_logits[:, 0]), routing, prompt)
        return _score_options(model, batch)
    mask = batch["attention_mask"].bool()
    window = batch["answer_window"] if "answer_window" in batch else _window(_ends(mask))
    logits, routing = forward(model, batch["input_ids"], mask, window.shape[-1])
    at_answer = logits[torch.arange(len(logits), device=logits.device), window.int().argmax(dim=-1)]
    choice_logits = at_answer.gather(-1, batch["choice_ids"]).masked_fill(~batch["choice_mask"], -torch.inf)
    return Scores(choice_logits, at_answer.logsumexp(dim=-1), routing, mask)


def score_all(
    model: nn.Module,
    examples: Sequence[Example],
    pad_token_id: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
    feu: FeuReading = AS_IN_EQ_9,
    whole: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Score every example in evaluation mode and return (logits, mask, feu, letter_mass) in input order.

    ``logits`` are (item, 1, choice) float64, ``-inf`` where ``mask`` (item, choice) is false. ``feu`` (item,) is Eq. 9,
    a CONFIDENCE, read as the argument says, None without a router; ``letter_mass`` (item,) is None for option texts.
    ``progress`` is called with (done, total). ``whole`` batches are never cut. Raises UserError as ``in_batches`` does.
    """

    def work(batch: Batch) -> list[tuple]:
        with torch.inference_mode():
            return _score_rows(model, batch, feu)

    return _as_arrays(in_batches(model, examples, pad_token_id, batch_size, work, progress, whole))


def in_batches(
    model: nn.Module,
    examples: Sequence[Example],
    pad_token_id: int,
    batch_size: int,
    work: Callable[[Batch], Sequence[Row]],
    progress: Callable[[int, int], None] | None = None,
    whole: bool = False,
) -> list[Row]:
    """Return what ``work`` makes of each example, in input order, with the model in evaluation mode.

    ``work`` gets a collated batch on the model's device and returns one result per example. Longest examples go first,
    so that a batch too big for the GPU shows at once: it is halved and tried again unless it has to be ``whole``.
    Raises UserError naming every example longer than the model's context.
    """
    check_lengths(model, examples)
    by_length = sorted(range(len(examples)), key=lambda row: -length(examples[row]))
    device, side = next(model.parameters()).device, padding_side_of(model)
    switch = longest_by_short_factors(getattr(base_of(model), "config", None))
    done: dict[int, Row] = {}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        while len(done) < len(examples):
            rows = by_length[len(done) : len(done) + batch_size]
            if length(examples[rows[0]]) > switch:  # the rest would be read by other positions than alone
                rows = [row for row in rows if length(examples[row]) > switch]
            try:
                batch = collate([examples[row] for row in rows], pad_token_id, side)
                found = work({name: tensor.to(device) for name, tensor in batch.items()})
            except torch.OutOfMemoryError:
                if batch_size == 1 or whole:
                    raise
                batch_size = max(1, batch_size // 2)
                torch.cuda.empty_cache()
                continue
            done.update(zip(rows, found, strict=True))
            if progress is not None:
                progress(len(done), len(examples))
    finally:
        for module, training in modes.items():
            module.training = training
    return [done[row] for row in range(len(examples))]


def check_lengths(model: nn.Module, examples: Sequence[Example]) -> None:
    """Raise UserError naming every example that is longer than the model's context; nothing is ever cut off here."""
    limit = context_length(model)
    if limit is None:
        return
    problems = [
        f"example {example.get('id', row)}: {length(example)} tokens, but the model's context is {limit}; shorten its "
        "context field, leave it out, or use a model with a longer context"
        for row, example in enumerate(examples)
        if length(example) > limit
    ]
    if problems:
        raise UserError(problems)


def context_length(model: nn.Module) -> int | None:
    """Return how many positions the model was built for, or None where its configuration does not say."""
    config: Any = getattr(base_of(model), "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    return limit - positions_taken(config) if isinstance(limit, int) else None


def padding_side_of(model: nn.Module) -> str:
    """Return where batches for a model are padded: an encoder's head reads the first token, so behind the text."""
    return "left" if kind_of(base_of(model)) == "causal" else "right"


def items_of_rows(model: nn.Module, batch: Mapping[str, Tensor]) -> Int[Tensor, " row"] | None:
    """Return the question of each row that the model sees of a batch, or None where each question is one row."""
    if "option_mask" not in batch:
        return None
    there = batch["choice_mask"]
    if kind_of(base_of(model)) == "causal":
        there = torch.ones_like(there)
    return there.nonzero()[:, 0]


def _collate_letters(examples: Sequence[Example], pad_token_id: int, side: str) -> Batch:
    input_ids, mask = _pad([example["input_ids"] for example in examples], pad_token_id, side)
    choice_ids, choice_mask = _pad([example["choice_ids"] for example in examples], 0, "right")
    return {
        "input_ids": input_ids,
        "attention_mask": mask.long(),
        "choice_ids": choice_ids,
        "choice_mask": choice_mask,
        "answer_window": _window(_ends(mask)),
        **_segments(examples, side),
    }


def _segments(examples: Sequence[Example], side: str) -> Batch:
    """Return which of two texts each token of an encoder's sequences belongs to, where the examples say so."""
    if "segment_ids" not in examples[0]:
        return {}
    return {"segment_ids": _pad([example["segment_ids"] for example in examples], 0, side)[0]}


def _collate_options(examples: Sequence[Example], pad_token_id: int, side: str) -> Batch:
    choices = max(len(example["option_ids"]) for example in examples)
    real = [[choice < len(example["option_ids"]) for choice in range(choices)] for example in examples]
    # an item with fewer choices repeats its first one: every row is a real text, and choice_mask leaves it out later
    options = [example["option_ids"][choice if there else 0] for example, row in zip(examples, real, strict=True)
               for choice, there in enumerate(row)]  # fmt: skip
    prompts = [example["input_ids"] for example in examples for _ in range(choices)]
    input_ids, mask = _pad([[*p, *o] for p, o in zip(prompts, options, strict=True)], pad_token_id, side)
    ends = [[0] * len(p) + [1] * len(o) for p, o in zip(prompts, options, strict=True)]
    option_mask = _pad(ends, 0, side)[0].bool()
    predicts_option = torch.cat([option_mask[:, 1:], torch.zeros_like(option_mask[:, :1])], dim=-1)
    tensors = {"input_ids": input_ids, "attention_mask": mask.long(), "option_mask": option_mask}
    tensors["answer_window"] = _window(predicts_option)
    shaped = {name: tensor.unflatten(0, (len(examples), choices)) for name, tensor in tensors.items()}
    return {**shaped, "choice_mask": torch.tensor(real)}


def _pad(
    rows: Sequence[Sequence[int]], value: int, side: str
) -> tuple[Int[Tensor, "row token"], Bool[Tensor, "row token"]]:
    width = max(map(len, rows))
    values, mask = torch.full((len(rows), width), value), torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        values[number, place], mask[number, place] = torch.tensor(row), True
    return values, mask


def _ends(mask: Bool[Tensor, "row token"]) -> Bool[Tensor, "row token"]:
    """Mark each row's last real position, found by the mask: with right padding it is not the last column."""
    return mask & (mask.flip(-1).cumsum(dim=-1).flip(-1) == 1)


def _window(needed: Bool[Tensor, "row token"]) -> Bool[Tensor, "row last"]:
    """Cut off the positions before the first that any row needs."""
    return needed[:, int(needed.any(dim=0).int().argmax()) :]


def _score_options(model: nn.Module, batch: Mapping[str, Tensor]) -> Scores:
    """Score every option in a row of its own, prompt and all: gradients flow, and any causal model can."""
    items, choices, _ = batch["input_ids"].shape
    input_ids, mask = batch["input_ids"].flatten(0, 1), batch["attention_mask"].bool().flatten(0, 1)
    option_mask = batch["option_mask"].flatten(0, 1)
    predicts_option = torch.cat([option_mask[:, 1:], torch.zeros_like(option_mask[:, :1])], dim=-1)
    window = batch["answer_window"].flatten(0, 1) if "answer_window" in batch else _window(predicts_option)
    logits, routing = forward(model, input_ids, mask, window.shape[-1])
    following = input_ids.roll(-1, dims=-1)[:, -window.shape[-1] :]
    log_probs = logits.log_softmax(dim=-1).gather(-1, following[..., None]).squeeze(-1)
    choice_logits = log_probs.masked_fill(~window, 0.0).sum(dim=-1).view(items, choices)
    choice_logits = choice_logits.masked_fill(~batch["choice_mask"], -torch.inf)
    # the prompt's tokens come before the option's and do not see them: the first choice's row speaks for all
    first = tuple(LayerRouting(*(part.unflatten(0, (items, choices))[:, 0] for part in layer)) for layer in routing)
    prompt = (mask & ~option_mask).unflatten(0, (items, choices))[:, 0]
    return Scores(choice_logits, torch.zeros_like(choice_logits[:, 0]), first, prompt)


def _score_by_head(model: nn.Module, batch: Mapping[str, Tensor], kind: Kind) -> Scores:
    """Read an encoder's head: the score of each choice that an item has, a sequence each, or those of its classes."""
    pairs = kind == "multiple_choice"
    if pairs != ("option_mask" in batch):
        raise ValueError(
            f"a {kind} head needs examples with {'option_ids, one per choice' if pairs else 'choice_ids, its classes'}"
        )
    real = batch["choice_mask"]
    # only sequences that there are: an item with fewer choices has fewer rows
    names = ("input_ids", "attention_mask", "option_mask" if pairs else "segment_ids")
    rows = {name: batch[name][real] if pairs else batch[name] for name in names if name in batch}
    mask = rows["attention_mask"].bool()
    require(mask[:, 0].all(), "an encoder's head reads the first token; collate with padding_side='right'")
    inputs = {"input_ids": rows["input_ids"], "attention_mask": mask.long()}
    if names[-1] in rows and has_segments(base_of(model).config):
        inputs["token_type_ids"] = rows[names[-1]].long()
    if pairs:
        inputs = {name: tensor[:, None] for name, tensor in inputs.items()}  # each a question of one choice
    with record_routing(model) as routing:
        logits = model(**inputs).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if pairs:
        choice_logits = logits.new_full(real.shape, -torch.inf).masked_scatter(real, logits)
        return Scores(choice_logits, None, routing.layers, mask, items_of_rows(model, batch))
    choice_logits = logits.gather(-1, batch["choice_ids"]).masked_fill(~real, -torch.inf)
    return Scores(choice_logits, None, routing.layers, mask)


def _score_rows(model: nn.Module, batch: Batch, reading: FeuReading) -> list[tuple]:
    """Return (logits of the item's own choices, FEU or None, letter mass or None) of each example."""
    scores = score(model, batch)
    logits, unknown = scores.choice_logits.double(), [None] * len(scores.choice_logits)
    feu = mass = unknown
    if scores.routing:
        feu = functional_uncertainty(scores.routing, scores.routing_mask, *reading, item=scores.item).tolist()
    if "option_mask" not in batch and scores.log_normalizer is not None:
        mass = (logits.logsumexp(dim=-1) - scores.log_normalizer.double()).exp().tolist()
    choices = batch["choice_mask"].sum(dim=-1).tolist()
    rows = [row[:number] for row, number in zip(logits.cpu().numpy(), choices, strict=True)]
    return list(zip(rows, feu, mass, strict=True))


def _as_arrays(scored: Sequence[tuple]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    widest = max((len(row) for row, _, _ in scored), default=0)
    logits = np.full((len(scored), 1, widest), -np.inf)
    for item, (row, _, _) in enumerate(scored):
        logits[item, 0, : len(row)] = row
    mask = np.arange(widest) < np.array([len(row) for row, _, _ in scored], dtype=int)[:, None]
    feu, mass = (_column([entry[place] for entry in scored]) for place in (1, 2))
    return logits, mask, feu, mass


def _column(values: list) -> np.ndarray | None:
    return None if not values or None in values else np.array(values)


def length(example: Example) -> int:
    """Return how many tokens a question takes, with its longest option where those are scored."""
    return len(example["input_ids"]) + max(map(len, example.get("option_ids", [[]])))
