"""The base models that are measured: blocks with the widths of known models and whole ones, with random weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Shape:
    """Name the sizes of a Llama. Blocks have a small vocabulary, so that the layers are what is measured."""

    name: str
    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int = 512

    def with_layers(self, layers: int) -> Shape:
        """Return the same shape with another number of layers."""
        return replace(self, layers=layers)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("width-64", 64, 176, 2, 2, 2),  # for the tests of this folder
        Shape("width-512", 512, 1376, 2, 8, 8),
        Shape("width-2048", 2048, 5632, 2, 32, 4),  # TinyLlama 1.1B
        Shape("width-4096", 4096, 11008, 1, 32, 32),  # Llama-2-7B
        Shape("135M", 576, 1536, 30, 9, 3, 49152),  # SmolLM-135M, whole
        Shape("7B", 4096, 11008, 32, 32, 32, 32000),  # Llama-2-7B, whole
    )
}


def base_model(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a Llama of the shape with random frozen weights."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    return model.requires_grad_(False)


def same_weights(model: nn.Module) -> nn.Module:
    """Return a model of its own modules that shares every tensor with ``model``: one base in memory for all arms."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, shared)


def batch_of(shape: Shape, rows: int, tokens: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Return a collated batch of random four-choice questions of the same length."""
    from uq4ct.scoring import collate

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, shape.vocabulary, (rows, tokens), generator=generator)
    answers = torch.randint(4, (rows,), generator=generator).tolist()
    examples = [
        {"input_ids": row, "choice_ids": [1, 2, 3, 4], "answer": answer}
        for row, answer in zip(ids.tolist(), answers, strict=True)
    ]
    return {name: tensor.to(device) for name, tensor in collate(examples, 0).items()}
