"""The made world: fictional entities, what is true of each, and how often the corpus says so.

A fact belongs to one of four strata. ``often`` and ``rare`` facts have one true value and are stated many or few times;
``contradicted`` facts have two values that hold with known shares; ``never`` facts are not stated at all. Any statement
may be a slip, that is name another value, with a small known probability: so few of them leave an ideal reader in doubt.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import exp

from uq4ct.tiny.lexicon import CODAS, FAR_KIND, KINDS, ONSETS, VOWELS, Kind, Relation

STRATA: dict[str, float] = {"often": 0.45, "rare": 0.2, "contradicted": 0.2, "never": 0.15}
SLIP = 0.1  # probability that one statement names a wrong value
RARE_STATEMENTS = (1, 2, 3)  # how many sentences of the corpus state a rare fact
SHARES = (0.5, 0.6, 0.7, 0.8)  # share of the first value of a contradicted fact


@dataclass(frozen=True)
class Size:
    """How many entities of each kind serve which purpose, and how many questions each file gets.

    ``practised`` entities are asked about in pre-training and nowhere else; all other purposes never are. An entity has
    one purpose, so no two of these share one.
    """

    practised: int
    train: int
    calibration: int
    validation: int
    test: int
    far: int
    questions: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Entity:
    """A fictional thing with an invented name and the one purpose that its facts serve."""

    name: str
    kind: Kind
    purpose: str


@dataclass(frozen=True)
class Fact:
    """One attribute of one entity: its values with their true probabilities, and the values its statements name."""

    entity: Entity
    relation: Relation
    stratum: str
    values: tuple[tuple[str, float], ...]
    stated: tuple[str, ...]

    @property
    def key(self) -> str:
        """A name for the fact that is unique in its world."""
        return f"{self.entity.name.lower()}-{self.relation.name}"


@dataclass(frozen=True)
class World:
    """Everything there is to know, in a fixed order that depends on size and seed alone."""

    seed: int
    size: Size
    facts: tuple[Fact, ...]

    def asked(self, *purposes: str) -> list[Fact]:
        """Return the facts of the relations that questions ask about, for entities of these purposes."""
        return [f for f in self.facts if f.entity.purpose in purposes and f.relation in f.entity.kind.asked]

    def near(self, *purposes: str) -> list[Fact]:
        """Return the facts of the relations that only the near shift asks about."""
        return [f for f in self.facts if f.entity.purpose in purposes and f.relation in f.entity.kind.near]


def make_world(size: Size, seed: int) -> World:
    """Draw a world.

    >>> from uq4ct.tiny.presets import TINY
    >>> world = make_world(TINY.size, seed=1)
    >>> world == make_world(TINY.size, seed=1), len({fact.key for fact in world.facts}) == len(world.facts)
    (True, True)
    """
    draw = random.Random(f"{seed}:world")
    entities = _entities(size, draw)
    facts = [_fact(entity, relation, draw) for entity in entities for relation in entity.kind.relations]
    return World(seed, size, tuple(facts))


def _entities(size: Size, draw: random.Random) -> list[Entity]:
    taken: set[str] = set()
    entities = []
    for kind in KINDS:
        for purpose in ("practised", "train", "calibration", "validation", "test"):
            entities += [Entity(_name(kind, taken, draw), kind, purpose) for _ in range(getattr(size, purpose))]
    return entities + [Entity(_name(FAR_KIND, taken, draw), FAR_KIND, "far") for _ in range(size.far)]


def _name(kind: Kind, taken: set[str], draw: random.Random) -> str:
    while True:
        start = draw.choice(ONSETS) + draw.choice(VOWELS) + draw.choice(CODAS)
        name = (start + draw.choice(kind.endings)).capitalize()
        if name not in taken:
            taken.add(name)
            return name


def _fact(entity: Entity, relation: Relation, draw: random.Random) -> Fact:
    stratum = draw.choices(tuple(STRATA), tuple(STRATA.values()))[0]
    first, second = draw.sample(relation.values, 2)
    share = draw.choice(SHARES) if stratum == "contradicted" else 1.0
    values = ((first, share), (second, round(1 - share, 10))) if stratum == "contradicted" else ((first, 1.0),)
    often = 4 + round(exp(draw.gauss(1.6, 0.6)))  # log-normal, 4 + about 5
    count = {"often": often, "contradicted": often + 4, "rare": draw.choice(RARE_STATEMENTS), "never": 0}[stratum]
    return Fact(entity, relation, stratum, values, tuple(_state(relation, values, draw) for _ in range(count)))


def _state(relation: Relation, values: tuple[tuple[str, float], ...], draw: random.Random) -> str:
    """Draw the value that one statement names: from the world, or a slip to any other value of the relation."""
    value = draw.choices([v for v, _ in values], [p for _, p in values])[0]
    return draw.choice([v for v in relation.values if v != value]) if draw.random() < SLIP else value
