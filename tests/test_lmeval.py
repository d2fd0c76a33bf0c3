"""Our runs and metrics inside lm-evaluation-harness, live: the same numbers as its own models and our own commands."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uq4ct import tiny
from uq4ct.runs import Run

ROOT = Path(__file__).parents[1]
PLAIN = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{'ABCDE'.index(answer)}}}}"
metadata: {{version: 1.0}}
"""
CALIBRATED = """
class: !function uq4ct.lmeval.task.CalibratedTask
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: uq4ct_ece}
  - {metric: uq4ct_nll}
  - {metric: uq4ct_brier}
  - {metric: uq4ct_auroc}
"""
AGGREGATED = """
metric_list:
  - {metric: likelihood, aggregation: uq4ct_ece, higher_is_better: false}
  - {metric: brier_score, aggregation: uq4ct_brier, higher_is_better: false}
"""


def test_the_core_does_not_import_the_harness():
    code = (
        "import sys, pkgutil, importlib, uq4ct\n"
        "for m in ('cli', 'predictions', 'report', 'metrics', 'answering'): importlib.import_module('uq4ct.' + m)\n"
        "sys.exit('lm_eval' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_entry_point_is_there():
    pytest.importorskip("lm_eval")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    from lm_eval.api import registry

    for group, known in (
        ("lm_eval.models", "model_registry"),
        ("lm_eval.metrics", "metric_registry"),
        ("lm_eval.aggregations", "aggregation_registry"),
    ):
        for name, target in groups[group].items():
            module, _, attribute = target.partition(":")
            found = getattr(import_module(module), attribute)
            assert getattr(registry, known).get(name) is found


# ---------------------------------------------------------------------------------------------------------- aggregations


RAGGED = [(0, [-1.0, -2.0, -3.0]), (1, [-0.5, -0.7]), (2, [-9.0, -1.0, -4.0, -2.5]), (0, [-0.1, -5.0])]


def by_hand(items: list[tuple[int, list[float]]]) -> tuple[list[list[float]], float, float]:
    """Softmax, NLL and Brier score by explicit loops."""
    rows, nll, brier = [], 0.0, 0.0
    for gold, likelihoods in items:
        weights = [math.exp(x) for x in likelihoods]
        p = [w / sum(weights) for w in weights]
        rows.append(p)
        nll -= math.log(p[gold]) / len(items)
        brier += sum((q - (k == gold)) ** 2 for k, q in enumerate(p)) / len(items)
    return rows, nll, brier


def test_aggregations_take_rows_with_any_number_of_choices():
    pytest.importorskip("lm_eval")
    from uq4ct.lmeval import metrics

    rows, nll, brier = by_hand(RAGGED)
    assert metrics.nll(RAGGED) == pytest.approx(nll)
    assert metrics.brier(RAGGED) == pytest.approx(brier)
    as_probabilities = [(gold, p) for (gold, _), p in zip(RAGGED, rows, strict=True)]
    assert metrics.brier(as_probabilities) == pytest.approx(brier)
    right = [p.index(max(p)) == gold for (gold, _), p in zip(RAGGED, rows, strict=True)]
    pairs = [(max(p), r) for p, r in zip(rows, right, strict=True)]
    above = [(a > b) + (a == b) / 2 for a, is_right in pairs for b, other in pairs if is_right and not other]
    assert metrics.auroc(RAGGED) == pytest.approx(np.mean(above))
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, r in pairs:
        bins.setdefault(math.ceil(confidence * 15), []).append((confidence, r))
    gaps = [abs(sum(c for c, _ in inside) - sum(r for _, r in inside)) for inside in bins.values()]
    assert metrics.ece(RAGGED) == pytest.approx(sum(gaps) / len(pairs))


def test_what_has_no_value_is_nan_and_what_is_no_answer_is_refused(caplog: pytest.LogCaptureFixture):
    pytest.importorskip("lm_eval")
    from uq4ct.lmeval import metrics

    assert math.isnan(metrics.auroc(RAGGED[:1]))
    assert "all 1 are right" in caplog.text
    for item, message in (
        (([0, 1], [-1.0, -2.0]), "one right answer"),
        ((-100, [-1.0, -2.0]), "none of the 2 choices"),
        ((0, [0.4, 0.3]), "expected log-likelihoods or probabilities"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.nll([item])


# ------------------------------------------------------------------------------------------------------------------ live


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with tasks, and runs of the bundled model: no adapter, a mixture whose experts do something, dropout."""
    pytest.importorskip("lm_eval")
    from uq4ct import cli

    folder = tmp_path_factory.mktemp("harness")
    lines = (Path(tiny.__file__).parent / "data" / "near.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, more in (("plain", ""), ("calibrated", CALIBRATED), ("aggregated", AGGREGATED)):
        text = PLAIN.format(name=f"uq_{name}", data=folder / "questions.jsonl") + more
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    for method in ("zero_shot", "uq4ct", "mc_dropout", "zero_shot+temperature"):
        train = f"train --model tiny --method {method} --max-steps 2 --set train.learning_rate=5e-3 --data"
        assert cli.invoke([*train.split(), str(folder / "questions.jsonl"), "--output", str(folder / method)]) == 0
    return folder


def evaluated(folder: Path, lm: Any, *tasks: str) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(model=lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0)


def responses(result: dict[str, Any], task: str) -> list[Any]:
    return [pair for document in result["samples"][task] for pair in document["filtered_resps"]]


def request(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_a_run_without_an_adapter_is_the_harness_own_model(harness: Path):
    from lm_eval.models.huggingface import HFLM

    from uq4ct.lmeval.model import UQLM

    base = str(Path(tiny.__file__).parent / "model")
    theirs = HFLM(pretrained=base, device="cpu", dtype="float32", batch_size=8)
    ours = UQLM(harness / "zero_shot")
    assert responses(evaluated(harness, ours, "uq_plain"), "uq_plain") == responses(
        evaluated(harness, theirs, "uq_plain"), "uq_plain"
    )
    for kind, arguments in (
        ("loglikelihood_rolling", ("The usual use of Kedium is crown.",)),
        ("generate_until", ("The usual use of Kedium is", {"until": ["\n"], "max_gen_toks": 5, "do_sample": False})),
    ):
        requests = [request(kind, *arguments)]
        assert getattr(ours, kind)(requests) == getattr(theirs, kind)(requests)


def test_a_mixture_answers_in_the_harness_as_it_does_in_uq4ct(harness: Path):
    """Letters after the run's own prompt: the harness's log-likelihoods are those of the run, whatever the batch."""
    from uq4ct import data
    from uq4ct.answering import UQModel
    from uq4ct.lmeval.model import UQLM

    loaded = UQModel.load(harness / "uq4ct")
    questions = data.read_file(harness / "questions.jsonl").questions
    expected = loaded.predict_questions(questions)
    found = []
    for size in (1, 16):
        lm = UQLM(harness / "uq4ct", batch_size=size)
        requests, spans = [], []
        for example in loaded.encoder.encode_all(questions):
            prompt, letters = list(example["input_ids"]), list(example["choice_ids"])
            spans.append(len(letters))
            requests += [(("", ""), prompt, [letter]) for letter in letters]
        scores = iter(lm._loglikelihood_tokens(requests, disable_tqdm=True))
        found.append([[next(scores)[0] for _ in range(span)] for span in spans])
    for likelihoods, row, other in zip(found[0], expected.log_probabilities, found[1], strict=True):
        normal = np.array(likelihoods) - np.logaddexp.reduce(likelihoods)
        assert normal == pytest.approx(row[: len(normal)], abs=2e-5)
        assert likelihoods == pytest.approx(other, abs=2e-5)
    plain = UQLM(harness / "zero_shot")._loglikelihood_tokens(requests[:1], disable_tqdm=True)[0][0]
    assert abs(plain - found[0][0][0]) > 1e-3  # the adapter does something


def test_the_harness_table_has_the_numbers_of_our_own_commands(harness: Path, tmp_path: Path):
    from uq4ct import predictions
    from uq4ct.lmeval.model import UQLM
    from uq4ct.metrics import summarize

    result = evaluated(harness, UQLM(harness / "uq4ct"), "uq_calibrated", "uq_aggregated")
    path = tmp_path / "samples_uq_calibrated.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for document in result["samples"]["uq_calibrated"]:
            arguments = {f"gen_args_{k}": {"arg_0": a, "arg_1": b} for k, (a, b) in enumerate(document["arguments"])}
            file.write(json.dumps(document | {"arguments": arguments}, default=str) + "\n")
    own = summarize(predictions.read(path), resamples=20)
    table = result["results"]["uq_calibrated"]
    assert table["acc,none"] == own["accuracy"]
    for name in ("ece", "nll", "brier", "auroc"):
        assert table[f"uq4ct_{name},none"] == pytest.approx(own[name], abs=1e-9), name
    aggregated = result["results"]["uq_aggregated"]
    assert aggregated["likelihood,none"] == pytest.approx(own["ece"], abs=1e-9)
    assert aggregated["brier_score,none"] == pytest.approx(own["brier"], abs=1e-9)


def test_results_name_the_run_and_what_is_not_applied_and_several_passes_are_refused(harness: Path, caplog):
    from uq4ct.errors import UserError
    from uq4ct.lmeval.model import UQLM

    facts = UQLM.create_from_arg_string(f"pretrained={harness / 'uq4ct'}", {"batch_size": 4}).get_model_info()
    assert (facts["uq4ct_method"], facts["uq4ct_suffix_not_applied"]) == ("uq4ct", None)
    assert facts["model_sha"] == Run.open(harness / "uq4ct").facts["base"]["fingerprint"]
    with caplog.at_level("WARNING"):
        scaled = UQLM(harness / "zero_shot+temperature").get_model_info()
    assert (scaled["uq4ct_method"], scaled["uq4ct_suffix_not_applied"]) == ("zero_shot", "temperature")
    assert "'zero_shot+temperature' is measured without +temperature" in caplog.text
    with pytest.raises(UserError, match="'mc_dropout' predicts with more than one forward pass"):
        UQLM(harness / "mc_dropout")
