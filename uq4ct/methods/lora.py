"""LoRA (Eq. 1): one low-rank adapter trained by maximum likelihood, the paper's lower bound."""

from __future__ import annotations

from typing import ClassVar

from uq4ct.methods.base import LoraMethod


class Lora(LoraMethod):
    """Train PEFT's LoRA on attention and FFN by cross entropy. The paper's rank is 80, its match to 8 experts of 16."""

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "one LoRA adapter, cross entropy"
