"""On a GPU: the numbers of the CPU for layers, losses, every method and encoders; resuming, bfloat16, two workers.

``UQ4CT_TEST_DEVICE=cpu`` runs the same tests where there is no GPU.
"""

from __future__ import annotations

import copy
import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import encoder_toys
import numpy as np
import peft
import pytest
import torch
import transformers
from training_runs import CALIBRATED, IVON, At, digests, run
from training_toys import llama, mixture
from training_toys import questions as toy_questions

from uq4ct import cli, fitting, methods, predictions
from uq4ct.adapters import record_routing
from uq4ct.adapters.layers import AdapterLayer, FfnMixture, use_arithmetic
from uq4ct.answering import UQModel
from uq4ct.backbone import Backbone, ModelConfig, load
from uq4ct.config import Config, Layer, resolve
from uq4ct.data import read_file
from uq4ct.encoders import kind_of
from uq4ct.evaluating import evaluate
from uq4ct.forward import base_of
from uq4ct.losses.objective import Objective
from uq4ct.prompts import PromptConfig
from uq4ct.runs import Run
from uq4ct.scoring import Scores, collate, score, uq4ct_loss
from uq4ct.sequences import encoder_for
from uq4ct.training import Interrupted
from uq4ct.variational.backprop import BackpropTrainer

DEVICE = os.environ.get("UQ4CT_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TINY = Path(fitting.__file__).parent / "tiny" / "data"
ALL_LOSSES = Objective(calibration_weight=1.0, balance_weight=0.5)
# fewer of whatever a method has many of, where it has it
SMALL = {"rank": 4, "members": 2, "samples": 2, "candidates": 2, "draws": 8, "num_experts": 4}


def silent(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module", autouse=True)
def _quick_garbage_collection() -> Iterator[None]:
    gc.freeze()  # every Trainer collects garbage before it starts, which takes longer than these trainings
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a few questions of the bundled benchmark, and of an encoder's test."""
    folder = tmp_path_factory.mktemp("gpu")
    for name, number in (("train", 32), ("test", 16)):
        lines = (TINY / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(lines[:number]), encoding="utf-8")
    return folder


# ---- the mixture and its losses


@cache
def base(device: str, dtype: str = "float32") -> Backbone:
    return load(ModelConfig(device=device, dtype=dtype))


@cache
def batch() -> dict[str, torch.Tensor]:
    """Six questions of the benchmark whose prompts are of different lengths, so that some are padded."""
    encoder = encoder_for(base("cpu"), PromptConfig())
    return collate(encoder.encode_all(read_file(TINY / "test.jsonl").questions[:6]), encoder.pad_token_id)


def placed(device: str = DEVICE, dtype: str = "float32", arithmetic: Any = "auto", **options: Any) -> Any:
    """Return the bundled model on a device with a mixture whose B is not zero, the same one wherever it lies."""
    model = copy.deepcopy(base(device, dtype).model)
    method = methods.find("uq4ct")(**{"rank": 4, "num_experts": 4, "dropout": 0.0, **options})
    torch.manual_seed(0)
    model = peft.get_peft_model(model, method.adapter_config(model))
    generator = torch.Generator().manual_seed(43)  # no router is undecided between experts by less than 2e-5
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter))
    use_arithmetic(model, arithmetic)
    return model.train()


def there(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.to(model.device) for name, tensor in batch().items()}


