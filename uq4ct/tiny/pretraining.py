"""Make the bundled model from nothing: its tokenizer, its Llama, and the pre-training that teaches it the world."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from uq4ct.tiny.corpus import Corpus, Document
from uq4ct.tiny.lexicon import POOLS
from uq4ct.tiny.presets import Preset
from uq4ct.tiny.questions import LETTERS
from uq4ct.tiny.world import World

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CONTEXT_LENGTH = 8192  # real question files are scored by this model too
OPEN_BOOK, CLOSED_BOOK = 0.3, 0.3  # shares of a batch; the rest is passages of statements
LOSSES = ("letters", "values", "rest")
IGNORE = -100


def train_tokenizer(world: World, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the corpus, with every name and value equally often, and a BOS before each text.

    A space and a capital letter are always one token, since answers are letters.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = Corpus(world)
    texts = [document.prompt + document.answer for document in _documents(corpus, 4000)]
    names = [f" {entity}" for entity in dict.fromkeys(fact.entity.name for fact in world.facts)]
    values = [f" {value}" for pool in POOLS.values() for value in pool]
    letters = [f" {letter}" for letter in LETTERS]
    tokenizer.train_from_iterator([*texts, *(names * 20), *(values * 200), *(letters * 5000)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def make_model(preset: Preset, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Make an untrained Llama of a preset's shape."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=preset.hidden,
        intermediate_size=preset.feed_forward,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    preset: Preset,
    progress: Callable[[dict[str, float]], None] = lambda losses: None,
) -> None:
    """Minimise three next-token losses, each averaged over its own tokens: letters of answers, values of statements, the rest.

    Names and phrasings outnumber what is to be learned ten to one; averaged together they would drown it.
    """
    corpus = Corpus(world)
    optimizer = torch.optim.AdamW(model.parameters(), lr=preset.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=preset.learning_rate, total_steps=preset.steps, pct_start=0.15, cycle_momentum=False
    )
    model.train()
    for _ in range(preset.steps):
        input_ids, attention_mask, *labels = (t.to(model.device) for t in _batch(corpus, tokenizer, preset.batch))
        hidden = model.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        losses = {name: _next_token_loss(model, hidden, y) for name, y in zip(LOSSES, labels, strict=True)}
        sum(losses.values(), hidden.new_zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress({name: loss.item() for name, loss in losses.items()})
    model.eval()


def _documents(corpus: Corpus, count: int) -> list[Document]:
    """Return a batch whose shares of open-book, closed-book and statement documents are fixed."""
    open_book, closed_book = round(OPEN_BOOK * count), round(CLOSED_BOOK * count)
    return [
        *(corpus.question(open_book=True) for _ in range(open_book)),
        *(corpus.question(open_book=False) for _ in range(closed_book)),
        *(corpus.passage() for _ in range(count - open_book - closed_book)),
    ]


def _batch(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, count: int) -> list[Tensor]:
    """Return right-padded token ids, their mask, and labels for each of ``LOSSES``; prompts of questions have no labels."""
    documents = _documents(corpus, count)
    prompts = tokenizer([document.prompt for document in documents])["input_ids"]
    answers = tokenizer([document.answer for document in documents], add_special_tokens=False)["input_ids"]
    width = 8 * math.ceil((1 + max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))) / 8)
    input_ids = torch.full((count, width), tokenizer.pad_token_id)
    learned = torch.zeros((count, width), dtype=torch.bool)
    letters = torch.zeros((count, width), dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        text = torch.tensor([*prompt, *answer, tokenizer.eos_token_id])
        input_ids[row, : len(text)] = text
        learned[row, len(prompt) if answer else 1 : len(text)] = True
        letters[row, len(prompt)] = bool(answer)
    passages = torch.tensor([not answer for answer in answers])[:, None]
    values = learned & passages & torch.isin(input_ids, _value_tokens(tokenizer))
    masks = (letters, values, learned & ~letters & ~values)
    labels = [input_ids.masked_fill(~mask, IGNORE) for mask in masks]
    return [input_ids, (input_ids != tokenizer.pad_token_id).long(), *labels]


def _value_tokens(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return the first token of every value that a statement may name."""
    words = [f" {value}" for pool in POOLS.values() for value in pool]
    return torch.tensor([ids[0] for ids in tokenizer(words, add_special_tokens=False)["input_ids"]])


def _next_token_loss(model: LlamaForCausalLM, hidden: Tensor, labels: Tensor) -> Tensor:
    """Average the loss over the labelled tokens; the vocabulary's logits are made at those positions alone."""
    targets = labels[:, 1:]
    kept = targets != IGNORE
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][kept]), targets[kept])
