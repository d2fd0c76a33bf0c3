"""Time the ``mixlora`` package's forward pass beside its base; run by an interpreter that has it, see ``forward.py``.

python -m venv mixlora-env && mixlora-env/bin/pip install mixlora==0.2.3 transformers==4.46.3 torch

Prints the versions and, for every round, the mixture's time over the base's.
"""

import json
import sys
import time
from importlib.metadata import version

import torch
from mixlora import inject_adapter_in_model, load_adapter_weights
from transformers import LlamaConfig, LlamaForCausalLM


def model_of(request: dict) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=request["width"],
        intermediate_size=request["inner"],
        num_hidden_layers=1,
        num_attention_heads=request["heads"],
        num_key_value_heads=request["key_heads"],
    )
    return LlamaForCausalLM(config).eval()


def main(request: dict) -> None:
    torch.set_num_threads(request["threads"])
    base, mixture = model_of(request), model_of(request)
    config, weights = load_adapter_weights(request["adapter"], device="cpu")
    inject_adapter_in_model(mixture, config, weights)
    ids = torch.randint(10, 512, (request["rows"], request["tokens"]))
    wall, cpu = [], []
    with torch.inference_mode():
        base(input_ids=ids), mixture(input_ids=ids)
        for _ in range(request["rounds"]):
            took = []
            for model in (base, mixture, mixture, base):
                started = time.perf_counter(), time.process_time()
                model(input_ids=ids, use_cache=False)
                took.append((time.perf_counter() - started[0], time.process_time() - started[1]))
            wall.append((took[1][0] + took[2][0]) / (took[0][0] + took[3][0]))
            cpu.append((took[1][1] + took[2][1]) / (took[0][1] + took[3][1]))
    versions = {name: version(name) for name in ("mixlora", "transformers", "torch")}
    print(json.dumps({"wall": wall, "cpu": cpu, "rounds": len(wall), "versions": versions}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
