"""Every family from a hub-format folder to a run, and from the run to the same probabilities in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers as tf
from toy_tokenizers import byte_level, metaspace

from uq4ct import data, fitting, predictions
from uq4ct.adapters.layers import FfnMixture, MixtureLinear
from uq4ct.answering import UQModel
from uq4ct.config import Layer, resolve
from uq4ct.runs import Run

LAYERS = 6
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
GROUPED = {**SIZES, "num_key_value_heads": 1}


class Family(NamedTuple):
    """How to build a family's model, from its sizes and its tokenizer's, and the kind of that tokenizer."""

    model: Callable[[dict[str, int]], Any]
    tokenizer: str
    routing: str = "ffn_block"


TOKENIZERS = {
    "byte_level": byte_level,  # GPT-2, Llama-3
    "space_before": lambda: metaspace("first"),  # Llama-2, Mistral: a text starts with a space
    "no_space": lambda: metaspace("never"),  # Gemma
}

FAMILIES = {
    "llama": Family(lambda ids: tf.LlamaForCausalLM(tf.LlamaConfig(**GROUPED, **ids)), "space_before"),
    "llama-byte": Family(
        lambda ids: tf.LlamaForCausalLM(tf.LlamaConfig(**GROUPED, tie_word_embeddings=True, **ids)),
        "byte_level",
        routing="per_linear",
    ),
    "mistral": Family(lambda ids: tf.MistralForCausalLM(tf.MistralConfig(**GROUPED, **ids)), "space_before"),
    "qwen2": Family(lambda ids: tf.Qwen2ForCausalLM(tf.Qwen2Config(**GROUPED, **ids)), "byte_level"),
    "qwen3": Family(lambda ids: tf.Qwen3ForCausalLM(tf.Qwen3Config(**GROUPED, head_dim=16, **ids)), "byte_level"),
    "gemma": Family(lambda ids: tf.GemmaForCausalLM(tf.GemmaConfig(**GROUPED, head_dim=16, **ids)), "no_space"),
    "gemma3": Family(
        lambda ids: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**GROUPED, head_dim=16, sliding_window=64, **ids)),
        "no_space",
    ),
    "phi3": Family(lambda ids: tf.Phi3ForCausalLM(tf.Phi3Config(**GROUPED, **ids)), "space_before"),
    "gpt2": Family(
        lambda ids: tf.GPT2LMHeadModel(
            tf.GPT2Config(n_embd=32, n_layer=LAYERS, n_head=2, n_inner=48, n_positions=256, **ids)
        ),
        "byte_level",
    ),
    "gpt2-per-linear": Family(
        lambda ids: tf.GPT2LMHeadModel(
            tf.GPT2Config(n_embd=32, n_layer=LAYERS, n_head=2, n_inner=48, n_positions=256, **ids)
        ),
        "no_space",
        routing="per_linear",
    ),
    "gpt_neox": Family(lambda ids: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SIZES, **ids)), "byte_level"),
}

ROWS = [
    {
        "id": f"q{number}",
        "question": f"Which is number {number}?",
        "choices": ["red", "green", "blue", "grey"][: 3 + number % 2],
        "answer": "ABC"[number % 3],
    }
    for number in range(40)
]

# Another process, as after a reboot: it sees the folders alone.
READ_AGAIN = """
import json, sys
import torch
torch.set_num_threads(1)
from uq4ct import data
from uq4ct.answering import UQModel

asked = data.read_file(sys.argv[1]).questions
found = {}
for folder in sys.argv[2:]:
    model = UQModel.load(folder)
    calibration = set(json.load(open(f"{folder}/splits.json"))["calibration"])
    questions = [question for question in asked if question.id in calibration]
    found[folder] = {row["id"]: row["probabilities"] for row in model.rows(questions, model.predict_questions(questions))}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runs(questions: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("families")
    return {name: train(name, questions, folder) for name in FAMILIES}


def save_model(name: str, folder: Path) -> Path:
    """Write a family's model and tokenizer as a folder of the hub holds them."""
    family = FAMILIES[name]
    tokenizer = TOKENIZERS[family.tokenizer]()
    ids = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    family.model(ids).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return folder / name


def train(name: str, questions: Path, folder: Path) -> Run:
    options = {
        "model": {"name": str(save_model(name, folder)), "device": "cpu"},
        "data": {"source": str(questions), "calibration_fraction": 0.2},
        "method": {"name": "uq4ct", "rank": 2, "num_experts": 4, "routing": FAMILIES[name].routing},
        "train": {"max_steps": 20, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
        "output": {"folder": str(folder / "runs" / name)},
    }
    return fitting.train(resolve([Layer.of(options, "test")]), say=lambda line: None)


def test_every_family_answers_the_same_in_another_process(runs, questions):
    folders = [str(run.folder) for run in runs.values()]
    other = subprocess.run(
        [sys.executable, "-c", READ_AGAIN, str(questions), *folders], capture_output=True, text=True, check=False
    )
    assert other.returncode == 0, other.stderr[-2000:]
    found = json.loads(other.stdout.splitlines()[-1])
    for run in runs.values():
        saved = {row["id"]: row["probabilities"] for row in predictions.read(run.folder / "calibration.jsonl")}
        assert len(saved) == 8
        assert found[str(run.folder)] == saved, run.folder.name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_learned_something_of_its_own(name, runs, questions):
    """Every layer has its mixture, the steps changed the answers, and each question got as many as it has choices."""
    run = runs[name]
    model = UQModel.load(run)
    mixtures = [module for module in model.model.modules() if isinstance(module, (FfnMixture, MixtureLinear))]
    assert len(mixtures) == LAYERS if run.config.method.routing == "ffn_block" else len(mixtures) % LAYERS == 0
    asked = data.read_file(questions).questions[:4]
    fitted = model.predict_questions(asked).probabilities
    with model.model.disable_adapter():
        base = model.predict_questions(asked).probabilities
    assert abs(fitted - base).max() > 1e-3
    log = [json.loads(line) for line in (run.folder / "training_log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 20


def test_every_kind_of_tokenizer_and_both_routings_are_used_at_least_twice():
    kinds = [family.tokenizer for family in FAMILIES.values()]
    assert min(kinds.count(kind) for kind in TOKENIZERS) >= 2
    routings = [family.routing for family in FAMILIES.values()]
    assert min(routings.count(kind) for kind in ("ffn_block", "per_linear")) >= 2
