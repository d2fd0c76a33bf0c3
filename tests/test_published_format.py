"""MixLoRA's published format: the ``mixlora`` package's own outputs are reproduced, and what we write reads back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from uq4ct.adapters import AdapterError, MixLoraConfig
from uq4ct.adapters.published import load_published, read_published, write_published

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")

STORED = Path(__file__).parent / "data" / "mixlora_published"  # written by mixlora_reference.py with mixlora 0.2.3
FAMILIES = ["llama", "phi", "phi3"]


def base(family: str) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(STORED / family / "base").eval()


@pytest.fixture
def llama(tmp_path) -> Path:
    """A copy of the stored Llama adapter that a test may change."""
    return Path(shutil.copytree(STORED / "llama" / "adapter", tmp_path / "adapter"))


def change(folder: Path, **settings) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_imported_adapter_computes_what_the_mixlora_package_computed(family):
    expected = load_file(STORED / family / "expected.safetensors")
    plain = base(family)(input_ids=expected["input_ids"]).logits
    model = load_published(base(family), STORED / family / "adapter", allow_pickle=True).eval()
    found = model(input_ids=expected["input_ids"]).logits
    assert (expected["logits"] - plain).abs().max() > 0.1  # the adapter matters
    torch.testing.assert_close(found, expected["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_export_then_import_is_the_identity_with_the_published_keys(family, tmp_path):
    original, tensors = read_published(STORED / family / "adapter", allow_pickle=True)
    model = load_published(base(family), STORED / family / "adapter", allow_pickle=True)
    write_published(model, tmp_path)
    settings, again = read_published(tmp_path, allow_pickle=True)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    original["target_modules"].sort()
    assert {key: value for key, value in settings.items() if key != "base_model_name_or_path"} == {
        key: value for key, value in original.items() if key != "base_model_name_or_path"
    }


def test_names_of_before_version_0_2_are_read(llama):
    tensors = torch.load(llama / "adapter_model.bin", weights_only=True)
    projections = {"gate_proj": "w1_proj", "down_proj": "w2_proj", "up_proj": "w3_proj"}

    def legacy(key: str) -> str:
        key = key.replace(".mlp.moe_gate.", ".gate.")
        for modern, old in projections.items():
            if f".mlp.{modern}.experts." in key:
                layer, rest = key.split(f".mlp.{modern}.experts.")
                expert, factor = rest.split(".", 1)
                return f"{layer}.experts.{expert}.{old}.{factor}"
        return key

    renamed = {legacy(key): value for key, value in tensors.items()}
    assert not renamed.keys() & {key for key in tensors if ".mlp." in key}
    torch.save(renamed, llama / "adapter_model.bin")
    names = ["q_proj", "k_proj", "v_proj", "o_proj", *projections.values()]
    change(llama, routing_strategy="mixtral", target_modules=dict.fromkeys(names, True) | {"dense": False})
    expected = load_file(STORED / "llama" / "expected.safetensors")
    model = load_published(base("llama"), llama, allow_pickle=True).eval()
    torch.testing.assert_close(model(input_ids=expected["input_ids"]).logits, expected["logits"], rtol=1e-5, atol=1e-5)


def test_a_pickle_is_read_on_request_only_and_as_tensors_only(llama):
    with pytest.raises(AdapterError, match="is a pickle; pass allow_pickle=True"):
        load_published(base("llama"), llama)
    torch.save({"x": print}, llama / "adapter_model.bin")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load_published(base("llama"), llama, allow_pickle=True)


def test_everything_without_a_counterpart_is_reported(llama):
    change(llama, use_dora=True, routing_strategy="mixlora-switch", act_fn="gelu", expert_lora={"r": 4})
    with pytest.raises(AdapterError) as caught:
        load_published(base("llama"), llama, allow_pickle=True)
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        "routing_strategy",
        "use_dora",
        "expert_lora",
        "act_fn",
    ]


def test_missing_surplus_and_misshapen_tensors_are_reported_and_the_base_is_left_clean(llama):
    tensors = torch.load(llama / "adapter_model.bin", weights_only=True)
    gate, query = "mixlora.layers.1.mlp.moe_gate.weight", "mixlora.layers.0.self_attn.q_proj.lora_A.weight"
    tensors["mixlora.layers.9.mlp.moe_gate.weight"] = tensors.pop(gate)
    tensors[query] = tensors[query][:, :3]
    torch.save(tensors, llama / "adapter_model.bin")
    model = base("llama")
    with pytest.raises(AdapterError) as caught:
        load_published(model, llama, allow_pickle=True)
    message = str(caught.value)
    assert f"tensor {gate} is missing" in message
    assert "no place for tensor mixlora.layers.9" in message
    assert "expected shape (2, 8), got (2, 3)" in message
    assert model.state_dict().keys() == base("llama").state_dict().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"routing": "per_linear"}, "routing 'ffn_block' only"),
        ({"mixing": "raw"}, "mixing 'rescaled' only"),
        ({"num_experts": [3, 4]}, "one number of experts"),
        ({"lora_alpha": 0.5}, "whole lora_alpha"),
    ],
)
def test_what_the_format_cannot_say_is_not_written(options, message, tmp_path):
    model = get_peft_model(base("llama"), MixLoraConfig(r=2, **options))
    with pytest.raises(AdapterError, match=message):
        write_published(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_architecture_the_format_cannot_name_is_not_written(tmp_path):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(AdapterError, match=r"layers.N.self_attn and layers.N.mlp only"):
        write_published(get_peft_model(gpt2, MixLoraConfig(r=2)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_mixlora_package_reads_what_we_write(family, tmp_path):
    python = os.environ.get("UQ4CT_MIXLORA_PYTHON")
    if not python:
        pytest.skip("set UQ4CT_MIXLORA_PYTHON to the python of an environment made as tests/mixlora_reference.py says")
    model = load_published(base(family), STORED / family / "adapter", allow_pickle=True).eval()
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
    write_published(model, tmp_path / "adapter", lora_dropout=1e-30)
    script = Path(__file__).parent / "mixlora_reference.py"
    command = [python, str(script), str(STORED / family / "base"), str(tmp_path / "adapter"), str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True)
    theirs = load_file(tmp_path / "out")
    torch.testing.assert_close(model(input_ids=theirs["input_ids"]).logits, theirs["logits"], rtol=1e-4, atol=1e-4)
