"""Text and questions as tokens: a byte-level BPE of their own, and two long rows of tokens with what each one is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.english.questions import asked
from benchmarks.english.texts import read_corpus
from uq4ct.prompts import plain

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
VOCABULARY = 8192
CONTEXT = 2048  # what positions reach; rows of pre-training are shorter
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TEXT, BODY, ANSWER = 0, 1, 2  # what a token is: of running text, of a question, or the first of its answer
BY_WORDS = 4

Row = tuple[NDArray[np.uint16], NDArray[np.uint8]]


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train the tokenizer; a space and a capital letter are always one token, since answers are letters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def everything() -> Iterator[str]:
        yield from texts
        yield from (f"Answer: {letter}" for letter in LETTERS for _ in range(5000))

    tokenizer.train_from_iterator(everything(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


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
    """Make questions; each BY_WORDS-th is answered by the words of its choice, which teaches to look the choice up."""
    made = list(asked(read_corpus(corpus), count, seed))
    prompts = [plain(question) for question, _ in made]
    answers = [
        question.choices[LETTERS.index(letter)] if number % BY_WORDS == 0 else letter
        for number, (question, letter) in enumerate(made)
    ]
    tokens, kinds = [], []
    whole = (f"{prompt} {answer}" for prompt, answer in zip(prompts, answers, strict=True))
    for ids, asking in zip(_encoded(tokenizer, whole), _encoded(tokenizer, prompts), strict=True):
        tokens.append(np.asarray(ids, dtype=np.uint16))
        kinds.append(np.full(len(ids), BODY, dtype=np.uint8))
        kinds[-1][len(asking)] = ANSWER
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
