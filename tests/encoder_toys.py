"""Tiny random encoders of every family and tokenizers of their two kinds, made here, in memory or as a hub folder."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any

import torch
import transformers as tf

from uq4ct.types import Question

WORDS = "which melts first ? ice iron salt sand wool it is a hot day good bad film the and very not number red green blue"
LAYERS = 2
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 48,
    "initializer_range": 0.3,  # large enough that answers differ
}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16}
SPECIAL = {"bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>")}

# Family -> its name in transformers, its configuration beyond SIZES, and the kind of its tokenizer.
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "bert": ("Bert", {}, "bert"),
    "roberta": ("Roberta", {"type_vocab_size": 1}, "roberta"),
    "xlm-roberta": ("XLMRoberta", {"type_vocab_size": 1}, "roberta"),
    "camembert": ("Camembert", {"type_vocab_size": 1}, "roberta"),
    "distilbert": ("DistilBert", {}, "bert"),
    "electra": ("Electra", {"embedding_size": 8}, "bert"),
    "deberta": ("Deberta", {**DISENTANGLED, "type_vocab_size": 0}, "bert"),
    "deberta-v2": (
        "DebertaV2",
        {**DISENTANGLED, "type_vocab_size": 0, "share_att_key": True, "position_biased_input": False},
        "bert",
    ),
    "mpnet": ("MPNet", {}, "roberta"),
    "modernbert": (
        "ModernBert",
        {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 16},
        "bert",
    ),
}
HEADS = {"multiple_choice": "ForMultipleChoice", "classification": "ForSequenceClassification"}
CLASSES = ("bad", "good", "not")
KINDS = [
    (family, kind) for family in FAMILIES for kind in HEADS if (family, kind) != ("deberta", "multiple_choice")
]  # transformers has no such head


def tokenizer(kind: str = "bert") -> Any:
    """A WordPiece tokenizer as BERT's, which tells two texts apart, or one as RoBERTa's with two separators."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = SPECIAL[kind]
    pieces = [*ascii_lowercase, *digits, *(f"##{c}" for c in ascii_lowercase + digits)]
    vocabulary = {token: row for row, token in enumerate(dict.fromkeys([*special, *pieces, *WORDS.split()]))}
    unknown = "[UNK]" if kind == "bert" else "<unk>"
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if kind == "bert":
        single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        single, pair = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
        names = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    ids = [(token, vocabulary[token]) for token in (names["cls_token"], names["sep_token"])]
    made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, name_or_path="toy", **names)


def settings(family: str, **options: Any) -> Any:
    """Return the configuration of a family's toy."""
    name, own, kind = FAMILIES[family]
    made = tokenizer(kind)
    ids = {"vocab_size": len(made), "pad_token_id": made.pad_token_id}
    return getattr(tf, f"{name}Config")(**{**SIZES, **ids, **own, **options})


def encoder(family: str, kind: str = "multiple_choice", seed: int = 0, **options: Any) -> Any:
    """Return a family's random model with a head, in evaluation mode."""
    torch.manual_seed(seed)
    options = {"num_labels": len(CLASSES), **options} if kind == "classification" else options
    return getattr(tf, FAMILIES[family][0] + HEADS[kind])(settings(family, **options)).eval()


def save(family: str, folder: Path, head: str = "Model", **options: Any) -> Path:
    """Write a family's model, by default without any head, and its tokenizer as a hub folder holds them."""
    torch.manual_seed(0)
    getattr(tf, FAMILIES[family][0] + head)(settings(family, **options)).save_pretrained(folder)
    tokenizer(FAMILIES[family][2]).save_pretrained(folder)
    return folder


def questions(number: int = 12, classes: tuple[str, ...] = ()) -> list[Question]:
    """Return questions of two to five choices, some with a context, or of the classes in changing order."""
    things = ("ice", "iron", "salt and sand", "wool", "red")
    made = []
    for row in range(number):
        choices = things[: 2 + row % 4]
        if classes:
            choices = classes[row % len(classes) :] + classes[: row % len(classes)]
        text = " ".join(["which melts first"] * (1 + row % 3)) + f" number {row % 7} ?"
        context = "it is a hot day" if row % 2 else ""
        labels = tuple("ABCDE"[: len(choices)])
        made.append(Question(str(row), text, choices, labels, answer=row % 2, context=context))
    return made
