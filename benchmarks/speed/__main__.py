"""Run the measurements and write results and page: ``python -m benchmarks.speed [--size smoke] [--only ...]``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

PARTS = (
    *("floor", "training_step", "memory", "forward", "curves", "compiled"),
    *("scoring", "latency", "ensembles", "command_line"),
)
TRAINING = ("training_step", "memory", "curves", "compiled")  # answers do not run under autocast
KEPT = {"cpu": Path("docs/speed.json"), "cuda": Path("docs/speed-gpu.json")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts that are asked for; what an earlier run found for the others stays."""
    parser = _parser()
    given = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    warnings.filterwarnings("ignore")
    device = given.device or ("cuda" if given.size == "gpu" else "cpu")
    output = given.output or (Path("build/speed-smoke.json") if given.size == "smoke" else KEPT[device])
    results: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    if given.page_only:
        if not results:
            parser.error(f"--page-only needs the results of an earlier run; expected them in {output}")
    else:
        if other := _of_another_run(results, given.size, device):
            parser.error(f"{output} has {other}; results of {given.size} on {device} need an --output of their own")
        if device == "cuda" and not _has_a_gpu():
            parser.error("size gpu and --device cuda need a GPU that PyTorch can use, and there is none here")
        _measure(given, device, output, results)
    from benchmarks.speed.page import write_page

    write_page(results, output.with_suffix(".md"))
    print(f"wrote {output.with_suffix('.md')}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--size", choices=("smoke", "usual", "gpu"), default="usual", help="gpu: Llama-2-7B, bfloat16")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of PyTorch; all cores if left out")
    parser.add_argument("--device", choices=tuple(KEPT), help="the size's own where it is left out")
    parser.add_argument("--data-root", help="folder with openbookqa/test.jsonl; without it the bundled questions")
    parser.add_argument("--mixlora-python", help="interpreter of an environment that has the mixlora package")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page from the results")
    parser.add_argument(
        "--output",
        type=Path,
        help="results, the page beside it; if left out docs/speed.json, docs/speed-gpu.json or build/speed-smoke.json",
    )
    return parser


def _has_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _of_another_run(results: dict[str, Any], size: str, device: str) -> str | None:
    """Say whose results there are already, if they are of another size or device: a page is of one."""
    there = {(found["run"]["size"], found["run"]["device"]) for found in results.values()} - {(size, device)}
    return " and ".join(f"results of {size} on {device}" for size, device in sorted(there)) or None


def _measure(given: argparse.Namespace, device: str, output: Path, results: dict[str, Any]) -> None:
    """Measure part by part and keep each at once."""
    import torch

    from benchmarks.speed.settings import SIZES

    torch.set_num_threads(given.threads)
    settings = replace(SIZES[given.size], data_root=given.data_root, mixlora_python=given.mixlora_python)
    settings = replace(settings, device=device, threads=given.threads)
    for part in given.only:
        started = time.perf_counter()
        found = importlib.import_module(f"benchmarks.speed.{part}").run(settings)
        took = round(time.perf_counter() - started)
        how = {"command": _command(given, part), "size": given.size, "device": device, "threads": given.threads}
        precision = str(settings.dtype).removeprefix("torch.")
        precision += " under autocast" if settings.autocast and part in TRAINING else ""
        results[part] = {**found, "run": {**how, "precision": precision, **_machine(device), "seconds": took}}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{part}: {took} s", flush=True)


def _command(given: argparse.Namespace, part: str) -> str:
    """Return what measures this part again; paths of this machine are named, not shown."""
    words = ["python -m benchmarks.speed", f"--only {part}", f"--size {given.size}", f"--threads {given.threads}"]
    words += [f"--device {given.device}"] if given.device else []
    words += ["--data-root DATA"] if given.data_root and part == "scoring" else []
    words += ["--mixlora-python PYTHON"] if given.mixlora_python and part == "forward" else []
    return " ".join(words)


def _machine(device: str) -> dict[str, Any]:
    import peft
    import torch
    import transformers

    busy = round(os.getloadavg()[0], 1)
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    name = torch.cuda.get_device_name() if device != "cpu" else platform.processor() or platform.machine()
    return {"machine": name, "cores": os.cpu_count(), "load": busy, "python": platform.python_version(), **versions}


if __name__ == "__main__":
    main()
