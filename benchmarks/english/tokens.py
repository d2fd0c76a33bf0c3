"""Text and questions as tokens: a byte-level BPE of their own, and two long rows of tokens with what each one is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from string import ascii_uppercase

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from benchmarks.english.questions import asked
from benchmarks.english.texts import read_corpus
from uq4ct.prompts import plain
from uq4ct.tiny.pretraining import byte_level_bpe

VOCABULARY = 8192
CONTEXT = 2048  # what positions reach; rows of pre-training are shorter
TEXT, BODY, ANSWER = 0, 1, 2  # what a token is: of running text, of a question, or the first of its answer
BY_WORDS = 4  # one question in so many is answered by the words of its choice

Row = tuple[NDArray[np.uint16], NDArray[np.uint8]]


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train the tokenizer; a space and a capital letter are always one token, since answers are letters."""
    letters = (f"Answer: {letter}" for letter in ascii_uppercase for _ in range(5000))
    return byte_level_bpe(chain(texts, letters), VOCABULARY, context_length=CONTEXT, single_digits=True)


def of_text(tokenizer: PreTrainedTokenizerFast, documents: Iterable[str]) -> Row:
    """Return all documents behind one another, each after a BOS."""
    rows = [np.asarray(ids, dtype=np.uint16) for ids in _encoded(tokenizer, documents)]
    tokens = np.concatenate(rows)
    return tokens, np.full(len(tokens), TEXT, dtype=np.uint8)


def of_questions(tokenizer: PreTrainedTokenizerFast, corpus: Path, count: int, seed: int, processes: int) -> Row:
    """Return made questions behind one another, and which tokens are their answers."""
    tasks = [(tokenizer, corpus, count // processes, seed * 1000 + part) for part in range(processes)]
    if processes == 1:
        parts = [_questions(*tasks[0])]
    else:
        with get_context("spawn").Pool(processes) as pool:
            parts = pool.starmap(_questions, tasks)
    return np.concatenate([tokens for tokens, _ in parts]), np.concatenate([kinds for _, kinds in parts])


def _questions(tokenizer: PreTrainedTokenizerFast, corpus: Path, count: int, seed: int) -> Row:
    """Make questions; one in BY_WORDS is answered by the words of its choice, which teaches to look the choice up."""
    wholes, answers = [], []
    for number, (question, letter) in enumerate(asked(read_corpus(corpus), count, seed)):
        by_words = number % BY_WORDS == 0
        answers.append(f" {question.choices[ascii_uppercase.index(letter)] if by_words else letter}")
        wholes.append(plain(question) + answers[-1])
    tokens, kinds = [], []
    for ids, answer in zip(_encoded(tokenizer, wholes), _encoded(tokenizer, answers), strict=True):
        tokens.append(np.asarray(ids, dtype=np.uint16))
        kinds.append(np.full(len(ids), BODY, dtype=np.uint8))
        kinds[-1][1 - len(answer)] = ANSWER  # the answer alone has a BOS, too
    return np.concatenate(tokens), np.concatenate(kinds)


def _encoded(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], at_once: int = 4096) -> Iterator[list[int]]:
    waiting: list[str] = []
    for text in texts:
        waiting.append(text)
        if len(waiting) == at_once:
            yield from tokenizer(waiting)["input_ids"]
            waiting = []
    if waiting:
        yield from tokenizer(waiting)["input_ids"]
