"""Write tiny adapters in MixLoRA's published format, and what the ``mixlora`` package computes with them.

Not part of the test run: it needs an environment of its own, because the package is tied to old versions.

    python -m venv mixlora-env
    mixlora-env/bin/pip install mixlora==0.2.3 transformers==4.46.3 torch
    mixlora-env/bin/python tests/mixlora_reference.py tests/data/mixlora_published
"""

import json
import sys
from pathlib import Path

import torch
from mixlora import inject_adapter_in_model, load_adapter_weights
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, PhiConfig, PhiForCausalLM

WIDTH, INNER, HEADS, KEYS, RANK, EXPERTS, TOP_K = 8, 12, 2, 1, 2, 3, 2
SIZES = {
    "vocab_size": 16,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QUERY, KEY = WIDTH, WIDTH // HEADS * KEYS

# per model: how to build it, the linears of attention and of the FFN as (in, out)
MODELS = {
    "llama": (
        lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=KEYS)),
        {"q_proj": (WIDTH, QUERY), "k_proj": (WIDTH, KEY), "v_proj": (WIDTH, KEY), "o_proj": (QUERY, WIDTH)},
        {"gate_proj": (WIDTH, INNER), "up_proj": (WIDTH, INNER), "down_proj": (INNER, WIDTH)},
    ),
    "phi": (
        lambda: PhiForCausalLM(PhiConfig(**SIZES)),
        {"q_proj": (WIDTH, WIDTH), "k_proj": (WIDTH, WIDTH), "v_proj": (WIDTH, WIDTH), "dense": (WIDTH, WIDTH)},
        {"fc1": (WIDTH, INNER), "fc2": (INNER, WIDTH)},
    ),
    "phi3": (
        lambda: Phi3ForCausalLM(Phi3Config(**SIZES, num_key_value_heads=KEYS)),
        {"qkv_proj": (WIDTH, QUERY + 2 * KEY), "o_proj": (QUERY, WIDTH)},
        {"gate_up_proj": (WIDTH, 2 * INNER), "down_proj": (INNER, WIDTH)},
    ),
}


def adapter_tensors(attention: dict, ffn: dict) -> dict:
    tensors = {}

    def low_rank(key: str, sizes: tuple) -> None:
        tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, sizes[0]) * 0.4
        tensors[f"{key}.lora_B.weight"] = torch.randn(sizes[1], RANK) * 0.4

    for layer in range(SIZES["num_hidden_layers"]):
        for name, sizes in attention.items():
            low_rank(f"mixlora.layers.{layer}.self_attn.{name}", sizes)
        tensors[f"mixlora.layers.{layer}.mlp.moe_gate.weight"] = torch.randn(EXPERTS, WIDTH)
        for name, sizes in ffn.items():
            for expert in range(EXPERTS):
                low_rank(f"mixlora.layers.{layer}.mlp.{name}.experts.{expert}", sizes)
    return tensors


def write(folder: Path, name: str) -> None:
    build, attention, ffn = MODELS[name]
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5).add_(0.01)  # away from near-linear, so that a wrong activation would show
    model.save_pretrained(folder / "base")
    adapter = folder / "adapter"
    adapter.mkdir(parents=True, exist_ok=True)
    torch.save(adapter_tensors(attention, ffn), adapter / "adapter_model.bin")
    settings = {
        "bias": "none",
        "peft_type": "MIXLORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 1e-30,  # the package wants more than 0 and never switches dropout off
        "target_modules": [*attention, *ffn],
        "routing_strategy": "mixlora",
        "num_experts": EXPERTS,
        "top_k": TOP_K,
        "act_fn": model.config.hidden_act,  # documented as optional, but the package fails without
    }
    (adapter / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    logits(model, adapter, folder / "expected.safetensors")


def logits(model: torch.nn.Module, adapter: Path, out: Path) -> None:
    """Save what the package computes with an adapter."""
    config, weights = load_adapter_weights(str(adapter), device="cpu")
    inject_adapter_in_model(model, config, weights)
    ids = torch.tensor([[5, 3, 9, 1, 7, 11], [2, 2, 8, 4, 6, 15]])
    with torch.no_grad():
        save_file({"input_ids": ids, "logits": model(input_ids=ids).logits}, str(out))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        for model_name in MODELS:
            write(Path(sys.argv[1]) / model_name, model_name)
    else:  # BASE ADAPTER OUT: run the package on an adapter that was exported to its format
        base, exported, out_file = map(Path, sys.argv[1:])
        kind = json.loads((base / "config.json").read_text())["model_type"]
        classes = {"llama": LlamaForCausalLM, "phi": PhiForCausalLM, "phi3": Phi3ForCausalLM}
        logits(classes[kind].from_pretrained(base).eval(), exported, out_file)
