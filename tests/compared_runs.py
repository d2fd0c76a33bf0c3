"""Run folders whose answers are known, for what is computed across runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from uq4ct import predictions
from uq4ct.manifest import write_json, write_manifest
from uq4ct.metrics import summarize
from uq4ct.report.answered import Scored


def scored(
    folder: Path,
    method: str,
    seed: int,
    probabilities: Any,
    answer: Sequence[int],
    *,
    task: str = "coins",
    feu: Any = None,
    groups: Sequence[str] | None = None,
    samples: Any = None,
    options: dict[str, Any] | None = None,
    question: str = "Which?",
    seen: Any = None,
) -> Scored:
    """Write one evaluation of a run on questions with two choices, and what else a comparison reads of the run.

    ``probabilities`` are those of the first choice; ``samples`` (question, sample) too, their mean must be
    ``probabilities``. Called again for another task it adds an evaluation to the same run.
    """
    run = folder / f"{method}-{seed}"
    place = run / "evaluations" / task
    place.mkdir(parents=True)
    first = np.asarray(probabilities, dtype=np.float64)
    rows = []
    for i, (p, a) in enumerate(zip(first, answer, strict=True)):
        both = np.array([p, 1 - p])
        drawn = None if samples is None else np.stack([samples[i], 1 - np.asarray(samples[i])], axis=1)
        mean_entropy = 0.0 if drawn is None else float(-(drawn * np.log(drawn)).sum(axis=1).mean())
        epistemic = 0.0 if drawn is None else max(float(-(both * np.log(both)).sum()) - mean_entropy, 0.0)
        row = {
            "id": f"{task}-{i}",
            "question": question,
            "choices": ["x", "y"],
            "prediction": "AB"[int(both.argmax())],
            "confidence": float(both.max()),
            "probabilities": dict(zip("AB", both.tolist(), strict=True)),
            "uncertainty": {"total": 0.0, "aleatoric": 0.0, "epistemic": epistemic},
            "label": "AB"[a],
            "correct": bool(both.argmax() == a),
            "feu": None if feu is None else float(feu[i]),
            "abstained": False,
        }
        row |= {} if groups is None else {"group": groups[i]}
        row |= {} if seen is None else {"seen_tokens": float(seen[i])}
        row |= {} if drawn is None else {"samples": np.log(drawn).tolist()}
        rows.append(row)
    predictions.write(place / "predictions.jsonl", rows)
    made = {"passes": 1, "dtype": "float32", "prompt": {"hash": "0" * 64, "scoring": "letters"}, "data": {"path": ""}}
    write_json(place / "metrics.json", {**summarize(rows, task=task, split="test", resamples=100), **made})
    write_manifest(place)
    write_json(run / "uq4ct.json", {"task": "coins", "data": {"path": "/elsewhere/train.jsonl"}})
    config = {"method": {"name": method, "answer_loss": "choices", **(options or {})}, "train": {"learning_rate": 0.1}}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return Scored(method, seed, run, tuple(sorted(path.name for path in (run / "evaluations").iterdir())))
