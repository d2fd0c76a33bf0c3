"""An adapter is loaded whole, from safetensors, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_toys import llama

from uq4ct.adapters import MixLoraConfig
from uq4ct.errors import UserError
from uq4ct.methods.base import load_adapter

ADAPTERS = {
    "mixture": MixLoraConfig(task_type="CAUSAL_LM", r=2, num_experts=3),
    "lora": peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"]),
}


@pytest.fixture(params=ADAPTERS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    peft.get_peft_model(llama(), ADAPTERS[request.param]).save_pretrained(tmp_path)
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_adapter(llama(), folder)
    return str(caught.value).removeprefix(f"{folder}/")


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def test_a_whole_adapter_is_loaded(folder):
    saved = load_file(folder / "adapter_model.safetensors")
    loaded = peft.get_peft_model_state_dict(load_adapter(llama(), folder))
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_a_tensor_that_is_missing_is_not_left_at_its_initial_value(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    del tensors[name]
    rewrite(folder, tensors)
    assert refusal(folder) == (
        f"adapter_model.safetensors: lacks 1 tensors, among them {name}; it does not belong to adapter_config.json and "
        "this base model, restore the run from a copy"
    )


def test_tensors_too_many_or_of_another_size(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    rewrite(folder, tensors | {"base_model.model.extra": torch.zeros(1)})
    assert refusal(folder).startswith(
        "adapter_model.safetensors: 1 tensors too many, among them base_model.model.extra"
    )
    rewrite(folder, {name: torch.zeros(*tensor.shape, 2).squeeze(0) for name, tensor in tensors.items()})
    assert refusal(folder).startswith("adapter_model.safetensors: tensors of another size; it does not belong to")


def test_a_pickle_is_never_read(folder):
    """PEFT would fall back to adapter_model.bin."""
    tensors = load_file(folder / "adapter_model.safetensors")
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    assert refusal(folder).startswith(
        "adapter_model.safetensors: missing, and an adapter is read from safetensors only"
    )
    shutil.copy(folder / "adapter_model.bin", folder / "adapter_model.safetensors")
    assert refusal(folder).startswith("adapter_model.safetensors: not readable as safetensors (")
