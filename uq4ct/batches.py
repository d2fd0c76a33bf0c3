"""Which examples go into which update: the same for a seed whatever the method, accumulation or number of processes."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from uq4ct.errors import UserError

Example = Mapping[str, Any]


class EffectiveBatches(Sampler[list[int]]):
    """Deal a shuffled epoch out to micro-batches, one effective batch (all accumulation steps and ranks) by one.

    The examples of an effective batch depend on seed, epoch and its size alone. ``lengths`` (one per example) are used
    where that cannot change: a batch of several micro-batches is dealt from its shortest example to its longest, so
    that less is padded. In the last, smaller batch a rank may get no example in a micro-step: it then gets one as a
    filler, written ``~row``, that must weigh nothing.

    >>> list(EffectiveBatches(7, micro_batch=2, accumulation=2, shuffle=False))
    [[0, 1], [2, 3], [4, 5], [6]]
    >>> list(EffectiveBatches(4, micro_batch=2, accumulation=2, shuffle=False, lengths=[9, 3, 8, 4]))
    [[1, 3], [2, 0]]
    >>> [list(EffectiveBatches(5, 1, 1, ranks=2, rank=rank, shuffle=False)) for rank in (0, 1)]
    [[[0], [2], [4]], [[1], [3], [-5]]]
    """

    def __init__(
        self,
        examples: int,
        micro_batch: int,
        accumulation: int,
        ranks: int = 1,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        lengths: Sequence[int] | None = None,
    ):
        self.micro_step = micro_batch * ranks
        self.size = self.micro_step * accumulation
        self.examples = examples - examples % self.size if drop_last else examples
        self.ranks, self.rank, self.seed, self.shuffle, self.epoch = ranks, rank, seed, shuffle, 0
        self.total = examples
        self.lengths = lengths if accumulation > 1 else None

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffle of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.examples // self.micro_step)  # the same on every rank, so that collectives match

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        for start in range(0, self.examples, self.micro_step):
            dealt = order[start : min(start + self.micro_step, self.examples)]
            mine = dealt[self.rank :: self.ranks]
            yield mine or [~dealt[0]]

    def _order(self) -> list[int]:
        order = list(range(self.total))
        if self.shuffle:
            # a generator of its own: what a method's initialisation or dropout drew cannot change the order
            digest = hashlib.sha256(f"{self.seed}/{self.epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            order = torch.randperm(self.total, generator=generator).tolist()
        if (lengths := self.lengths) is None:
            return order
        batches = (order[start : start + self.size] for start in range(0, self.total, self.size))
        return [row for batch in batches for row in sorted(batch, key=lambda row: lengths[row])]


def held_out(examples: int, every: int, seed: int, epoch: int | None = None) -> Bool[Tensor, " examples"]:
    """Mark one example in ``every``: the part whose turn it is in this epoch, or for None the same part in all epochs.

    >>> [held_out(10, 5, seed=1, epoch=epoch).sum().item() for epoch in range(3)]
    [2, 2, 2]
    """
    digest = hashlib.sha256(f"held out/{seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    part = torch.randperm(examples, generator=generator) * every // examples
    return part == (0 if epoch is None else epoch % every)


def loader(
    examples: Sequence[Example],
    batches: EffectiveBatches,
    collator: Callable[[list[Example]], dict[str, Tensor]],
    **options: Any,
) -> DataLoader:
    """Return a data loader whose batches carry ``row``: the index of each example, -1 for a weightless filler."""
    # the loader's own generator spares the global one, so that the stream of dropout masks is the same after a resume
    own = torch.Generator()
    return DataLoader(
        _Numbered(examples), batch_sampler=batches, collate_fn=_WithRows(collator), generator=own, **options
    )


def check_examples(examples: Sequence[Example]) -> None:
    """Raise UserError naming every example that cannot be trained on (at most twenty of them).

    >>> check_examples([{"input_ids": [5, 6], "choice_ids": [1, 2], "answer": -100}])
    Traceback (most recent call last):
    uq4ct.errors.UserError: training example 0: answer -100 is not one of its 2 choices
    """
    if not len(examples):
        raise UserError("there is no training example")
    faults = ((row, _fault(examples[row])) for row in range(len(examples)))
    problems = [f"training example {row}: {fault}" for row, fault in faults if fault]
    if problems:
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise UserError(problems[:20] + more)


def fingerprint(examples: Sequence[Example]) -> str:
    """Return a SHA-256 over the token ids and answers of encoded examples, in order."""
    digest = hashlib.sha256()
    for row in range(len(examples)):
        example = examples[row]
        for tokens in (example["input_ids"], *example.get("option_ids", ()), example.get("choice_ids", ())):
            digest.update(array("q", [len(tokens), *tokens]).tobytes())
        digest.update(array("q", [example["answer"]]).tobytes())
    return digest.hexdigest()


class _Numbered(Dataset):
    """Look an example up together with its row; ``~row`` is the same example as a filler."""

    def __init__(self, examples: Sequence[Example]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> tuple[int, Example]:
        return (row, self.examples[row]) if row >= 0 else (-1, self.examples[~row])


class _WithRows:
    """Collate numbered examples; a class, so that worker processes can be sent one."""

    def __init__(self, collator: Callable[[list[Example]], dict[str, Tensor]]):
        self.collator = collator

    def __call__(self, items: list[tuple[int, Example]]) -> dict[str, Tensor]:
        batch = self.collator([example for _, example in items])
        return {**batch, "row": torch.tensor([row for row, _ in items])}


def _fault(example: Example) -> str | None:
    if "labels" in example:
        return "has 'labels', which Trainer takes for tokens; give the index of the gold choice as 'answer'"
    missing = [name for name in ("input_ids", "answer") if name not in example]
    if missing or not ("choice_ids" in example or "option_ids" in example):
        return f"expected 'input_ids', 'answer' and 'choice_ids' or 'option_ids', got {', '.join(map(repr, example))}"
    choices = len(example["choice_ids"] if "choice_ids" in example else example["option_ids"])
    if not len(example["input_ids"]):
        return "has no prompt token"
    if not 0 <= example["answer"] < choices:
        return f"answer {example['answer']} is not one of its {choices} choices"
    return None
