"""The circuit that reads a letter off a list of choices, planted in the weights before pre-training.

Answering by letter is two steps of attention: every choice must know the letter that stands two tokens before it, and
the answer position must find the choice that says what the model is about to say. Gradient descent finds their composition
after thousands of steps, far beyond a CPU's patience; planted, and held by a loss on the second step's attention while
everything else is still random, it works after three hundred.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from uq4ct.tiny.questions import LETTERS, SIZES

OFFERED = LETTERS[: max(SIZES)]
SPREAD = 0.1  # standard deviation of the embeddings, and their constant first entry
LOOK_BACK = 2  # "A", ".", " lilac": from a choice's first token to its letter
SHARPNESS = 60.0  # attention score of the token LOOK_BACK positions before
MATCH = 4.0  # scale of the score of two equal words
LOUDNESS = 4.0  # how strongly a choice is marked with its letter
FAST = 4  # rotary frequencies that tell neighbouring positions apart
SLOW = 0.02  # radians a token; rotary frequencies below this leave a match intact over a question's length


@torch.no_grad()
def plant(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write both steps into an untrained model: the first head of the first layer, and all but one of the last."""
    embedding = model.model.embed_tokens.weight
    torch.nn.init.normal_(embedding, std=SPREAD)
    embedding[:, 0] = SPREAD  # the same for every token: what a purely positional head can hold on to
    unit = embedding / embedding.pow(2).mean(1, keepdim=True).sqrt()  # what the layers' norms make of a token
    written = torch.tensor([_ids(tokenizer, f"\n{letter}.")[1] for letter in OFFERED])
    answers = torch.tensor([_ids(tokenizer, f" {letter}")[0] for letter in OFFERED])
    marks = torch.linalg.qr(torch.randn(embedding.shape[1], len(OFFERED)))[0].T  # one direction per letter
    _mark_choices(model, unit, written, marks)
    _match_words(model, embedding, torch.cat([written, answers, _format_tokens(tokenizer)]), answers, marks)


def matching_attention(attentions: Tensor, query: Tensor, choice: Tensor) -> Tensor:
    """Return how much the last layer's planted heads look from the answer position to the right choice, (batch,).

    ``attentions`` are (batch, head, token, token); ``query`` and ``choice`` (batch,) are positions.
    """
    rows = torch.arange(len(attentions), device=attentions.device)
    return attentions[rows, :-1, query, choice].mean(dim=1)


def _mark_choices(model: LlamaForCausalLM, unit: Tensor, written: Tensor, marks: Tensor) -> None:
    """Let every token attend to the one LOOK_BACK positions before and, where that is a letter, take its mark."""
    attention, size = model.model.layers[0].self_attn, _head_size(model)
    turn = LOOK_BACK * model.model.rotary_emb.inv_freq[:FAST]
    query = torch.cat([turn.cos() + turn.sin(), turn.cos() - turn.sin()])  # the key, turned LOOK_BACK positions back
    places = torch.cat([torch.arange(FAST), size // 2 + torch.arange(FAST)])  # rotary embedding turns (i, i + size / 2)
    scale = math.sqrt(SHARPNESS * math.sqrt(size) / (2 * FAST)) / unit[:, 0].mean()
    for weight, values in ((attention.q_proj.weight, query), (attention.k_proj.weight, torch.ones(2 * FAST))):
        weight[:size] = 0.0
        weight[places, 0] = scale * values
    attention.v_proj.weight[:size] = 0.0
    attention.v_proj.weight[: len(marks)] = torch.linalg.pinv(unit[written].T)
    attention.o_proj.weight[:, :size] = 0.0
    attention.o_proj.weight[:, : len(marks)] = LOUDNESS * marks.T


def _match_words(model: LlamaForCausalLM, embedding: Tensor, common: Tensor, answers: Tensor, marks: Tensor) -> None:
    """Let the answer position attend to the choice that is the word it would say, and turn its mark into the letter."""
    attention, size, width = model.model.layers[-1].self_attn, _head_size(model), embedding.shape[1]
    heads = (model.config.num_attention_heads - 1) * size
    beside = torch.linalg.qr(torch.cat([embedding[common], marks]).T)[0]
    words = torch.eye(width) - beside @ beside.T  # what is neither a mark nor a token of the prompt's form
    words[0], words[:, 0] = 0.0, 0.0
    slow = (model.model.rotary_emb.inv_freq < SLOW).repeat(2).repeat(model.config.num_attention_heads - 1)
    directions = torch.linalg.qr(words @ torch.randn(width, width))[0].T
    match = torch.zeros(heads, width)
    match[slow] = math.sqrt(MATCH) * directions[torch.arange(int(slow.sum())) % width]
    attention.q_proj.weight[:heads] = match
    attention.k_proj.weight[:heads] = match
    attention.v_proj.weight[:heads] = 0.0
    attention.o_proj.weight[:, :heads] = 0.0
    for first in range(0, heads, size):
        attention.v_proj.weight[first : first + len(marks)] = marks
        attention.o_proj.weight[:, first : first + len(marks)] = embedding[answers].T


def _head_size(model: LlamaForCausalLM) -> int:
    return model.config.hidden_size // model.config.num_attention_heads


def _format_tokens(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    texts = ("Question:", "\nAnswer:", "?", " is", " the", " of", " which", "Which")
    return torch.tensor(sorted({token for text in texts for token in _ids(tokenizer, text)} | {tokenizer.bos_token_id}))


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
