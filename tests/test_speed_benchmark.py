"""The benchmark of speed: its arms compute the same mixture, its ratios are what they say, its page names every target."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binom
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import arms, measure
from benchmarks.speed.__main__ import main
from benchmarks.speed.curves import curves
from benchmarks.speed.floor import Count
from benchmarks.speed.measure import Round
from benchmarks.speed.memory import allocated, saved
from benchmarks.speed.page import write_page
from benchmarks.speed.scoring import bare, per_choice
from benchmarks.speed.settings import SIZES, Memory
from benchmarks.speed.shapes import SHAPES, base_model, batch_of, same_weights
from benchmarks.speed.tables import SECTIONS
from benchmarks.speed.targets import Goal
from benchmarks.speed.training_step import most_that_fit
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


def test_the_base_alone_does_what_a_lora_of_rank_0_would(base):
    batch = batch_of(SMALL, 2, 16)
    models = {"base": same_weights(base), **{rank: arms.lora(base, rank, dropout=0.0) for rank in (8, 16)}}
    products = {}
    for name, model in models.items():
        with FlopCounterMode(display=False) as counter:
            arms.training_step(model, batch, arms.PLAIN)()
        products[name] = counter.get_total_flops()
    assert products["base"] == 2 * products[8] - products[16]


def test_backward_pass_and_optimizer_are_outside_autocast(base):
    model = arms.mixture(base)
    seen: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda grad, name=name: seen.update({name: torch.is_autocast_enabled("cpu")}))
    model.register_forward_pre_hook(lambda *_: seen.update(forward=torch.is_autocast_enabled("cpu")))
    precision = replace(SIZES["smoke"], autocast=True).precision
    batch = batch_of(SMALL, 2, 9)
    for step in (arms.training_step(model, batch, arms.CALIBRATED, precision), arms.bare_step(model, batch, precision)):
        seen.clear()
        step()
        assert seen.pop("forward")
        assert len(seen) > 10
        assert not any(seen.values())


def test_the_benchmark_s_model_compiles_without_a_break_with_dropout():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = arms.mixture(base_model(SMALL.with_layers(1))).train()
    assert arms.DROPOUT > 0
    model.compile(backend="aot_eager")
    arms.bare_step(model, batch_of(SMALL, 2, 16))()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]


def test_as_many_layers_are_taken_as_fit():
    tried: list[int] = []

    def attempt(layers: int, most: int) -> None:
        tried.append(layers)
        if layers > most:
            raise torch.OutOfMemoryError

    for most in range(1, 33):
        assert most_that_fit(lambda layers, most=most: attempt(layers, most), 32) == most
    tried.clear()
    assert most_that_fit(lambda layers: attempt(layers, 99), 32) == 32
    assert tried == [32]
    with pytest.raises(torch.OutOfMemoryError):
        most_that_fit(lambda layers: attempt(layers, 0), 32)


def test_the_interval_of_a_median_is_the_narrowest_that_covers_95_per_cent():
    for n in range(6, 60):
        _, low, high = measure.summary([float(value) for value in range(n)])
        assert high == n - 1 - low
        assert 2 * binom.cdf(low, n, 0.5) <= 0.05 < 2 * binom.cdf(low + 1, n, 0.5)
    for n in range(1, 6):
        assert measure.summary([float(value) for value in range(n)])[1:] == (0, n - 1)


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
    kept = {}
    for name in ("lora r80", "ffn_block"):
        model = arms.models(base, [name])[name].train()
        objective = arms.objective_of(name)
        kept[name] = saved(model, lambda m=model, o=objective: arms.uq4ct_loss(m, batch, o).loss)
    assert 0 < kept["ffn_block"] < 1.1 * kept["lora r80"]


def test_the_peak_of_a_step_is_that_of_its_largest_tensors_alive_together():
    def step() -> None:
        first = torch.empty(1_000_000, dtype=torch.uint8)
        del first
        second, third = torch.empty(700_000, dtype=torch.uint8), torch.empty(800_000, dtype=torch.uint8)
        del second, third

    assert allocated(step) == 1_500_000


def test_memory_is_measured_for_every_number_of_layers_with_and_without_dropout_and_checkpointing(monkeypatch):
    monkeypatch.setattr("benchmarks.speed.memory.NAMES", ["lora r80", "ffn_block, dense"])
    settings = replace(SIZES["smoke"], memory=(Memory("width-64", 2, 40, (1, 2)),))
    cases = import_module("benchmarks.speed.memory").run(settings)["cases"]
    assert {(case["layers"], case["dropout"], case["checkpointing"]) for case in cases} == {
        (layers, dropout, again) for layers in (1, 2) for dropout in (0.05, 0.0) for again in (False, True)
    }
    kept = {(c["layers"], c["dropout"], c["checkpointing"]): c["arms"]["lora r80"]["saved"] for c in cases}
    assert kept[2, 0.05, True] < kept[2, 0.05, False]
    assert kept[2, 0.0, False] < kept[2, 0.05, False]
    assert kept[1, 0.0, False] < kept[2, 0.0, False]
    for case in cases:
        assert case["arms"]["lora r80"]["over lora r80"] == {"saved": 1.0, "allocated": 1.0}


def test_samples_and_members_are_timed_in_batches_as_large_as_the_table_says(monkeypatch):
    together, seen = import_module("benchmarks.speed.together"), []
    monkeypatch.setattr(together, "TOKENS", 40)
    monkeypatch.setattr(together, "score", lambda model, batch: seen.append(len(batch["input_ids"])))
    times: dict[str, list[int]] = {}

    def once(works: dict[str, Any], number: int, device: str) -> list[Round]:
        for arm, work in works.items():
            seen.clear()
            work()
            times[arm] = list(seen)
        return [Round(dict.fromkeys(works, 1.0), dict.fromkeys(works, 1.0))]

    monkeypatch.setattr("benchmarks.speed.measure.rounds", once)
    (found,) = together.run(replace(SIZES["smoke"], together=(("width-64", 2, 5, 1),)))
    assert list(times.values()) == [[2] * 10, [8, 8, 4], [20], [2] * 3, [6]]
    assert found["over passes"].keys() == set(times) - {"samples", "members"}


def rows_seen(model: torch.nn.Module, work: Any) -> list[tuple[int, int]]:
    """Return rows and real tokens of every forward pass."""
    seen = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        seen.append((len(kwargs["input_ids"]), int(mask.sum()) if mask is not None else -1))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    work()
    handle.remove()
    return seen


def test_the_per_choice_scorer_ranks_as_ours_does(base):
    model = trained(arms.mixture(base)).eval()
    letters = [{"input_ids": list(range(10, 10 + n)), "choice_ids": [1, 2, 3], "answer": 0} for n in (5, 9, 7)]
    texts = ([[4, 5], [6], [7, 8, 9]], [[4, 5], [4, 6], [4, 7], [8]])
    options = [
        {"input_ids": example["input_ids"], "option_ids": texts[row % 2], "answer": 0}
        for row, example in enumerate(letters)
    ]
    for examples, rows, of_groups in ((letters, 9, 3), (options, 10, 8)):
        ours, mask, *_ = score_all(model, examples, 0, 2)
        for grouped, number in ((False, rows), (True, of_groups)):
            theirs = per_choice(model, examples, 2, grouped)
            for row, its, there in zip(theirs, ours[:, 0], mask, strict=True):
                expected = torch.from_numpy(its[there]).log_softmax(-1)
                found = torch.tensor(row, dtype=torch.float64).log_softmax(-1)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            seen = rows_seen(model, lambda some=examples, how=grouped: per_choice(model, some, 2, how))
            assert sum(count for count, _ in seen) == number


def test_the_bare_passes_read_the_texts_that_ours_scores_in_the_same_batches(base):
    model = arms.mixture(base).eval()
    letters = [{"input_ids": list(range(10, 10 + n)), "choice_ids": [1, 2, 3], "answer": 0} for n in (5, 9, 7)]
    assert rows_seen(model, bare(model, letters, 2)) == rows_seen(model, lambda: score_all(model, letters, 0, 2))
    options = [{"input_ids": e["input_ids"], "option_ids": [[4, 5], [6], [7, 8, 9]], "answer": 0} for e in letters]
    assert rows_seen(model, bare(model, options, 2)) == [(6, 3 * (9 + 7) + 12), (3, 3 * 5 + 6)]


def test_every_curve_has_its_reference_among_its_points():
    for name, reference, points, _ in curves(2, 16):
        assert reference in points, name
        for options, *_ in points.values():
            assert options.get("top_k", 2) <= options.get("num_experts", 8)
            if name.startswith("experts, N r = 128"):
                assert options["num_experts"] * options["r"] == 128


def test_the_gpu_s_settings_can_be_made_without_a_gpu():
    gpu = SIZES["gpu"]
    assert (gpu.device, gpu.dtype) == ("cuda", torch.bfloat16)
    assert {shape for shape, *_ in (*gpu.training, *gpu.memory, *gpu.forward, *gpu.latency)} <= set(SHAPES)


@pytest.mark.parametrize("part", ["training_step", "forward", "scoring", "latency", "ensembles"])
def test_a_part_runs_in_bfloat16_under_autocast_as_it_would_on_a_gpu(part):
    settings = replace(SIZES["smoke"], dtype=torch.bfloat16, autocast=True)
    found = json.loads(json.dumps(import_module(f"benchmarks.speed.{part}").run(settings)))
    assert "wall" in json.dumps(found)
    assert list(SECTIONS[part](found))


@pytest.mark.parametrize(
    ("goal", "low", "high", "verdict"),
    [
        (Goal("<=", 1.1), 0.9, 1.1, "met"),
        (Goal("<=", 1.1), 1.0, 1.2, "not resolved"),
        (Goal("<=", 1.1), 1.1001, 1.2, "missed"),
        (Goal(">=", 3), 3.0, 4.0, "met"),
        (Goal(">=", 3), 2.9, 3.1, "not resolved"),
        (Goal(">=", 3), 1.0, 1.1, "missed"),
    ],
)
def test_a_target_is_met_or_missed_only_where_the_whole_interval_says_so(goal, low, high, verdict):
    assert goal.verdict(low, high) == verdict


def of_training(device: str, rounds: int = 10, **run: Any) -> dict[str, Any]:
    measured = [Round({"lora r80": 1.0, "ffn_block": 1.15}, {"lora r80": 1.0, "ffn_block": 1.2})] * rounds
    one = measure.against(measured, "lora r80")
    pair = {"wall": (1.5, 1.4, 1.6), "cpu": (1.3, 1.2, 1.4)}
    how = {"size": "usual", "device": device, "threads": 2, "seconds": 1, "precision": "float32", "command": "the command"}
    rows = {"ffn_block": one["ffn_block"], "per_linear": one["ffn_block"]}
    size = {"layers": 1, "rows": 2, "tokens": 16, "rounds": rounds, "pairs": rounds, "matched rank": 131}
    more = dict.fromkeys(("reference loop over ffn_block", "losses and record"), pair)
    return {"width-64": {**size, "against lora r80": rows, **more}, "run": {**how, **MACHINE, **run}}


def page_of(results: dict[str, Any], folder: Path) -> str:
    write_page(json.loads(json.dumps(results)), folder / "speed.md")
    return (folder / "speed.md").read_text()


def test_the_page_is_written_from_part_of_the_results(tmp_path):
    page = page_of({"training_step": of_training("cpu")}, tmp_path)
    step = "width-64: step of `ffn_block` / LoRA r80"
    assert f"| {step} | <= 1.20 | 1.150 (1.150-1.150) | 1.200 (1.200-1.200) | met |" in page
    assert "/ without | <= 1.02 | 1.500 (1.400-1.600) | 1.300 (1.200-1.400) | missed |" in page
    assert "[speed-gpu.md](speed-gpu.md)" in page
    assert "`the command`: cpu, float32, cpu, 2 cores" in page
    assert "## Memory" not in page


def test_the_page_of_a_gpu_has_a_gpu_s_goals_and_names_the_gpu(tmp_path):
    run = {"machine": "NVIDIA H100", "precision": "bfloat16 under autocast"}
    page = page_of({"training_step": of_training("cuda", **run)}, tmp_path)
    step = "width-64: step of `ffn_block` / LoRA r80"
    assert f"| {step} | <= 1.10 | 1.150 (1.150-1.150) | 1.200 (1.200-1.200) | missed |" in page
    assert "reference loop / `ffn_block` | >= 2 | 1.500 (1.400-1.600) | 1.300 (1.200-1.400) | missed |" in page
    assert page.startswith("# Speed on a GPU: NVIDIA H100\n")
    assert "bfloat16 under autocast" in page
    assert "float32" not in page
    assert "[speed-gpu.md](speed-gpu.md)" not in page
    assert "* Not measured: `memory`, `forward`, `curves`, `compiled`, `scoring`, `latency`, `ensembles` (`--only`)." in page


def test_the_page_begins_with_the_best_and_the_worst_of_all_cases(tmp_path):
    def latency(value: float) -> dict[str, Any]:
        row = {"wall": [value] * 3, "cpu": [value] * 3, "seconds": 1.0, "cpu_seconds": 1.0}
        return {"tokens": 16, "rounds": 10, "against base": {"ffn_block": row, "per_linear": row}}

    results = {"latency": {"small": latency(1.4), "large": latency(1.05), "run": of_training("cpu")["run"]}}
    said = "one answer takes 1.05 to 1.40 with `ffn_block` and 1.05 to 1.40 with `per_linear` times as long as from the"
    assert f"In short: {said}" in page_of(results, tmp_path).replace("\n", " ")


def test_too_few_rounds_resolve_nothing(tmp_path):
    page = page_of({"training_step": of_training("cpu", rounds=5)}, tmp_path)
    assert " met |" not in page
    assert " missed |" not in page
    assert "0 met, 0 missed, 4 not resolved." in page


def test_the_page_in_the_documentation_is_that_of_its_results(tmp_path):
    docs = Path(__file__).parents[1] / "docs"
    for results in docs.glob("speed*.json"):
        copy = tmp_path / results.name
        found = json.loads(results.read_text())
        write_page(found, copy.with_suffix(".md"))
        assert copy.with_suffix(".md").read_text() == results.with_suffix(".md").read_text()
        assert not any(" /" in part["run"]["command"] for part in found.values())


@pytest.fixture
def quick(tmp_path, monkeypatch) -> Path:
    """Stand in a folder of its own, where the only part takes no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    answer = {"seconds": 0.1, "slowest": 0.2, "calls": 10}
    monkeypatch.setattr("benchmarks.speed.command_line.run", lambda settings: dict(answer))
    return tmp_path


