"""Made inputs of the report: run folders, and whole comparisons with results.json, without a model."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from uq4ct import predictions
from uq4ct.manifest import write_json, write_manifest
from uq4ct.metrics import Settings, summarize
from uq4ct.posthoc.abstain import AbstainRule
from uq4ct.report import comparison

TASKS = {"tiny": 0.0, "tiny-near": 0.06, "tiny-far": 0.16, "tiny-unanswerable": 0.45}
METHODS = {"zero_shot": (0.09, 1.3), "lora": (0.0, 2.1), "mixlora": (0.01, 1.9), "uq4ct": (0.0, 1.35)}
RULE = AbstainRule(0.7, 0.85, 0.95, n=60, kept=40, accuracy=0.9)  # of every run of uq4ct
STRATA = {"often": 1.0, "rare": 0.6, "contradicted": 0.35}
PAYLOAD = "<script>alert(1)</script><img src=x onerror=alert(2)> $\\frac{1}{2}$ \"'&"


def made_rows(
    n: int, shift: float, weakness: float, sharpness: float, feu: bool, method: str, seed: int = 1
) -> list[dict]:
    """Answer questions whose true probabilities are known: sharpness above 1 is overconfidence.

    Questions depend on the shift alone, beliefs on the seed too.
    """
    world, mind = np.random.default_rng(int(100 * shift) + 1), np.random.default_rng([seed, int(100 * shift)])
    rows = []
    for number in range(n):
        k = int(world.integers(3, 6))
        stratum = list(STRATA)[int(world.integers(3))] if shift < 0.4 else "never"
        strength = STRATA.get(stratum, 0.0) * 4.5 * (1 - shift)
        truth = np.exp(strength * (np.arange(k) == world.integers(k)) + 0.3 * world.normal(size=k))
        truth /= truth.sum()
        gold = int(world.choice(k, p=truth))
        logits = sharpness * (np.log(truth) * (1 - 3 * weakness) + mind.normal(size=k) * (0.5 + 2 * shift))
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        labels, best = [chr(65 + j) for j in range(k)], int(p.argmax())
        known = float(np.clip(0.35 + 0.4 * truth.max() + 0.06 * mind.normal(), 0.25, 1))
        rows.append(
            {
                "id": f"q{number}",
                "question": f"Where does the traveller from town {number} buy lamp oil?",
                "choices": [f"at market {j}" for j in range(k)],
                "prediction": labels[best],
                "confidence": float(p[best]),
                "probabilities": dict(zip(labels, p.tolist(), strict=True)),
                "feu": known if feu else None,
                "uncertainty": {"total": 0.5, "aleatoric": 0.5, "epistemic": 0.0},
                "label": labels[gold],
                "correct": best == gold,
                "abstained": method == "uq4ct" and float(p[best]) < 0.7,
                "logits": logits.tolist(),
                "stratum": stratum,
                "true_probabilities": truth.tolist(),
                "method": method,
                "seed": seed,
            }
        )
    return rows


def make_run(
    folder: Path,
    method: str,
    n: int,
    tasks: Mapping[str, float] = TASKS,
    resamples: int = 100,
    seed: int = 1,
    calibration: int = 0,
) -> Path:
    """Write a run folder with an evaluation per task, as ``train`` and ``evaluate`` leave it.

    Options of a method, ``lora[rank=4]``, are in its configuration only.
    """
    bare, options = re.sub(r"\[.*\]", "", method), "".join(re.findall(r"\[.*\]", method))
    weakness, sharpness = METHODS.get(method.partition("+")[0], (0.0, 1.5))
    sharpness = 1.0 if "+" in bare else sharpness
    router = method.partition("+")[0] in ("mixlora", "uq4ct")
    for task, shift in tasks.items():
        place = folder / "evaluations" / task.replace("/", "_")
        place.mkdir(parents=True)
        rows = made_rows(n, shift, weakness, sharpness, router, method, seed)
        predictions.write(place / "predictions.jsonl", rows)
        metrics = {
            "task": task,
            "split": "test",
            "method": bare,
            "seed": seed,
            **summarize(rows, resamples=resamples),
        }
        metrics["data"] = {"path": f"{task}.jsonl", "sha256": "5d41402abc4b2a76b9719d911017c592"}
        metrics |= {"prompt": {"hash": "3f2a9c", "scoring": "letters"}, "dtype": "float32", "passes": 1}
        write_json(place / "metrics.json", metrics)
        write_manifest(place, rule=RULE.to_dict() if method == "uq4ct" else None)
    facts = {
        "method": bare,
        "seed": seed,
        "task": "tiny",
        "n": 540,
        "passes": 1,
        "seconds": 47.3,
        "notes": ["a note"],
    }
    facts |= {
        "trainable_parameters": 123456,
        "extra_bytes": 493824,
        "base": {"name": "tiny", "dtype": "float32"},
        "prompt": {"hash": "3f2a9c"},
        "data": {"path": "train.jsonl"},
    }
    write_json(folder / "uq4ct.json", facts)
    own = f", options: '{options}'" if options else ""
    config = f"method: {{name: '{bare}', answer_loss: choices{own}}}\nmodel: {{name: tiny}}\n"
    (folder / "config.yaml").write_text(config)
    write_json(folder / "environment.json", {"uq4ct": "0.1.0", "device": "cpu", "packages": {"torch": "2.13"}})
    if calibration:
        kept = made_rows(calibration, 0.01, weakness, sharpness, router, method, seed)
        predictions.write(folder / "calibration.jsonl", kept)
    if "+" in bare:
        write_json(folder / "posthoc.json", {"name": "temperature", "temperature": 1.9 + 0.05 * seed, "items": 60})
    if method == "uq4ct":
        RULE.save(folder / "abstain.json")
    _write_log(folder / "training_log.jsonl", router, seed)
    write_manifest(folder, ["uq4ct.json", "environment.json", "training_log.jsonl"])
    return folder


def _write_log(path: Path, router: bool, seed: int) -> None:
    generator = np.random.default_rng(4 + seed)
    log = []
    for step in range(10, 210, 10):
        entry = {"step": step, "ce": 1.2 * np.exp(-step / 90) + 0.05 * generator.random()}
        entry["accuracy"] = 1 - 0.6 * np.exp(-step / 70)
        if router:
            entry |= {"feu": 0.3 + step / 600, "calibration": 0.3 * np.exp(-step / 120), "expert_load_entropy": 0.95}
        log.append(entry)
    if router:
        log[-1]["expert_load"] = generator.dirichlet(np.full(8, 6.0), size=4).round(4).tolist()
    path.write_text("".join(json.dumps(entry) + "\n" for entry in log))


def make_comparison(
    folder: Path,
    methods: Sequence[str] = ("lora", "lora+temperature", "mixlora", "uq4ct"),
    tasks: Mapping[str, float] = TASKS,
    seeds: Sequence[int] = (1, 2),
    n: int = 60,
    resamples: int = 20,
    baseline: str = "lora",
) -> Path:
    """Write a folder as ``compare`` leaves it: cells, and results.json with differences, verdicts and tests."""
    scored, cells = [], []
    for method in methods:
        for seed in seeds:
            name = re.sub(r"[^\w.]+", "-", method)
            cell = folder / "cells" / f"{name}-tiny-seed{seed}-0123456789ab"
            make_run(cell, method, n, tasks, resamples, seed)
            write_json(cell / "cell.json", {"method": method, "evaluation_seconds": 14.9})
            scored.append(comparison.Scored(method, seed, cell, tuple(tasks)))
            cells.append(
                {
                    "method": method,
                    "task": "tiny",
                    "seed": seed,
                    "status": "complete",
                    "folder": f"/elsewhere/{cell.name}",
                }
            )
    settings = Settings(resamples=resamples)
    found = {
        "protocol": {"name": "sound", "preset": "product", "summary": "the labelled test split"},
        "notes": ["Protocol sound."],
        "code_sha256": "7f925a27",
        "cells": cells,
        "costs": comparison.costs(scored),
        "absent": {},
        **comparison.compare(scored, len(seeds), settings, baseline),
    }
    write_json(folder / "results.json", found)
    return folder


class Elements(html.parser.HTMLParser):
    """Collect tags, attributes and visible text, and check that tags close in order."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "br", "img", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data.replace("\u00a0", " "))
