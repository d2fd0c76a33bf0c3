"""Multiple-choice questions about the made world, each with the true probability of every choice.

``true_probabilities`` says with which probability the gold answer was drawn to be each choice: 1 for the true value of an
``often`` or ``rare`` fact, the two shares for a ``contradicted`` fact, 1/K for a ``never`` fact. Rows about rare facts
also carry ``ideal_probabilities``: what a reader should believe who knows how the world was made, has read every
statement of the corpus, and sees the choices.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from math import comb
from typing import Any

from uq4ct.tiny.lexicon import NEAR_STEMS, STEMS
from uq4ct.tiny.world import SLIP, Fact, World

SIZES = (3, 4, 5)  # numbers of choices, equally likely among those that hold the values a question must offer
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Row = dict[str, Any]


def make_splits(world: World) -> dict[str, list[Row]]:
    """Draw every question file of a world.

    >>> from uq4ct.tiny.presets import TINY
    >>> from uq4ct.tiny.world import make_world
    >>> splits = make_splits(make_world(TINY.size, seed=1))
    >>> {name: len(rows) for name, rows in splits.items()}["test"]
    2000
    """
    held_out = ("calibration", "validation", "test")
    sources = {
        "train": (world.asked("train"), STEMS),
        "calibration": (world.asked("calibration"), STEMS),
        "validation": (world.asked("validation"), STEMS),
        "test": (world.asked("test"), STEMS),
        "near": (world.near(*held_out), NEAR_STEMS),
        "far": (world.asked("far"), STEMS),
        "unanswerable": (world.asked(*held_out), STEMS),
        "relation": (world.near(*held_out), STEMS),
        "wording": (world.asked("test"), NEAR_STEMS),
    }
    splits = {}
    for name, count in world.size.questions:
        facts, stems = sources[name]
        facts = [fact for fact in facts if (fact.stratum == "never") == (name == "unanswerable")]
        splits[name] = _split(name, count, facts, stems, random.Random(f"{world.seed}:{name}"))
    return splits


def make_question(fact: Fact, stems: Sequence[str], draw: random.Random) -> Row:
    """Draw one question about a fact: 3 to 5 choices in random order, and a gold answer with its true probability."""
    choices = _choices(fact, draw)
    size = len(choices)
    shares = dict(fact.values)
    true = [1 / size] * size if fact.stratum == "never" else [shares.get(choice, 0.0) for choice in choices]
    answer = draw.choices(range(size), true)[0]
    row = {
        "question": phrase(draw.choice(stems), fact),
        "choices": choices,
        "answer": LETTERS[answer],
        "group": fact.entity.name,
        "stratum": fact.stratum,
        "true_probabilities": [round(p, 4) for p in true],
    }
    if fact.stratum == "rare":
        row["ideal_probabilities"] = [round(p, 4) for p in ideal_reader(fact, choices)]
    return row


def ideal_reader(fact: Fact, choices: Sequence[str]) -> list[float]:
    """Return the posterior of each choice for a reader of the whole corpus.

    With V values, n statements of which c name v, and slip probability e, Bayes' rule with a uniform prior gives
    ``p(v) ~ (1 - e)^c (e / (V - 1))^(n - c) P(choices | v)``. The choices are the m values that must be on offer (all S
    stated ones and v) and a uniform sample of the others: ``P(choices | v) = P(K | m) / binomial(V - m, K - m)``.
    """
    stated = Counter(fact.stated)
    count, values = len(fact.stated), len(fact.relation.values)
    weights = []
    for choice in choices:
        likelihood = (1 - SLIP) ** stated[choice] * (SLIP / (values - 1)) ** (count - stated[choice])
        must = len(set(stated) | {choice})
        weights.append(likelihood / len(_sizes(must)) / comb(values - must, len(choices) - must))
    return [weight / sum(weights) for weight in weights]


def render(row: Row) -> str:
    """Write a question as the prompt that the model is pre-trained on (the ``plain`` prompt pack).

    >>> render({"question": "Where is it?", "choices": ["lake", "hill"]})
    'Question: Where is it?\\nA. lake\\nB. hill\\nAnswer:'
    """
    context = f"{row['context']}\n" if row.get("context") else ""
    lines = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, row["choices"], strict=False))
    return f"{context}Question: {row['question']}\n{lines}Answer:"


def _split(name: str, count: int, facts: list[Fact], stems: Sequence[str], draw: random.Random) -> list[Row]:
    """Ask about every fact in turn, in a new order each round, never the same question twice."""
    rows: list[Row] = []
    seen = set()
    for number, fact in enumerate(_rounds(facts, draw)):
        row = make_question(fact, stems, draw)
        content = (row["question"], tuple(row["choices"]))
        if content in seen:
            continue
        seen.add(content)
        rows.append({"id": f"{name}-{fact.key}-{number // len(facts) + 1}", **row})
        if len(rows) == count:
            break
    return rows


def _rounds(facts: list[Fact], draw: random.Random) -> Iterator[Fact]:
    while True:
        yield from draw.sample(facts, len(facts))


def _sizes(must: int) -> list[int]:
    return [size for size in SIZES if size >= must]


def _choices(fact: Fact, draw: random.Random) -> list[str]:
    """Choose what is true, what a rare fact's statements name, and random other values, in random order."""
    needed = [value for value, _ in fact.values] if fact.stratum != "never" else []
    if fact.stratum == "rare":  # a slip must be on offer, or the choices would tell which statement to trust
        needed = list(dict.fromkeys([*needed, *fact.stated]))
    others = [value for value in fact.relation.values if value not in needed]
    choices = needed + draw.sample(others, draw.choice(_sizes(len(needed))) - len(needed))
    draw.shuffle(choices)
    return choices


def phrase(template: str, fact: Fact, value: str = "") -> str:
    """Fill a phrasing of ``lexicon.py`` with a fact's words and, in a statement, the value it names."""
    entity, relation = fact.entity, fact.relation
    question = relation.question.format(entity=entity.name)
    verb = relation.verb.format(value=value)
    return template.format(
        question=question, verb=verb, noun=relation.noun, kind=entity.kind.name, entity=entity.name, value=value
    )
