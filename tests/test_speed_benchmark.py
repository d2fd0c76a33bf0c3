"""The benchmark of speed: its arms compute the same mixture, its ratios are what they say, its page names every target."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.speed import arms, measure
from benchmarks.speed.curves import _curves
from benchmarks.speed.measure import Round
from benchmarks.speed.memory import _saved, measure_one
from benchmarks.speed.page import SECTIONS, write_page
from benchmarks.speed.scoring import per_choice
from benchmarks.speed.settings import SIZES
from benchmarks.speed.shapes import SHAPES, base_model, batch_of, same_weights
from uq4ct.scoring import score_all

SMALL = SHAPES["width-64"]
MACHINE = {"machine": "cpu", "cores": 2, "load": 0, "python": "3", "torch": "2", "transformers": "5", "peft": "0.21"}


@pytest.fixture(scope="module")
def base() -> torch.nn.Module:
    return base_model(SMALL)


def trained(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return model


def test_the_reference_loop_computes_the_mixture_and_trains_the_same_numbers(base):
    ours = trained(arms.mixture(base, dropout=0.0))
    loop = arms.as_reference_loop(ours_again := trained(arms.mixture(base, dropout=0.0)))
    assert loop is ours_again
    batch = batch_of(SMALL, 2, 9)
    outputs = []
    for model in (ours, loop):
        logits = model(input_ids=batch["input_ids"]).logits
        logits.sin().sum().backward()
        outputs.append(logits)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    mixed = ours.get_base_model().model.layers[0].mlp
    other = loop.get_base_model().model.layers[0].mlp
    for role in ("gate", "up", "down"):
        A, B = (getattr(mixed, f"uqmoe_{role}_{factor}")["default"].grad for factor in "AB")
        for expert in range(8):
            rows = slice(16 * expert, 16 * expert + 16)
            torch.testing.assert_close(getattr(other, f"{role}_A")[expert].grad, A[rows], rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(getattr(other, f"{role}_B")[expert].grad, B[:, rows], rtol=1e-3, atol=1e-5)


def test_all_arms_share_the_weights_of_one_base(base):
    own = {parameter.data_ptr() for parameter in base.parameters()}
    for name, model in arms.models(base, ["base", "lora r80", "ffn_block", "per_linear", "reference loop"]).items():
        frozen = {p.data_ptr() for p in model.parameters() if not p.requires_grad}
        assert own <= frozen, name
    assert same_weights(base).get_input_embeddings() is not base.get_input_embeddings()


def test_the_matched_ranks_of_llama_2_7b_are_the_nearest_ones():
    with torch.device("meta"):
        whole = base_model(replace(SHAPES["7B"], layers=1), "meta")
    assert arms.matched_rank(whole, "per_linear") == 132
    assert arms.matched_rank(whole) == 81  # 128 + 9.1 M of routers / 2.5 M per rank; (202.4 + 1.05) M / 2.5 M


def test_a_ratio_is_formed_within_a_round_and_its_median_taken():
    drifting = [Round({"a": 2.0 * speed, "b": speed}, {"a": 1.0, "b": 1.0}) for speed in (1.0, 5.0, 0.1)]
    assert measure.ratio(drifting, "a", "b") == (2.0, 2.0, 2.0)
    assert measure.ratio(drifting, "a", "b", "cpu").median == 1.0
    found = measure.ratio([Round({"a": a, "b": 1.0}, {}) for a in (1.0, 2.0, 9.0)], "a", "b")
    assert found.median == 2.0
    assert found.low == 1.0
    assert found.high == 9.0


def test_a_round_runs_every_arm_in_order_and_in_reverse():
    order: list[str] = []
    found = measure.rounds({name: lambda name=name: order.append(name) for name in "abc"}, 2, warm_up=1)
    assert "".join(order) == "abc" + 2 * "abccba"
    assert len(found) == 2
    assert set(found[0].wall) == {"a", "b", "c"}


def test_the_mixture_keeps_no_more_than_a_plain_lora(base):
    batch = batch_of(SMALL, 2, 40)
    saved = {}
    for name in ("lora r80", "ffn_block"):
        model = arms.models(base, [name])[name].train()
        objective = arms.objective_of(name)
        saved[name] = _saved(model, lambda m=model, o=objective: arms.uq4ct_loss(m, batch, o).loss)
    assert 0 < saved["ffn_block"] < 1.1 * saved["lora r80"]


def test_memory_is_measured_with_and_without_checkpointing():
    whole = measure_one("ffn_block", "width-64", 2, 16, False, "cpu", False)
    again = measure_one("ffn_block", "width-64", 2, 16, True, "cpu", False)
    assert 0 < again["saved"] < whole["saved"] < whole["allocated"]


def test_the_per_choice_scorer_ranks_as_ours_does(base):
    model = trained(arms.mixture(base)).eval()
    letters = [{"input_ids": list(range(10, 10 + n)), "choice_ids": [1, 2, 3], "answer": 0} for n in (5, 9, 7)]
    options = [{"input_ids": e["input_ids"], "option_ids": [[4, 5], [6], [7, 8, 9]], "answer": 0} for e in letters]
    for examples, one_row in ((letters, False), (letters, True), (options, False)):
        ours = torch.from_numpy(score_all(model, examples, 0, 2)[0][:, 0]).log_softmax(-1)
        theirs = torch.tensor(per_choice(model, examples, 2, one_row), dtype=torch.float64).log_softmax(-1)
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_every_curve_has_its_reference_among_its_points():
    for name, reference, points in _curves(2, 16):
        assert reference in points, name
        for options, size in points.values():
            assert options.get("top_k", 2) <= options.get("num_experts", 8)
            assert len(size) == 2


def test_the_gpu_s_settings_can_be_made_without_a_gpu():
    gpu = SIZES["gpu"]
    assert (gpu.device, gpu.dtype) == ("cuda", torch.bfloat16)
    assert {shape for shape, *_ in (*gpu.training, *gpu.memory, *gpu.forward, *gpu.latency)} <= set(SHAPES)


def test_the_page_is_written_from_part_of_the_results(tmp_path):
    one = measure.against([Round({"lora r80": 1.0, "ffn_block": 1.1}, {"lora r80": 1.0, "ffn_block": 1.2})], "lora r80")
    pair = {"wall": (1.5, 1.4, 1.6), "cpu": (1.3, 1.2, 1.4)}
    run = {"size": "smoke", "device": "cpu", "threads": 1, "seconds": 1, **MACHINE}
    rows = {"ffn_block": one["ffn_block"], "per_linear": one["ffn_block"]}
    shape = {"rows": 2, "tokens": 16, "rounds": 1, "matched rank": 131, "against lora r80": rows}
    more = dict.fromkeys(("reference loop over ffn_block", "per_linear over matched lora", "losses and record"), pair)
    results = {"training_step": {"width-64": {**shape, **more}, "run": run}}
    write_page(json.loads(json.dumps(results)), tmp_path / "speed.md")
    page = (tmp_path / "speed.md").read_text()
    assert "| width-64: step of `ffn_block` / LoRA r80 | <= 1.20 | 1.100 (1.100-1.100) | 1.200 (1.200-1.200) |" in page
    assert "No GPU was at hand" in page
    assert "Memory" not in page
    assert set(results) <= set(SECTIONS)
