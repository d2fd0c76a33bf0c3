"""The base model is loaded frozen and identified, or refused with a sentence that says what to do."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from uq4ct import backbone
from uq4ct.backbone import ModelConfig
from uq4ct.errors import UserError


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a word tokenizer, saved as the hub would."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "llama"
    settings = LlamaConfig(
        vocab_size=40,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(settings).save_pretrained(folder)
    words = ["<unk>", "<s>", "</s>", "Question", ":", "Answer", *"ABCDEFGHIJ"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "llama"))


def load(folder: Path | str, **options: Any) -> backbone.Backbone:
    return backbone.load(ModelConfig(name=str(folder), device="cpu", **options))


def refusal(folder: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, **options)
    return str(caught.value)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_model_is_loaded_frozen_in_evaluation_mode_and_described(folder):
    base = load(folder)
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert (base.name, base.revision, base.dtype, base.quantization) == (str(folder), None, "float32", "none")
    assert base.parameters == sum(parameter.numel() for parameter in base.model.parameters())
    assert base.context_length == 64
    assert json.loads(json.dumps(base.description)) == base.description
    assert base.description["fingerprint"] == base.fingerprint


def test_padding_uses_the_end_of_text_and_adds_no_token(folder):
    base = load(folder)
    assert base.tokenizer.pad_token == "</s>"
    assert len(base.tokenizer) == 16


def test_the_bundled_model_loads_by_its_name():
    base = backbone.load(ModelConfig(device="cpu"))
    assert base.name == "tiny"
    assert base.parameters < 3_000_000
    assert base.context_length is not None
    assert base.context_length >= 8192


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_the_one_asked_for(folder, dtype):
    assert load(folder, dtype=dtype).dtype == dtype


def test_the_fingerprint_follows_the_weights_and_not_the_folder(folder, tmp_path):
    first = load(folder).fingerprint
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert load(moved).fingerprint == first
    edit(moved, transformers_version="9.9.9")
    assert load(moved).fingerprint == first
    edit(moved, rope_theta=5.0)
    assert load(moved).fingerprint != first
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert load(folder).fingerprint != first


def test_large_weight_files_are_sampled_for_the_fingerprint(folder, monkeypatch):
    monkeypatch.setattr(backbone, "_SAMPLED_ABOVE", 100)
    monkeypatch.setattr(backbone, "_SAMPLE_BYTES", 64)
    first = load(folder).fingerprint
    assert load(folder).fingerprint == first
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert load(folder).fingerprint != first


def test_a_folder_that_is_not_there():
    assert refusal("./nothing/here") == "model.name: no such folder: ./nothing/here"
    assert refusal("a/b/c") == "model.name: no such folder: a/b/c"
    assert refusal(" ") == "model.name: expected tiny, a folder or a hub id, got ' '"


def test_a_hub_model_that_cannot_be_reached():
    message = refusal("nobody/nothing-here", revision="abc")
    assert message.startswith(
        "model.name: no folder 'nobody/nothing-here' here, and the hub model nobody/nothing-here at revision 'abc' "
        "cannot be read ("
    )
    assert message.endswith("Check the name, log in if it is gated, go online, or download it and give the folder")


def test_a_file_instead_of_a_folder(folder):
    assert refusal(folder / "config.json") == (
        f"model.name: {folder / 'config.json'} is a file, expected a folder with config.json and safetensors"
    )


def test_a_folder_without_a_configuration(folder):
    (folder / "config.json").unlink()
    assert refusal(folder) == f"model.name: {folder} has no config.json, so it is not a model folder"
    (folder / "adapter_config.json").write_text("{}")
    assert refusal(folder) == (
        f"model.name: {folder} holds an adapter, not a base model; a run is evaluated with uq4ct evaluate, and its "
        "base model is named in adapter_config.json"
    )


def test_a_broken_configuration(folder):
    (folder / "config.json").write_text('{"model_type": ')
    assert refusal(folder).startswith(f"{folder / 'config.json'}: not readable as JSON (")


def test_an_unknown_architecture(folder):
    edit(folder, model_type="llamaa")
    assert refusal(folder).startswith(f"model.name: {folder} cannot be loaded (")


def test_a_folder_without_a_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    assert refusal(folder) == (
        f"model.name: {folder} has no tokenizer (looked for tokenizer.json, tokenizer.model, vocab.json, vocab.txt, "
        "spiece.model, sentencepiece.bpe.model); copy the tokenizer's files there"
    )


def test_a_tokenizer_is_the_one_of_its_file_whatever_the_model_s_type_suggests(folder):
    """transformers would split the text of every Qwen2 model as Qwen does."""
    from tokenizers import Tokenizer

    edit(folder, model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    add_biases(folder, {name: torch.zeros(8) for name in ("q", "k", "v")})
    found, own = load(folder).tokenizer, Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert len(found) == own.get_vocab_size() == 16
    assert found("Question: A")["input_ids"] == own.encode("Question: A").ids == [3, 4, 6]
    assert (found.padding_side, found.eos_token) == ("left", "</s>")


def add_biases(folder: Path, biases: dict[str, torch.Tensor]) -> None:
    """Qwen2 is Llama with a bias on query, key and value."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for name, bias in biases.items():
        tensors |= {f"model.layers.{layer}.self_attn.{name}_proj.bias": bias.clone() for layer in range(2)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")
    assert refusal(folder).startswith(f"model.name: the tokenizer of {folder} cannot be read (")


def test_a_tokenizer_larger_than_the_model(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["zebra"] = 40
    path.write_text(json.dumps(tokenizer))
    assert refusal(folder) == (
        f"model.name: the tokenizer of {folder} has token ids up to 40, but the model has only 40 embeddings; they do "
        "not belong together, use the tokenizer that the model was trained with"
    )


def test_weights_that_are_only_a_pickle_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert refusal(folder) == (
        f"model.name: {folder} has its weights only as pickle (pytorch_model.bin), which can run code and is not read; "
        "convert them: load the model with transformers where you trust it, then save_pretrained"
    )


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == f"model.name: {folder} has no weights in safetensors; expected model*.safetensors"


@pytest.mark.parametrize("size", [0, 7, 100, 3000])
def test_cut_off_weights(folder, size):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    message = refusal(folder)
    assert message.startswith(f"model.name: {folder} cannot be loaded (")
    assert message.endswith("); copy the model again if it is damaged")


def test_missing_weights_are_never_random_numbers(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert refusal(folder) == (
        f"model.name: {folder} lacks 1 of the model's weights, among them model.layers.1.mlp.up_proj.weight; they "
        "would be random numbers. Copy the model again"
    )


def test_weights_of_another_shape(folder):
    edit(folder, intermediate_size=32)
    assert refusal(folder).startswith(f"model.name: {folder} ")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        (
            {"model_type": "rembert", "architectures": ["RemBertForMaskedLM"]},
            "rembert model (RemBertForMaskedLM): neither a causal language model nor an encoder of a known family",
        ),
        ({"model_type": "albert", "architectures": None}, "albert model (no architecture named): neither a causal"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "an encoder-decoder"),
        ({"model_type": "rwkv", "architectures": ["RwkvForCausalLM"]}, "it ignores the attention mask"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "vit model (ViTModel): neither a causal language model"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "neither a causal language model nor an encoder"),
    ],
)
def test_models_that_do_not_only_look_back_are_refused(folder, changes, kind):
    edit(folder, **changes)
    message = refusal(folder)
    assert message.startswith(f"model.name: {folder} is a ")
    assert kind in message
    assert "such as Llama, Mistral or Qwen" in message


def test_code_that_comes_with_a_model_is_not_run(folder):
    edit(folder, model_type="mine", auto_map={"AutoConfig": "code.Mine", "AutoModelForCausalLM": "code.Model"})
    (folder / "code.py").write_text("raise SystemExit('this ran')\n")
    assert refusal(folder) == (
        f"model.name: {folder} needs code that comes with the model; read that code, then set model.trust_remote_code: "
        "true and its commit as model.revision"
    )


def test_code_from_the_hub_needs_a_revision():
    assert refusal("someone/model", trust_remote_code=True) == (
        "model.trust_remote_code runs code that comes with the model: name the commit that you have read with "
        "model.revision"
    )


def test_quantisation_needs_its_package(folder, monkeypatch):
    find = backbone.importlib.util.find_spec
    monkeypatch.setattr(
        backbone.importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest)
    )
    assert refusal(folder, quantization="nf4") == (
        "model.quantization: nf4 needs the package bitsandbytes (pip install bitsandbytes); or set "
        "model.quantization: none"
    )


