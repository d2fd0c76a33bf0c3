"""Which tokens of a question the questions fitted on have, too: a familiarity that needs a tokenizer and no model."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from uq4ct.manifest import write_atomically

VOCABULARY = "vocabulary.json"  # in a run folder: the tokens of the questions fitted on, as ascending numbers


def vocabulary(examples: Sequence[Mapping[str, Any]]) -> frozenset[int]:
    """Return the tokens that a model sees of encoded questions, those of the prompt's own wording included."""
    known: set[int] = set()
    for example in examples:
        known.update(example["input_ids"], *example.get("option_ids", ()))
    return frozenset(known)


def shares(examples: Sequence[Mapping[str, Any]], known: Collection[int]) -> list[float]:
    """Return which share of the tokens that a model sees of each encoded question are among the known ones.

    >>> shares([{"input_ids": [5, 6, 7, 5]}, {"input_ids": [5], "option_ids": [[6], [8]]}], {5, 6})
    [0.75, 0.75]
    """
    return [sum(token in known for token in seen) / len(seen) for seen in map(tokens, examples)]


def tokens(example: Mapping[str, Any]) -> list[int]:
    """Return the tokens that a model sees of an encoded question: with every option of its own those of the prompt.

    >>> tokens({"input_ids": [5, 6], "option_ids": [[7], [8, 9]]}), tokens({"input_ids": [5, 6]})
    ([5, 6, 7, 5, 6, 8, 9], [5, 6])
    """
    return [token for option in example.get("option_ids", [[]]) for token in (*example["input_ids"], *option)]


def write(folder: Path, examples: Sequence[Mapping[str, Any]]) -> None:
    """Write the vocabulary of the questions fitted on into a run folder."""
    write_atomically(folder / VOCABULARY, json.dumps(sorted(vocabulary(examples))) + "\n")


def read(folder: Path) -> frozenset[int] | None:
    """Return the vocabulary of a run folder; None where it has none, as those of former versions."""
    path = folder / VOCABULARY
    return frozenset(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
