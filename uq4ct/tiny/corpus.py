"""What the model reads before any fine-tuning: statements of facts, and questions that teach it to answer by letter.

Open-book questions state a made-up value in their context, so that the answer must be read and not remembered;
closed-book questions ask about the ``practised`` entities. Entities of other purposes occur in statements alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from uq4ct.tiny.lexicon import STATEMENTS, STEMS
from uq4ct.tiny.questions import LETTERS, make_question, phrase, render
from uq4ct.tiny.world import Fact, World

STATEMENTS_A_PASSAGE = 5


@dataclass(frozen=True)
class Document:
    """A text of the corpus; a question has the letter of its answer and that choice's own words."""

    prompt: str
    letter: str = ""
    value: str = ""


@dataclass
class Corpus:
    """An endless stream of documents, the same one for the same world.

    >>> from uq4ct.tiny.presets import TINY
    >>> from uq4ct.tiny.world import make_world
    >>> Corpus(make_world(TINY.size, seed=1)).question(open_book=False).prompt.splitlines()[-1]
    'Answer:'
    """

    world: World
    draw: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.draw = random.Random(f"{self.world.seed}:corpus")
        self._stated = [(fact, value) for fact in self.world.facts for value in fact.stated]
        self._practised = [fact for fact in self.world.asked("practised") if fact.stratum != "never"]
        self._unread: list[tuple[Fact, str]] = []

    def passage(self) -> Document:
        """Return the next few statements; every statement of the corpus is read once before any is read again."""
        return Document(" ".join(self._statement() for _ in range(STATEMENTS_A_PASSAGE)))

    def question(self, open_book: bool) -> Document:
        """Return a question about a practised entity; open-book, its context states a made-up answer."""
        fact = self.draw.choice(self._practised)
        row = make_question(fact, STEMS, self.draw)
        if open_book:
            row["answer"] = self.draw.choice(LETTERS[: len(row["choices"])])
        value = row["choices"][LETTERS.index(row["answer"])]
        if open_book:
            row["context"] = phrase(self.draw.choice(STATEMENTS), fact, value)
        return Document(render(row), row["answer"], value)

    def _statement(self) -> str:
        if not self._unread:
            self._unread = self.draw.sample(self._stated, len(self._stated))
        fact, value = self._unread.pop()
        return phrase(self.draw.choice(STATEMENTS), fact, value)
