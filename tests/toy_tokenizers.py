"""Tokenizers of the kinds that language models have, trained here on a few prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from uq4ct.prompts import PACKS, SAMPLE
from uq4ct.types import Question

MELTS = Question(
    id="melts",
    question="Which melts first?",
    choices=("ice", "iron", "salt."),
    labels=("1", "2", "3"),
    answer=2,
    context="It is a hot day in the kitchen, and the sun shines on the table.",
    place="q.jsonl:7",
)
CORPUS = [
    PACKS[pack].render(question) + joiner + letter
    for pack in ("plain", "moe_peft", "laplace_lora", "chat")
    for question in (SAMPLE, MELTS, replace(MELTS, context=""))
    for joiner in (" ", "", "\n")
    for letter in ascii_uppercase
] * 2


def byte_level(**options: Any) -> Any:
    """A byte-level BPE tokenizer as GPT-2's, with a beginning-of-text token as Llama-3's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return wrapped(tokenizer, **options)


def metaspace(prefix: str, **options: Any) -> Any:
    """A Unigram tokenizer as SentencePiece's; ``prefix`` "always" puts a space before a text, as Llama-2 does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme=prefix)]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prefix)
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    # A letter after a space is one piece in every real SentencePiece model; so small a corpus does not show that.
    pieces = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
    pieces |= {f"▁{letter}": -4.0 for letter in ascii_uppercase} | dict.fromkeys(ascii_uppercase, -5.0)
    tokenizer.model = models.Unigram(list(pieces.items()), unk_id=0)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return wrapped(tokenizer, **options)


def merging(**options: Any) -> Any:
    """A tokenizer that splits nowhere: the colon before an answer and the answer become one token."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=3000, special_tokens=["<unk>", "<s>", "</s>"])
    tokenizer.train_from_iterator(
        [f"Answer:{joiner}{letter}" for letter in ascii_uppercase for joiner in (" ", "")], trainer
    )
    return wrapped(tokenizer, **options)


def wrapped(tokenizer: Any, **options: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    names = {"bos_token": "<s>", "eos_token": "</s>", "name_or_path": "toy", **options}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