ONE_PART = ["--only", "command_line", "--threads", "1"]


def test_a_smoke_run_stays_out_of_the_documentation(quick):
    main(["--size", "smoke", *ONE_PART])
    assert sorted(str(path.relative_to(quick)) for path in quick.rglob("*.*")) == [
        "build/speed-smoke.json",
        "build/speed-smoke.md",
    ]


def test_a_run_says_what_repeats_it_without_paths_of_this_machine(quick):
    main([*ONE_PART, "--data-root", "/home/me/data"])
    run = json.loads((quick / "docs/speed.json").read_text())["command_line"]["run"]
    assert run["command"] == "python -m benchmarks.speed --only command_line --size usual --threads 1"
    assert f"`{run['command']}`: cpu" in (quick / "docs/speed.md").read_text()


def test_results_of_another_size_or_device_are_never_mixed(quick, capsys):
    main(ONE_PART)
    before = (quick / "docs/speed.json").read_text()
    for other in (["--size", "smoke"], ["--size", "gpu"]):
        with pytest.raises(SystemExit) as stopped:
            main([*other, *ONE_PART, "--output", "docs/speed.json"])
        assert stopped.value.code == 2
        assert "docs/speed.json has results of usual on cpu" in capsys.readouterr().err
    assert (quick / "docs/speed.json").read_text() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_gpu_s_run_without_a_gpu_is_refused_before_anything_is_written(quick, capsys):
    with pytest.raises(SystemExit):
        main(["--size", "gpu", *ONE_PART])
    assert "need a GPU that PyTorch can use" in capsys.readouterr().err
    assert not list(quick.iterdir())


def test_the_page_alone_is_written_again_without_measuring(quick, capsys):
    with pytest.raises(SystemExit):
        main(["--page-only"])
    assert "--page-only needs the results of an earlier run" in capsys.readouterr().err
    main(ONE_PART)
    results = quick / "docs/speed.json"
    before, page = results.read_text(), (quick / "docs/speed.md").read_text()
    (quick / "docs/speed.md").unlink()
    main(["--page-only"])
    assert (quick / "docs/speed.md").read_text() == page
    assert results.read_text() == before


def test_asking_for_a_device_or_another_shape_moves_no_bytes():
    x = torch.empty(4, 8)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, Count() as seen:
        fake = mode.from_tensor(x)
        assert fake.reshape(32).device.type == "cpu"
        assert seen.bytes == 0
        fake + 1
    assert seen.bytes == 2 * 4 * 32
