"""Tiny models and encoded questions for the tests of scoring and training; also used by the processes they start."""

from __future__ import annotations

import random

import peft
import torch
import transformers

from uq4ct.adapters import MixLoraConfig


def llama(seed: int = 0, dtype: torch.dtype = torch.float32, **options):
    """Return a random Llama of two layers, with weights large enough that its answers differ."""
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    transformers.set_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **heads, **options})).to(dtype)


def mixture(seed: int = 0, dtype: torch.dtype = torch.float32, dropout: float = 0.0, **options):
    """Return a tiny Llama with a mixture of four LoRA experts whose B is not zero, so that routing matters."""
    config = MixLoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        lora_alpha=4,
        lora_dropout=dropout,
        num_experts=4,
        top_k=2,
        router_init_range=0.5,
        **options,
    )
    base = llama(dtype=dtype)  # always the same one; the seed is the adapter's
    transformers.set_seed(seed)
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return model.to(dtype)


def questions(number: int, seed: int = 0, lengths: tuple[int, int] = (4, 14), choices: tuple[int, int] = (2, 5)):
    """Return encoded questions whose answer is a simple function of their tokens."""
    generator = random.Random(seed)
    encoded = []
    for row in range(number):
        prompt = [generator.randrange(10, 50) for _ in range(generator.randint(*lengths))]
        own = generator.randint(*choices)
        encoded.append(
            {"id": f"q{row}", "input_ids": prompt, "choice_ids": list(range(1, own + 1)), "answer": prompt[0] % own}
        )
    return encoded