def test_a_device_that_is_not_there(folder):
    with pytest.raises(UserError, match=r"^model\.device: warp is not available here; available: cpu"):
        backbone.load(ModelConfig(name=str(folder), device="warp"))


def test_a_gpu_by_a_number_that_none_has(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [backbone.is_there(f"cuda{number}") for number in ("", ":0", ":1", ":2", ":x")] == [True] * 3 + [False] * 2
    with pytest.raises(UserError, match=r"^model\.device: cuda:5 is not available here; available: cpu, cuda:0, cuda:1$"):
        backbone.load(ModelConfig(name=str(folder), device="cuda:5"))


def test_auto_is_the_checkpoint_s_dtype_on_a_gpu_but_float32_for_an_encoder_whose_head_is_trained(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    half, chosen = SimpleNamespace(dtype=torch.float16), partial(backbone._dtype, ModelConfig())
    assert chosen(half, "causal", "cuda:0") == torch.bfloat16
    assert chosen(half, "multiple_choice", "cuda:0") == chosen(half, "causal", "cpu") == torch.float32
    assert backbone._dtype(ModelConfig(dtype="bfloat16"), half, "multiple_choice", "cuda:0") == torch.bfloat16


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="nam"):
        ModelConfig.model_validate({"nam": "tiny"})
