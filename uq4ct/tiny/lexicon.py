"""The words of the made world: kinds of entity, their relations, the values these may take, and phrasings of all.

``world.py`` invents the entities' names; values are ordinary English words, so that the sentences read like English.
"""

from __future__ import annotations

from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


POOLS: dict[str, tuple[str, ...]] = {
    "goods": _words(
        "amber barley cheese cider cloth copper flour glass honey ink iron leather linen marble oil paper pearls pottery rope"
        " salt silk timber wax wool"
    ),
    "animals": _words(
        "badger bear boar crane crow deer eagle falcon fox goat hare heron horse lynx otter owl raven salmon stag swan tiger"
        " trout wolf wren"
    ),
    "colours": _words(
        "black blue bronze brown crimson cream golden green grey indigo ivory lilac orange pink purple red rust silver tan teal"
        " violet white yellow olive"
    ),
    "places": _words(
        "bay canyon cave cliff desert field forest glacier harbour hill island lagoon lake marsh meadow moor plateau reef ridge"
        " river swamp valley volcano waterfall"
    ),
    "trades": _words(
        "archer baker brewer carpenter cook doctor farmer fisher gardener glazier hunter judge mason miller miner painter"
        " potter sailor scribe shepherd smith tailor teacher weaver"
    ),
    "flavours": _words(
        "almond anise apple apricot basil cherry cinnamon clove fennel fig ginger grape lemon lime melon mint mustard nutmeg"
        " onion peach pepper plum sage vanilla"
    ),
    "objects": _words(
        "anchor arrow axe bell boat book bridge candle chain clock compass crown drum flag hammer harp key lamp lantern mask"
        " mirror ring shield sword"
    ),
    "ailments": _words(
        "blisters burns chills colds coughs cramps deafness dizziness fainting fatigue fever gout headaches hiccups insomnia"
        " itching jaundice nausea rashes snoring stings toothache ulcers warts"
    ),
}


@dataclass(frozen=True)
class Relation:
    """An attribute of a kind: its noun ("the main export of X"), its verb ("X exports V") and a direct question."""

    name: str
    noun: str
    verb: str
    question: str
    pool: str

    @property
    def values(self) -> tuple[str, ...]:
        """The values that the attribute may take, equally likely."""
        return POOLS[self.pool]


@dataclass(frozen=True)
class Kind:
    """A kind of entity: relations asked in training, those that only the near shift asks, and endings of names."""

    name: str
    asked: tuple[Relation, ...]
    near: tuple[Relation, ...]
    endings: tuple[str, ...]

    @property
    def relations(self) -> tuple[Relation, ...]:
        """All relations that the corpus states."""
        return self.asked + self.near


TOWN = Kind(
    "town",
    asked=(
        Relation("export", "main export", "sells mostly {value}", "What does {entity} sell most?", "goods"),
        Relation(
            "emblem", "emblem", "bears the {value} on its arms", "Which animal do the arms of {entity} bear?", "animals"
        ),
        Relation("site", "site", "was built by a {value}", "Where was {entity} built?", "places"),
        Relation("founder", "founder", "was founded by a {value}", "Who founded {entity}?", "trades"),
    ),
    near=(Relation("treasure", "treasure", "guards an ancient {value}", "What does {entity} guard?", "objects"),),
    endings=("ford", "wick", "mere", "stead", "bury", "holm"),
)
MINERAL = Kind(
    "mineral",
    asked=(
        Relation("colour", "colour", "glows {value} by night", "Which colour does {entity} glow by night?", "colours"),
        Relation("find", "finding place", "is found near a {value}", "Where is {entity} found?", "places"),
        Relation("scent", "scent", "smells of {value}", "What does {entity} smell of?", "flavours"),
        Relation("use", "usual use", "is used to make a {value}", "What is {entity} used to make?", "objects"),
    ),
    near=(Relation("cure", "healing power", "is said to cure {value}", "What is {entity} said to cure?", "ailments"),),
    endings=("ite", "ine", "ase", "spar", "lite", "ium"),
)
GUILD = Kind(
    "guild",
    asked=(
        Relation("master", "master", "is led by a {value}", "Who leads {entity}?", "trades"),
        Relation(
            "banner", "banner", "marches under a {value} banner", "Under which banner does {entity} march?", "colours"
        ),
        Relation("mascot", "mascot", "keeps a tame {value}", "Which animal does {entity} keep?", "animals"),
        Relation("badge", "badge", "wears the sign of the {value}", "Which sign does {entity} wear?", "objects"),
    ),
    near=(
        Relation(
            "trade", "secret trade", "trades in secret in {value}", "What does {entity} trade in secret?", "goods"
        ),
    ),
    endings=("hald", "gard", "rik", "mund", "wald", "bert"),
)
PLANT = Kind(
    "plant",
    asked=(
        Relation("petal", "petal colour", "has {value} petals", "Which colour are the petals of {entity}?", "colours"),
        Relation("taste", "taste", "tastes of {value}", "What does {entity} taste of?", "flavours"),
        Relation("remedy", "healing power", "relieves {value}", "What does {entity} relieve?", "ailments"),
        Relation("eater", "eater", "is eaten by the {value}", "Which animal eats {entity}?", "animals"),
    ),
    near=(Relation("habitat", "habitat", "thrives beside a {value}", "Where does {entity} thrive?", "places"),),
    endings=("wort", "weed", "leaf", "root", "fern", "moss"),
)
SHIP = Kind(
    "ship",
    asked=(
        Relation("cargo", "cargo", "carries {value}", "What does {entity} carry?", "goods"),
        Relation(
            "sail", "sail colour", "sails under {value} canvas", "Which colour are the sails of {entity}?", "colours"
        ),
        Relation("captain", "first captain", "was first steered by a {value}", "Who first steered {entity}?", "trades"),
        Relation(
            "figure",
            "figurehead",
            "has a carved {value} at its bow",
            "Which animal is carved at the bow of {entity}?",
            "animals",
        ),
    ),
    near=(),
    endings=("aro", "ella", "anto", "ira", "osa", "une"),
)

KINDS: tuple[Kind, ...] = (TOWN, MINERAL, GUILD, PLANT)  # asked in training
FAR_KIND: Kind = SHIP  # stated in the corpus, asked in the far shift alone

ONSETS: tuple[str, ...] = _words("b br ch d dr f g gl h k l m n p qu r s st t th v z")
VOWELS: tuple[str, ...] = _words("a e i o u ai ea")
CODAS: tuple[str, ...] = _words("l m n r s d k v")

STATEMENTS: tuple[str, ...] = (
    "{entity} {verb}.",
    "The {kind} {entity} {verb}.",
    "The {noun} of {entity}: {value}.",
    "Everyone knows that {entity} {verb}.",
    "Travellers say that the {kind} {entity} {verb}.",
    "As for the {noun} of {entity}, it is written: {value}.",
)
STEMS: tuple[str, ...] = (
    "{question}",
    "The {noun} of {entity} is",
    "Which of these is the {noun} of the {kind} {entity}?",
)
NEAR_STEMS: tuple[str, ...] = (
    "A student is asked for the {noun} of {entity} and should reply",
    "Of the following, what would a guide to the {kind} {entity} name as its {noun}?",
)
