"""Scoring the same questions several times, and joining the passes into one prediction.

A single short question fills no batch, and most of a pass is then spent on what it costs for any number of tokens. Its
samples run as rows of one batch, each what it would be alone up to rounding; everything else runs pass by pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from uq4ct.types import AS_IN_EQ_9, FeuReading, Prediction

Example = Mapping[str, Any]
Progress = Callable[[int, int], None]  # (items done, items in all)
Sample = TypeVar("Sample")
TOKENS = 512  # of one batch of samples: on a CPU ten of 128 tokens cost as much as their passes or more (docs/speed.md)


def score_samples(
    model: Any,
    samples: Sequence[Sample],
    within: Callable[[Any], AbstractContextManager[Any]],
    examples: Sequence[Example],
    *,
    ids: Sequence[str],
    pad_token_id: int,
    batch_size: int,
    progress: Progress | None = None,
    feu: FeuReading = AS_IN_EQ_9,
    together: bool = True,
) -> Prediction:
    """Score encoded questions once per sample, in the context that ``within`` makes of it.

    Where ``together`` allows it, and the question is a single one and short, ``within`` gets several samples at once as
    a tuple: one for each row of a batch that holds as many copies of the question.
    """
    parts: list[tuple] = []
    most = rows_together(examples, len(samples)) if together else 1
    while len(parts) < len(samples):
        several = tuple(samples[len(parts) : len(parts) + most])
        own = part_of(progress, len(parts), len(samples))
        with within(several if len(several) > 1 else several[0]):
            if len(several) == 1:
                parts.append(score_pass(model, examples, pad_token_id, batch_size, own, feu))
                continue
            found = _score_copies(model, examples[0], len(several), pad_token_id, feu)
        if found is None:
            most = 1  # no memory for copies
            continue
        parts += found
        if progress is not None:
            progress(len(parts) // len(samples), 1)
    return stack(parts, ids)


def rows_together(examples: Sequence[Example], samples: int) -> int:
    """Return how many samples of the questions are to run as rows of one batch.

    >>> short = {"input_ids": [5] * 100, "choice_ids": [1, 2]}
    >>> rows_together([short], 10), rows_together([short], 3), rows_together([short, short], 10)
    (5, 3, 1)
    """
    if len(examples) != 1 or "choice_ids" not in examples[0]:
        return 1  # option texts have rows of their own already
    return max(1, min(samples, TOKENS // max(1, len(examples[0]["input_ids"]))))


def score_members(
    model: Any,
    members: Sequence[str],
    examples: Sequence[Example],
    *,
    ids: Sequence[str],
    pad_token_id: int,
    batch_size: int,
    progress: Progress | None = None,
) -> Prediction:
    """Score encoded questions once with each named adapter of a PEFT model; one sample per member.

    The active adapter is the same afterwards. FEU and letter mass are averaged over the members.
    """

    @contextmanager
    def acting(member: str | tuple[str, ...]) -> Iterator[None]:
        if isinstance(member, tuple):
            with adapter_of_each_row(model, member):
                yield
            return
        model.set_adapter(member)
        yield

    active = model.active_adapter
    options: dict[str, Any] = {"ids": ids, "pad_token_id": pad_token_id, "batch_size": batch_size, "progress": progress}
    try:
        return score_samples(model, members, acting, examples, **options, together=takes_an_adapter_per_row(model))
    finally:
        model.set_adapter(active)


def takes_an_adapter_per_row(model: Any) -> bool:
    """Tell whether PEFT can use another adapter for each row: plain LoRAs on linears that see the rows as they are.

    OPT and mixtures of experts flatten their tokens ahead of some; an encoder's head belongs to its adapter.
    """
    from peft import LoraConfig

    from uq4ct.adapters.sites import flattens_tokens
    from uq4ct.encoders import kind_of
    from uq4ct.forward import base_of

    base: Any = base_of(model)
    experts = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    if kind_of(base) != "causal" or any(getattr(base.config, name, None) for name in experts):
        return False
    configs = model.peft_config.values()
    plain = all(
        type(one) is LoraConfig and not (one.use_dora or one.modules_to_save or one.trainable_token_indices)
        for one in configs
    )
    if not plain or not all(map(_takes_names, _lora_layers(model))):
        return False
    return not any(flattens_tokens(module) for module in base.modules())


@contextmanager
def adapter_of_each_row(model: Any, members: tuple[str, ...]) -> Iterator[None]:
    """Let each row of the batches that run inside have the named adapter of a PEFT model.

    PEFT's own ``adapter_names`` of a forward pass leaves hooks in place where the pass fails, as for want of memory.
    """

    def name(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "adapter_names": list(members)}

    handles = [layer.register_forward_pre_hook(name, with_kwargs=True) for layer in _lora_layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _lora_layers(model: Any) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _takes_names(layer: Any) -> bool:
    """Tell whether a LoRA's forward takes ``adapter_names``: those of some quantised linears take the input alone."""
    parameters = inspect.signature(type(layer).forward).parameters.values()
    return any(one.kind is one.VAR_KEYWORD for one in parameters)


def score_pass(
    model: Any,
    examples: Sequence[Example],
    pad_token_id: int,
    batch_size: int,
    progress: Progress | None = None,
    feu: FeuReading = AS_IN_EQ_9,
) -> tuple:
    """Score encoded questions in one forward pass each: (logits, mask, feu, letter_mass) of ``score_all``."""
    from uq4ct.scoring import score_all

    return score_all(model, examples, pad_token_id, batch_size, progress, feu)


def _score_copies(
    model: Any, example: Example, copies: int, pad_token_id: int, feu: FeuReading
) -> list[tuple] | None:
    """Return what ``score_pass`` does for each of the copies of a question, or None where there is no memory for them.

    All are in one batch: their order says whose sample is whose.
    """
    import torch

    from uq4ct.scoring import score_all

    try:
        found = score_all(model, [example] * copies, pad_token_id, copies, feu=feu, whole=True)
    except torch.OutOfMemoryError:
        return None
    return [tuple(None if one is None else one[row : row + 1] for one in found) for row in range(copies)]


def stack(parts: Sequence[tuple], ids: Sequence[str]) -> Prediction:
    """Join what several passes over the same questions gave, one sample per pass, into one prediction."""
    import numpy as np

    logits, masks, feus, masses = zip(*parts, strict=True)
    return Prediction(
        ids=tuple(ids),
        logits=np.concatenate(logits, axis=1),
        mask=masks[0],
        feu=None if feus[0] is None else np.mean(feus, axis=0),
        letter_mass=None if masses[0] is None else np.mean(masses, axis=0),
    )


def part_of(progress: Progress | None, number: int, passes: int) -> Progress | None:
    """Return the progress of one pass among several as progress of the whole."""
    if progress is None:
        return None
    return lambda done, total: progress((number * total + done) // passes, total)