def step(model: Any, autocast: bool = False, seed: int = 0) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Return the terms of the loss and every gradient of one step, on the CPU."""
    torch.manual_seed(seed)
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=autocast):
        found = uq4ct_loss(model, there(model), ALL_LOSSES)
    found.loss.backward()
    terms = {name: getattr(found, name).item() for name in ("loss", "answer", "balance", "calibration", "feu")}
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return terms, gradients


@cache
def by_definition_on_the_cpu(routing: str, mixing: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    return step(placed("cpu", arithmetic="autograd", routing=routing, mixing=mixing))


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], relative: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        error, norm = (gradient - expected[name]).norm().item(), expected[name].norm().item()
        assert norm > 0, name
        assert error <= relative * norm, f"{name}: {error / norm:.2g} of its norm away"


WAYS = [
    *(("ffn_block", way) for way in ("auto", "dense", "sorted", "autograd")),
    *(("per_linear", way) for way in ("auto", "autograd")),
]


@pytest.mark.parametrize("mixing", ["rescaled", "raw"])
@pytest.mark.parametrize(("routing", "arithmetic"), WAYS)
def test_losses_feu_and_gradients_are_those_of_the_cpu(routing, arithmetic, mixing):
    terms, gradients = step(placed(arithmetic=arithmetic, routing=routing, mixing=mixing))
    expected_terms, expected = by_definition_on_the_cpu(routing, mixing)
    assert terms == pytest.approx(expected_terms, rel=1e-4, abs=1e-6)
    assert_same(gradients, expected, relative=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("routing", "arithmetic"), [way for way in WAYS if way[1] in ("auto", "sorted")])
def test_dropout_meets_the_same_entries_whichever_way_is_taken_and_when_a_layer_is_computed_again(
    routing, arithmetic, checkpointing
):
    expected_terms, expected = step(placed(arithmetic="autograd", routing=routing, dropout=0.3))
    model = placed(arithmetic=arithmetic, routing=routing, dropout=0.3)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    terms, gradients = step(model)
    assert terms == pytest.approx(expected_terms, rel=1e-4, abs=1e-6)
    assert_same(gradients, expected, relative=1e-3)
    assert step(model, seed=1)[0] != terms


@contextmanager
def never_waiting() -> Iterator[None]:
    """Raise where the host waits for the GPU."""
    if DEVICE == "cpu":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("routing", ["ffn_block", "per_linear"])
def test_neither_the_mixture_nor_its_losses_wait_for_the_gpu(routing, dtype):
    model = placed(dtype=dtype, routing=routing, dropout=0.1)
    layers = [module for module in model.modules() if isinstance(module, AdapterLayer)][:8]
    inputs = [torch.randn(3, 9, width_of(layer)).to(model.device, model.dtype).requires_grad_() for layer in layers]
    logits, mask = torch.randn(3, 4).to(DEVICE), torch.ones(3, 9, dtype=torch.bool).to(DEVICE)
    answer = torch.tensor([0, 3, 1]).to(DEVICE)
    with never_waiting():
        with record_routing(model) as routing:
            outputs = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
        terms = ALL_LOSSES.terms(logits, None, answer, routing.layers, mask)
        loss = terms.answer.mean() + terms.balance + terms.calibration.mean()
        (loss + torch.stack([output.float().square().mean() for output in outputs]).sum()).backward()
    trained = [p for layer in layers for n, p in layer.named_parameters() if "uqmoe_" in n]
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in trained)


def width_of(layer: AdapterLayer) -> int:
    return base("cpu").model.config.hidden_size if isinstance(layer, FfnMixture) else layer.get_base_layer().in_features


# ---- bfloat16


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("routing", ["ffn_block", "per_linear"])
def test_a_bfloat16_base_has_float32_adapters_routers_and_feu_near_those_of_a_float32_one(routing, autocast):
    model = placed(dtype="bfloat16", routing=routing)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=autocast):
        scores = score(model, there(model))
        terms = terms_of(scores)
    assert {part.dtype for layer in scores.routing for part in layer[:2]} == {torch.float32}
    assert scores.choice_logits.dtype == torch.float32
    assert {terms.feu.dtype, terms.calibration.dtype, terms.balance.dtype, terms.answer.dtype} == {torch.float32}
    exact = placed(routing=routing)
    torch.testing.assert_close(terms.feu, terms_of(score(exact, there(exact))).feu, atol=0.02, rtol=0)

    near, gradients = step(model, autocast)
    expected_terms, expected = step(exact)
    assert near == pytest.approx(expected_terms, rel=0.1, abs=0.05)
    flat = [torch.cat([gradient.flatten() for gradient in each.values()]) for each in (gradients, expected)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.9


def terms_of(scores: Scores) -> Any:
    answer = batch()["answer"].to(scores.choice_logits.device)
    return ALL_LOSSES.terms(*scores[:2], answer, *scores[2:4])


# ---- every method, from a configuration to answers


def config(place: Path, name: str, folder: Path, **changes: dict[str, Any]) -> Config:
    small = {option: value for option, value in SMALL.items() if option in methods.find(name).model_fields}
    given: dict[str, dict[str, Any]] = {
        "model": {"name": "tiny", "device": DEVICE},
        "data": {"source": str(place / "train.jsonl"), "calibration_fraction": 0.25},
        "method": {"name": name, **small},
        "train": {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3},
        "eval": {"resamples": 100},
        "output": {"folder": str(folder)},
    }
    for section, values in changes.items():
        given[section] = {**given.get(section, {}), **values}
    return resolve([Layer.of(given, "test")])


def on_the_cpu(run: Run) -> UQModel:
    """Load a run as on a machine without a GPU; its fixed prompts are checked too."""
    twin, config = Run(run.folder), run.config
    model = config.model.model_copy(update={"device": "cpu"})
    vars(twin)["config"] = config.model_copy(update={"model": model})  # where the cached property looks
    return UQModel.load(twin)


def network(loaded: UQModel) -> torch.nn.Module:
    """Return the module inside whatever object a method predicts with."""
    return loaded.model if isinstance(loaded.model, torch.nn.Module) else loaded.model.model


CASES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    **{name: (name, {}) for name in methods.names()},
    "per linear, raw": ("uq4ct", {"method": {"routing": "per_linear", "mixing": "raw"}}),
    "drawn experts": ("mixlora", {"method": {"router_samples": 2}}),
    "option texts": ("uq4ct", {"prompt": {"scoring": "options"}}),
    "held-out questions": ("uq4ct", {"method": {"calibration_questions": "rotating", "calibration_target": "mixture"}}),
    "autocast": ("uq4ct", {"train": {"bf16": True}}),
    "bfloat16": ("uq4ct", {"model": {"dtype": "bfloat16"}}),
}


def fit_and_compare(made: Config, source: Path, store: Path, tolerance: float) -> Run:
    """Fit and evaluate, and check that a CPU gives nearly the same answers from the run's folder."""
    run = fitting.train(made, store=store, snapshots=(0.5, 0.9), say=silent)
    loaded = UQModel.load(run)
    assert {parameter.device.type for parameter in network(loaded).parameters()} == {DEVICE}
    evaluate(run, [str(source)], model=loaded, say=silent)
    (written,) = run.folder.glob("evaluations/*/predictions.jsonl")
    found = list(predictions.read(written))
    cpu = on_the_cpu(run)
    questions = read_file(source, config=made.data).questions
    expected = cpu.rows(questions, cpu.predict_questions(questions))
    assert len(found) == len(expected) > 0
    for row, other in zip(found, expected, strict=True):
        probabilities = [[*each["probabilities"].values()] for each in (row, other)]
        assert np.isfinite(probabilities).all()
        np.testing.assert_allclose(*probabilities, atol=tolerance, rtol=0)
        assert (row["feu"] is None) == (other["feu"] is None)
        if row["feu"] is not None:
            assert row["feu"] == pytest.approx(other["feu"], abs=tolerance)
    return run


