"""A diagonal Gaussian over the weights of a LoRA: means in the adapter, standard deviations beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from uq4ct.errors import UserError
from uq4ct.manifest import write_atomically

STATE = "state.safetensors"
TEST = 1  # sampling has a stream of its own for each use


@dataclass(frozen=True)
class Posterior:
    """A PEFT model whose active LoRA holds the means, and the standard deviation of each random tensor.

    ``std`` has the names of ``adapter_model.safetensors``; a tensor without an entry is not random.
    """

    model: Any
    std: Mapping[str, Tensor]

    @classmethod
    def load(cls, model: Any, folder: Path) -> Posterior:
        """Read the standard deviations that belong to a loaded adapter.

        Raises UserError where the file is missing, damaged or another adapter's.
        """
        path = folder / STATE
        try:
            std = safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}: the standard deviations of the weights cannot be read ({error}); restore the run from a copy"
            ) from error
        shapes = {saved_name(name): parameter.shape for name, parameter in model.named_parameters()}
        if wrong := sorted(name for name, value in std.items() if shapes.get(name) != value.shape):
            raise UserError(
                f"{path}: '{wrong[0]}' is no tensor of this adapter, or has another size; restore the run from a copy"
            )
        return cls(model, std)

    @contextmanager
    def sampled(self, sample: int) -> Iterator[None]:
        """Replace the weights by draw number ``sample``, m + std * noise, and put the very same means back afterwards.

        The noise depends on the number alone: every question, whatever its batch, meets the same weights.
        """
        random = {name: p for name, p in self.model.named_parameters() if saved_name(name) in self.std}
        means = {name: parameter.detach().clone() for name, parameter in random.items()}
        # drawn on the CPU, in float32 and in the order of names, so that another device gets the same draw
        noise = generator("cpu", TEST, sample)
        try:
            with torch.no_grad():
                for name, parameter in sorted(random.items()):
                    std = self.std[saved_name(name)].to(parameter)
                    parameter.add_(std * torch.randn(parameter.shape, generator=noise).to(parameter))
            yield
        finally:
            with torch.no_grad():
                for name, parameter in random.items():
                    parameter.copy_(means[name])


def save_stds(stds: Mapping[str, Tensor], folder: Path) -> None:
    """Write standard deviations, by the names that their tensors have in ``adapter_model.safetensors``."""
    plain = {name: std.detach().cpu().contiguous() for name, std in stds.items()}
    write_atomically(folder / STATE, safetensors.torch.save(plain))


def saved_name(name: str) -> str:
    """Return PEFT's name in a file of a parameter of the adapter "default".

    >>> saved_name("base_model.model.q_proj.lora_A.default.weight")
    'base_model.model.q_proj.lora_A.weight'
    >>> saved_name("base_model.model.classifier.modules_to_save.default.bias")
    'base_model.model.classifier.bias'
    """
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")


def generator(device: Any, *key: int) -> torch.Generator:
    """Return a generator whose stream is a function of the key; near keys are as good as distant ones."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed))


def adapter_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters of a model under their names in a file, in the order of the model."""
    return {saved_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
