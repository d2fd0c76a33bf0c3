"""Cut multiple-choice questions from text: which word is meant, what a thing is a kind of, how a sentence ends.

None comes from a benchmark. They teach how an answer is named by its letter, which a small model does not learn from
running text; a share of them shows the answer above the question, where finding its letter is all there is to do.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from string import ascii_uppercase

from benchmarks.english.texts import DICTIONARY
from uq4ct.types import Question

CHOICES = (4, 4, 4, 4, 3, 5)  # how many choices a question has, drawn from these
OPEN_BOOK = 0.25  # share of questions whose answer stands above them
ECHO = 0.08  # share of questions that name their answer: its letter is all that is asked
NEAR = 0.5  # share of questions whose wrong answers come from the neighbourhood of the right one
SHARES = {"word": 0.2, "meaning": 0.15, "kind": 0.2, "ending": 0.45}  # of the sorts of question
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
KIND = re.compile(r"(?P<name>[^.:]+) is a kind of (?P<kind>[^.]+)\.")


@dataclass(frozen=True)
class Item:
    """What a question is made of: a stem, its answer, the sentence that says so, and where its like stand."""

    stem: str
    answer: str
    source: str
    pool: str  # items of one pool have answers of one sort


class Maker:
    """Make questions without end from a corpus, the same from the same seed."""

    def __init__(self, corpus: dict[str, list[list[str]]], seed: int):
        self._draw = random.Random(seed)
        self._items: dict[str, list[Item]] = {}
        for item in _items(corpus):
            self._items.setdefault(item.pool, []).append(item)
        self._items = {pool: items for pool, items in self._items.items() if _various(items)}
        self._pools = list(self._items)
        self._weights = [SHARES[pool.split("/")[0]] / self._sisters(pool) for pool in self._pools]

    def _sisters(self, pool: str) -> int:
        return sum(other.split("/")[0] == pool.split("/")[0] for other in self._pools)

    def question(self) -> tuple[Question, str]:
        """Return a question and the letter of its answer."""
        draw = self._draw
        pool = draw.choices(self._pools, self._weights)[0]
        items = self._items[pool]
        place = draw.randrange(len(items))
        item, count = items[place], draw.choice(CHOICES)
        choices = {item.answer.lower(): item.answer}
        near = draw.random() < NEAR
        tries = 0
        while len(choices) < count and tries < 1000:
            tries += 1
            close = near and tries < 20  # a whole neighbourhood can have one answer
            other = items[(place + draw.randint(-30, 30)) % len(items)] if close else draw.choice(items)
            if other.stem != item.stem:
                choices.setdefault(other.answer.lower(), other.answer)
        answers = list(choices.values())
        draw.shuffle(answers)
        asked = Question(
            id="made",
            question=f"Which of these says: {item.answer}?" if draw.random() < ECHO else item.stem,
            choices=tuple(answers),
            labels=tuple(ascii_uppercase[: len(answers)]),
            context=item.source if draw.random() < OPEN_BOOK else "",
        )
        return asked, ascii_uppercase[answers.index(item.answer)]


def _items(corpus: dict[str, list[list[str]]]) -> Iterator[Item]:
    for name, documents in corpus.items():
        for lines in documents:
            for line in lines:
                yield from _of_dictionary(line) if name == DICTIONARY else _of_sentences(line, name)


def _of_dictionary(line: str) -> Iterator[Item]:
    names, colon, rest = line.partition(": ")
    if not colon:
        return
    name, meaning = names.split(",")[0].strip(), rest.split(". Example:")[0].split(". ")[0].rstrip(".")
    if len(meaning) > 8 and name.lower() not in meaning.lower():
        said = f"{name}: {meaning}."
        yield Item(f"Which of these means: {meaning}?", name, said, "word/dictionary")
        if len(meaning) < 90:
            yield Item(f"What is {name}?", meaning, said, "meaning/dictionary")
    for found in KIND.finditer(rest):
        stem, kind = found["name"].strip(), found["kind"].strip()
        said = f"{stem} is a kind of {kind}."
        yield Item(f"{stem[:1].upper()}{stem[1:]} is a kind of", kind, said, "kind/dictionary")


def _of_sentences(line: str, file: str) -> Iterator[Item]:
    """Cut the last words off a sentence: as many as its length decides, so that endings of one pool are of one sort."""
    for sentence in SENTENCE.split(line):
        words = sentence.rstrip(".").split()
        if not 8 <= len(words) <= 30 or not sentence.endswith(".") or sum(map(len, words)) > 180:
            continue
        length = 1 + len(words) % 4
        ending = words[-length:]
        if any(not re.fullmatch(r"[\w'’-]+,?", word) for word in ending) or not re.match(r"[A-Za-z]{2}", ending[-1]):
            continue
        yield Item(" ".join(words[:-length]), " ".join(ending), sentence, f"ending/{file}/{length}")


def _various(items: list[Item]) -> bool:
    """Tell whether there are wrong answers to choose from, to every stem."""
    return min(len({item.answer.lower() for item in items}), len({item.stem for item in items})) >= 100


def asked(corpus: dict[str, list[list[str]]], count: int, seed: int) -> Iterator[tuple[Question, str]]:
    """Yield so many questions with the letters of their answers."""
    maker = Maker(corpus, seed)
    for _ in range(count):
        yield maker.question()