@pytest.mark.parametrize("case", CASES)
def test_every_method_ends_and_a_cpu_gives_the_same_answers_from_its_folder(case, place):
    method, changes = CASES[case]
    folder = place / "runs" / case.replace(" ", "-")
    tolerance = 0.05 if case == "bfloat16" else 2e-3
    run = fit_and_compare(config(place, method, folder, **changes), place / "test.jsonl", place / "store", tolerance)
    assert run.facts["base"]["dtype"] == ("bfloat16" if case == "bfloat16" else "float32")
    if DEVICE != "cpu":
        made_with = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        assert made_with["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("method", ["uq4ct", "blob", "laplace"])
def test_an_encoder_is_trained_and_a_cpu_gives_the_same_answers_from_its_folder(method, place, tmp_path):
    source = tmp_path / "pairs.jsonl"
    things = ["red", "green", "blue", "a hot day"]
    rows = [
        {"id": f"q{n}", "question": f"which is number {n} ?", "choices": things[: 3 + n % 2], "answer": "ABC"[n % 3]}
        for n in range(24)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    base = {"name": str(encoder_toys.save("bert", tmp_path / "bert"))}
    made = config(place, method, tmp_path / "run", model=base, data={"source": str(source)})
    run = fit_and_compare(made, source, tmp_path / "store", tolerance=2e-3)
    assert kind_of(base_of(network(UQModel.load(run)))) == "multiple_choice"


# ---- resuming


def gaussian() -> Any:
    """Return a tiny Llama with a LoRA, for BLoB to make Gaussian."""
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=4, lora_dropout=0.2, target_modules=["q_proj", "down_proj"]
    )
    made = llama()
    transformers.set_seed(5)
    return peft.get_peft_model(made, settings)


BLOB = partial(BackpropTrainer, epsilon=0.3, prior_std=0.2, kl_weight=1.0, std_learning_rate=0.05)
TRAININGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mixture": (partial(mixture, dropout=0.2), {}),
    "mixture, full determinism": (partial(mixture, dropout=0.2), {"full_determinism": True}),
    "blob": (gaussian, {"trainer": BLOB, "objective": Objective()}),
    "ivon": (partial(mixture, dropout=0.2), {"trainer": IVON}),
}


