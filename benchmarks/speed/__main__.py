"""Run the measurements and write results and page: ``python -m benchmarks.speed [--size smoke] [--only ...]``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

PARTS = (
    *("floor", "training_step", "memory", "forward", "curves", "compiled"),
    *("scoring", "latency", "ensembles", "command_line"),
)


def main() -> None:
    """Measure the parts that are asked for; what an earlier run found for the others stays."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--size", choices=("smoke", "usual", "gpu"), default="usual", help="gpu: Llama-2-7B, bfloat16")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch; 1 makes CPU time comparable")
    parser.add_argument("--device", help="cpu or cuda; the size's own where it is left out")
    parser.add_argument("--data-root", help="folder with openbookqa/test.jsonl; without it the bundled questions")
    parser.add_argument("--mixlora-python", help="interpreter of an environment that has the mixlora package")
    parser.add_argument("--output", type=Path, default=Path("docs/speed.json"), help="results; the page is beside it")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    warnings.filterwarnings("ignore")

    import torch

    from benchmarks.speed.page import write_page
    from benchmarks.speed.settings import SIZES

    torch.set_num_threads(given.threads)
    settings = replace(SIZES[given.size], data_root=given.data_root, mixlora_python=given.mixlora_python)
    settings = replace(settings, device=given.device or settings.device)
    results: dict[str, Any] = json.loads(given.output.read_text()) if given.output.exists() else {}
    for part in given.only:
        started = time.perf_counter()
        found = importlib.import_module(f"benchmarks.speed.{part}").run(settings)
        found["run"] = {"size": given.size, "device": settings.device, "threads": given.threads, **_machine()}
        found["run"]["seconds"] = round(time.perf_counter() - started)
        results[part] = found
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{part}: {found['run']['seconds']} s", flush=True)
    write_page(results, given.output.with_suffix(".md"))
    print(f"wrote {given.output} and {given.output.with_suffix('.md')}")


def _machine() -> dict[str, Any]:
    import peft
    import torch
    import transformers

    busy = round(os.getloadavg()[0], 1)
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"machine": name, "cores": os.cpu_count(), "load": busy, "python": platform.python_version(), **versions}


if __name__ == "__main__":
    main()
