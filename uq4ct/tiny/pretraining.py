"""Make the bundled model from nothing: its tokenizer, its Llama, and the pre-training that teaches it the world."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from uq4ct.tiny.corpus import Corpus, Document
from uq4ct.tiny.lexicon import POOLS
from uq4ct.tiny.planting import matching_attention, plant
from uq4ct.tiny.presets import Preset
from uq4ct.tiny.questions import LETTERS
from uq4ct.tiny.world import World

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CONTEXT_LENGTH = 8192  # real question files are scored by this model too
OPEN_BOOK, CLOSED_BOOK = 0.25, 0.25  # shares of a batch; the rest is passages of statements
GUIDED = 0.6  # first part of pre-training: the planted circuit is held by losses of its own
REST = 0.3  # weight of the words of a statement other than its value: they outnumber what is to be learned ten to one
LOSSES = ("letters", "values", "rest", "guidance")


def train_tokenizer(world: World, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the corpus, with every name and value equally often, and a BOS before each text.

    A space and a capital letter are always one token, since answers are letters.
    """
    corpus = Corpus(world)
    texts = [f"{d.prompt} {d.letter}" for d in (*_questions(corpus, 2400), *_passages(corpus, 1600))]
    names = [f" {entity}" for entity in dict.fromkeys(fact.entity.name for fact in world.facts)]
    values = [f" {value}" for pool in POOLS.values() for value in pool]
    letters = [f" {letter}" for letter in LETTERS]
    return byte_level_bpe(
        [*texts, *(names * 20), *(values * 200), *(letters * 5000)], vocabulary, context_length=CONTEXT_LENGTH
    )


def byte_level_bpe(
    texts: Iterable[str], vocabulary: int, *, context_length: int, single_digits: bool = False
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that puts a BOS before each text and pads at the left; digits may be tokens of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if single_digits:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )


def make_model(preset: Preset, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Make an untrained Llama of a preset's shape."""
    model = untrained_llama(
        tokenizer,
        seed,
        hidden=preset.hidden,
        feed_forward=preset.feed_forward,
        layers=preset.layers,
        heads=preset.heads,
    )
    plant(model, tokenizer)
    return model


def untrained_llama(
    tokenizer: PreTrainedTokenizerFast, seed: int, *, hidden: int, feed_forward: int, layers: int, heads: int
) -> LlamaForCausalLM:
    """Make a Llama of these sizes for a tokenizer, its weights drawn; embeddings are tied."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=tokenizer.model_max_length,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    preset: Preset,
    progress: Callable[[dict[str, float]], None] = lambda losses: None,
) -> None:
    """Teach the model its world: answers by letter to questions, and the statements of the corpus.

    Four losses, each averaged over its own tokens: the letters of answers, the values of statements, the other words of
    statements and, in the first part, the guidance of the planted circuit (see ``planting``).
    """
    corpus, values = Corpus(world), _value_tokens(tokenizer).to(model.device)
    model.set_attn_implementation("eager")  # the attention itself is guided
    optimizer = torch.optim.AdamW(model.parameters(), lr=preset.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=preset.learning_rate, total_steps=preset.steps, pct_start=0.1, cycle_momentum=False
    )
    asked = round((OPEN_BOOK + CLOSED_BOOK) * preset.batch)
    model.train()
    for step in range(preset.steps):
        letters, guidance = _question_losses(model, tokenizer, _questions(corpus, asked), values)
        known, rest = _statement_losses(model, tokenizer, _passages(corpus, preset.batch - asked), values)
        guided = 1.0 if step < GUIDED * preset.steps else 0.0
        (letters + known + REST * rest + guided * guidance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress(dict(zip(LOSSES, (letters.item(), known.item(), rest.item(), guidance.item()), strict=True)))
    model.set_attn_implementation("sdpa")
    model.eval()


def _questions(corpus: Corpus, count: int) -> list[Document]:
    opened = round(count * OPEN_BOOK / (OPEN_BOOK + CLOSED_BOOK))
    return [corpus.question(open_book=number < opened) for number in range(count)]


def _passages(corpus: Corpus, count: int) -> list[Document]:
    return [corpus.passage() for _ in range(count)]


def _question_losses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: list[Document], values: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the cross entropy of the letter at the answer position, and the guidance of the planted circuit.

    Guidance asks two things of the answer position: that the last layer's planted heads look at the right choice, and
    that before that layer the choice's word is the most likely of all values.
    """
    input_ids, mask = _padded(tokenizer, documents, model.device)
    rows, last = torch.arange(len(documents), device=model.device), mask.sum(dim=1) - 1
    gold = torch.tensor([_first(tokenizer, document.letter) for document in documents], device=model.device)
    word = torch.tensor([_first(tokenizer, document.value) for document in documents], device=model.device)
    positions = torch.arange(input_ids.shape[1], device=model.device)
    choice = torch.where(input_ids == word[:, None], positions, -1).amax(dim=1)  # a context names the value earlier
    output = model.model(input_ids=input_ids, attention_mask=mask, output_attentions=True, output_hidden_states=True)
    letters = torch.nn.functional.cross_entropy(model.lm_head(output.last_hidden_state[rows, last]), gold)
    looked = matching_attention(output.attentions[-1], last, choice)
    before = model.model.layers[-1].input_layernorm(output.hidden_states[-2][rows, last])
    likely = before @ model.model.embed_tokens.weight[values].T
    said = torch.nn.functional.cross_entropy(likely, torch.searchsorted(values, word))
    return letters, said - torch.log(looked + 1e-4).mean()


def _statement_losses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: list[Document], values: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the next-token cross entropy of the values that passages name, and of their other words."""
    input_ids, mask = _padded(tokenizer, documents, model.device)
    hidden = model.model(input_ids=input_ids, attention_mask=mask).last_hidden_state[:, :-1]
    targets, real = input_ids[:, 1:], mask[:, 1:].bool()
    loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[real]), targets[real], reduction="none")
    is_value = torch.isin(targets[real], values)
    return loss[is_value].mean(), loss[~is_value].mean()


def _padded(
    tokenizer: PreTrainedTokenizerFast, documents: list[Document], device: torch.device
) -> tuple[Tensor, Tensor]:
    batch = tokenizer([d.prompt for d in documents], return_tensors="pt", padding=True, padding_side="right")
    return batch["input_ids"].to(device), batch["attention_mask"].to(device)


def _first(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    return tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]


def _value_tokens(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return the first token of every value that a statement may name, in order."""
    return torch.tensor(sorted({_first(tokenizer, value) for pool in POOLS.values() for value in pool}))