@pytest.fixture
def _as_before() -> Iterator[None]:
    """Undo what ``full_determinism`` sets for the whole process."""
    with mock.patch.dict(os.environ):
        yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("training", TRAININGS)
def test_an_interrupted_and_resumed_training_ends_with_the_same_bytes(training, tmp_path):
    build, options = TRAININGS[training]
    where = {"use_cpu": DEVICE == "cpu", "save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    train = partial(run, examples=toy_questions(14), **{"objective": CALIBRATED, **where, **options})
    whole = train(tmp_path / "whole", build())
    assert whole.args.device.type == DEVICE
    last = f"checkpoint-{whole.state.global_step}"
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", build(), callbacks=[At(3, lambda _: os.kill(os.getpid(), 15))])
    resumed = train(tmp_path / "cut", build(), resume=True)
    assert {p.device.type for p in resumed.model.parameters()} == {DEVICE}
    assert digests(tmp_path / "whole" / last) == digests(tmp_path / "cut" / last)
    states = [path.read_bytes() for path in sorted(tmp_path.glob("*/state.safetensors"))]
    assert len(states) == (2 if training in ("blob", "ivon") else 0)
    assert len(set(states)) <= 1


# ---- several workers


def test_two_workers_share_one_gpu(place, tmp_path):
    flags = ["--model", "tiny", "--methods", "lora[rank=2],uq4ct[rank=2;num_experts=4]", "--seeds", "1"]
    flags += ["--data", str(place / "train.jsonl"), "--eval-data", str(place / "test.jsonl"), "--max-steps", "2"]
    small = ["train.per_device_train_batch_size=4", "eval.resamples=100", f"model.device={DEVICE}"]
    output = tmp_path / "out"
    asked = ["compare", *flags, "--no-temperature", "--workers", "2", "--output", str(output), "--set", *small]
    assert cli.invoke(asked) == 0
    assert len(json.loads((output / "results.json").read_text(encoding="utf-8"))["results"]) == 2
    made_with = [json.loads(path.read_text(encoding="utf-8")) for path in output.glob("cells/*/environment.json")]
    name = "cpu" if DEVICE == "cpu" else torch.cuda.get_device_name()
    assert [made["device"] for made in made_with] == [name, name]
