"""A comparison: means over seeds, differences from a baseline, verdicts, and the tables that print them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from compared_runs import scored

from uq4ct import concluding
from uq4ct.errors import UserError
from uq4ct.manifest import write_json
from uq4ct.metrics import METRICS, Answers
from uq4ct.metrics.added_value import added_value, confidence_logit
from uq4ct.metrics.answers import Settings
from uq4ct.metrics.calibration_error import ece
from uq4ct.metrics.intervals import bootstrap_weights
from uq4ct.metrics.paired import few_seeds, seed_shares
from uq4ct.metrics.selective import auroc
from uq4ct.report import comparison, comparison_tables, differences
from uq4ct.report.answered import Answered, read

QUICK = Settings(resamples=100)


def coins(seeds: int, n: int, sharpness: float = 1.0, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Draw probabilities of the first side, (seed, n), and answers that follow their mean over seeds."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(0, 1.5, n)
    answer = (generator.random(n) > 1 / (1 + np.exp(-odds))).astype(int)
    seen = sharpness * (odds + generator.normal(0, 0.2, (seeds, n)))
    return np.clip(1 / (1 + np.exp(-seen)), 0.01, 0.99), answer


def nll_of(first: np.ndarray, answer: np.ndarray) -> np.ndarray:
    return -np.log(np.where(answer == 0, first, 1 - first))


# ---- means and differences, against loops


def test_every_interval_is_that_of_loops_over_drawn_seeds_and_the_same_questions(tmp_path):
    n, resamples, seeds = 40, 120, 3
    mine, answer = coins(seeds, n)
    theirs, _ = coins(seeds, n, sharpness=2.5, seed=4)
    runs = [scored(tmp_path, "lora", s + 1, theirs[s], answer) for s in range(seeds)]
    runs += [scored(tmp_path, "m", s + 1, mine[s], answer) for s in range(seeds)]
    found = comparison.compare(runs, seeds, Settings(resamples=resamples), "lora")

    weights = np.concatenate(list(bootstrap_weights(n, resamples, 0)))
    shares, stretch = seed_shares(seeds, resamples, 0), few_seeds(seeds, resamples, 0)

    def statistic(name: str, first: np.ndarray, items: list[int]) -> float:
        confidence = np.maximum(first, 1 - first)[items]
        correct = ((first < 0.5).astype(int) == answer).astype(float)[items]
        if name == "nll":
            return float(np.mean([nll_of(first, answer)[i] for i in items]))
        return ece(confidence, correct, 15) if name == "ece" else auroc(confidence, correct)

    def draws(name: str, value) -> list[float]:
        drawn = []
        for b in range(resamples):
            items = [i for i in range(n) for _ in range(int(weights[b, i]))]
            by_seed = [value(name, s, items) for s in range(seeds)]
            some = np.mean([by_seed[s] for s in range(seeds) for _ in range(round(seeds * shares[b, s]))])
            drawn.append(np.mean(by_seed) + stretch[b] * (some - np.mean(by_seed)))
        return drawn

    everything = list(range(n))
    lora, m = found["results"]
    for name in ("nll", "ece", "auroc"):
        alone = draws(name, lambda name, s, items: statistic(name, mine[s], items))
        mean = np.mean([statistic(name, mine[s], everything) for s in range(seeds)])
        low, high = np.quantile(alone, [0.025, 0.975])
        ends = [max(0.0, 2 * mean - high), 2 * mean - low] if name == "ece" else [low, min(high, {"auroc": 1}.get(name, 9))]
        assert m[name] == pytest.approx(mean, abs=1e-9)
        assert m["intervals"][name] == pytest.approx(ends, abs=1e-9)

        def apart(name: str, s: int, items: list[int]) -> float:
            return statistic(name, mine[s], items) - statistic(name, theirs[s], items)

        (row,) = (row for row in found["differences"] if row["metric"] == name)
        drawn, each = draws(name, apart), [apart(name, s, everything) for s in range(seeds)]
        low, high = np.quantile(drawn, [0.025, 0.975])
        mean = np.mean(each)
        assert row["difference"] == pytest.approx(mean, abs=1e-9)
        assert row["interval"] == pytest.approx([2 * mean - high, 2 * mean - low] if name == "ece" else [low, high], abs=1e-9)
        assert row["seed_sd"] == pytest.approx(np.std(each, ddof=1), abs=1e-9)
        assert row["interval_kind"] == f"two-level bootstrap, {'pivotal' if name == 'ece' else 'percentile'}"
    assert (lora["method"], m["method"]) == ("lora", "m")
    assert [row["metric"] for row in found["differences"]] == ["accuracy", "nll", "brier", "ece", "auroc", "augrc"]


def test_a_comparison_is_the_same_every_time(tmp_path):
    first, answer = coins(2, 30)
    runs = [scored(tmp_path, name, s, first[s - 1], answer) for name in ("lora", "m") for s in (1, 2)]
    once, twice = (json.dumps(comparison.compare(runs, 2, QUICK, "lora")) for _ in range(2))
    assert once == twice


def test_only_seeds_that_both_methods_have_are_paired(tmp_path):
    first, answer = coins(3, 30)
    runs = [scored(tmp_path, "lora", s, first[s - 1], answer) for s in (1, 2, 3)]
    runs += [scored(tmp_path, "m", s, first[s - 1] ** 1.1, answer) for s in (3, 2)]
    rows = comparison.compare(runs, 3, QUICK, "lora")["differences"]
    assert {tuple(row["seeds"]) for row in rows} == {(3, 2)}
    apart = [nll_of(first[s] ** 1.1, answer).mean() - nll_of(first[s], answer).mean() for s in (2, 1)]
    assert rows[1]["difference"] == pytest.approx(np.mean(apart))


def test_a_method_without_a_seed_in_common_with_the_baseline_has_no_difference(tmp_path):
    first, answer = coins(2, 30)
    runs = [scored(tmp_path, "lora", 1, first[0], answer), scored(tmp_path, "m", 2, first[1], answer)]
    assert comparison.compare(runs, 2, QUICK, "lora")["differences"] == []


def test_a_scaled_method_is_compared_with_the_scaled_baseline(tmp_path):
    first, answer = coins(2, 30)
    names = ["lora", "lora+temperature", "m", "m+temperature", "m+vector"]
    runs = [scored(tmp_path, name, s, first[s - 1], answer) for name in names for s in (1, 2)]
    against = {row["method"]: row["baseline"] for row in comparison.compare(runs, 2, QUICK, "lora")["verdicts"]}
    scaled = dict.fromkeys(["m+temperature", "m+vector"], "lora+temperature")
    assert against == {"lora+temperature": "lora", "m": "lora", **scaled}
    against = {row["baseline"] for row in comparison.compare(runs, 2, QUICK, "lora+temperature")["verdicts"]}
    assert against == {"lora+temperature"}
    assert differences.counterpart("m[a=b+c]+vector", "lora", ["lora+vector", "lora+temperature"]) == "lora+vector"
    assert differences.counterpart("m[a=b+c]", "lora", ["lora+c]", "lora+temperature"]) == "lora"
    assert differences.counterpart("m+feu", "lora", ["lora", "m+feu"]) == "lora"


def test_the_errors_of_proper_scores_are_those_of_differences_averaged_over_seeds(tmp_path):
    first, answer = coins(2, 30)
    groups = [f"g{i // 3}" for i in range(30)]
    runs = [scored(tmp_path, "lora", s, first[s - 1], answer, groups=groups) for s in (1, 2)]
    runs += [scored(tmp_path, "m", s, first[s - 1] ** 1.3, answer, groups=groups) for s in (1, 2)]
    rows = {row["metric"]: row for row in comparison.compare(runs, 2, QUICK, "lora")["differences"]}
    items = np.mean([nll_of(first[s] ** 1.3, answer) - nll_of(first[s], answer) for s in (0, 1)], axis=0)
    assert rows["nll"]["clt_se"] == pytest.approx(items.std(ddof=1) / np.sqrt(30))
    sums = [(items[i : i + 3] - items.mean()).sum() for i in range(0, 30, 3)]
    assert rows["nll"]["clustered_se"] == pytest.approx(np.sqrt(np.sum(np.square(sums))) / 30)
    assert "clt_se" not in rows["auroc"]


def test_a_metric_that_one_seed_does_not_have_has_no_difference(tmp_path):
    answer = np.array([0, 0, 0, 1])
    sure, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.9, 0.8, 0.7, 0.1])
    runs = [scored(tmp_path, "lora", 1, sure, answer), scored(tmp_path, "m", 1, right, answer)]
    found = comparison.compare(runs, 1, QUICK, "lora")
    assert "auroc" not in {row["metric"] for row in found["differences"]}
    assert found["results"][1]["reasons"]["auroc"] == "needs right and wrong answers, all 4 are right"


def test_results_say_what_they_were_made_with(tmp_path):
    first, answer = coins(1, 20)
    (row,) = comparison.compare([scored(tmp_path, "lora", 1, first[0], answer)], 1, QUICK, None)["results"]
    expected = {
        "split": "test",
        "n": 20,
        "bins": 15,
        "binning": "equal width, right-closed",
        "option_filter": "none",
        "prompt_hash": "0" * 64,
        "dtype": "float32",
        "passes": 1,
        "samples": 1,
        "scoring": "letters",
        "answer_loss": "choices",
    }
    assert {key: row[key] for key in expected} == expected


def test_an_interval_from_few_seeds_stays_where_the_metric_can_be(tmp_path):
    answer = np.array([0] * 9 + [1])
    runs = [scored(tmp_path, "m", s, np.full(10, p), answer) for s, p in ((1, 0.95), (2, 0.05))]
    (row,) = comparison.compare(runs, 2, Settings(resamples=400), None)["results"]
    assert row["intervals"]["accuracy"] == [0.0, 1.0]
    assert row["intervals"]["nll"][0] == 0.0


@pytest.mark.parametrize(
    ("mine", "theirs", "answer"),
    [
        ([0.7], [0.6], [0]),  # one question
        ([0.7, 0.8, 0.9], [0.6, 0.7, 0.8], [0, 0, 0]),  # all right
        ([0.7, 0.8, 0.9], [0.6, 0.7, 0.8], [1, 1, 1]),  # all wrong
        ([0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [0, 1, 0, 1]),  # ties alone, and no difference at all
        ([1.0, 0.0, 1.0], [0.6, 0.3, 0.8], [0, 1, 1]),  # a gold answer of probability 0: NLL is infinite
    ],
)
def test_extreme_answers_go_through_and_are_never_a_win(mine, theirs, answer, tmp_path):
    runs = [scored(tmp_path, "lora", s, theirs, answer, feu=theirs) for s in (1, 2)]
    runs += [scored(tmp_path, "m", s, mine, answer, feu=mine) for s in (1, 2)]
    scored(tmp_path, "m", 3, mine, answer, feu=mine)
    runs += [scored(tmp_path, "m", 3, mine, answer, task="shifted", feu=mine)]
    found = comparison.compare(runs, 3, QUICK, "lora") | {"absent": {}, "notes": []}
    assert [each["verdict"] for each in found["verdicts"]] in (["not distinguishable"], ["worse"])
    json.dumps(found, allow_nan=False)
    assert all(comparison_tables.files(found).values())
    assert comparison_tables.text(found)


# ---- verdicts


def row(metric: str, value: float, low: float, high: float, p: float = 0.001, **more) -> dict:
    plain = {"metric": metric, "difference": value, "interval": [low, high], "p": p, "p_holm": p, "seeds": [1, 2, 3]}
    return {**plain, "seed_sd": 0.001, "clustered_se": None, **more}


LOWER, BRIER, FLAT = row("nll", -0.05, -0.07, -0.03), row("brier", -0.01, -0.02, 0.0, 0.06), row("auroc", 0.0, -0.02, 0.02)


@pytest.mark.parametrize(
    ("rows", "verdict", "said"),
    [
        ([LOWER, BRIER, FLAT], "better", "NLL -0.050 [-0.070, -0.030], Brier -0.010 [-0.020, 0.000]; AUROC +0.000 [-0.020, 0.020] does not"),
        ([LOWER, BRIER, row("auroc", -0.004, -0.006, -0.001)], "not distinguishable", "but AUROC -0.004 [-0.006, -0.001] falls"),
        ([LOWER, BRIER, row("auroc", -0.02, -0.05, 0.01)], "not distinguishable", "but AUROC -0.020 [-0.050, 0.010] falls"),
        ([LOWER, BRIER, row("auroc", -0.009, -0.03, 0.01)], "better", "AUROC -0.009 [-0.030, 0.010] does not fall"),
        ([LOWER, BRIER], "not distinguishable", "AUROC has no value for every seed, so no win is claimed"),
        ([row("nll", 0.05, 0.03, 0.07), BRIER, FLAT], "worse", "NLL +0.050 [0.030, 0.070]"),
        ([LOWER, row("brier", 0.02, 0.01, 0.03), FLAT], "not distinguishable", "the scores disagree"),
        ([row("nll", 0.0, -0.1, 0.1, 0.9), BRIER, FLAT], "not distinguishable", "within the interval of NLL +0.000"),
        ([row("nll", -0.05, -0.07, -0.01, 0.02, p_holm=0.06), BRIER, FLAT], "not distinguishable", "over 4 tasks, p = 0.06"),
        ([row("nll", -0.05, -0.07, -0.03, clustered_se=0.03), BRIER, FLAT], "not distinguishable", "clustered by group"),
        ([row("nll", -0.05, -0.07, -0.03, clustered_se=0.01), BRIER, FLAT], "better", ""),
        ([row("nll", -0.05, -0.07, -0.03, seeds=[1]), BRIER, FLAT], "not distinguishable", "one paired seed"),
        ([FLAT], "not distinguishable", "neither NLL nor Brier"),
        ([row("brier", -0.02, -0.03, -0.01), FLAT], "not distinguishable", "NLL has no value for every seed"),
        ([row("brier", 0.02, 0.01, 0.03), FLAT], "worse", "Brier +0.020"),
        ([row("brier", -0.02, -0.03, -0.01), row("nll", -0.1, -0.3, 0.1, 0.4), FLAT], "better", "Brier -0.020"),
    ],
)
def test_a_win_needs_a_proper_score_and_an_auroc_that_does_not_fall(rows, verdict, said):
    found, reason = differences.verdict_of({each["metric"]: each for each in rows}, tasks=4)
    assert found == verdict, reason
    assert said in reason


def test_holms_correction_is_over_the_tasks_of_one_method_and_metric():
    plain = {"split": "test", "baseline": "lora"}
    rows = [
        {**row("nll", -0.05, -0.07, -0.03, p), **plain, "task": task, "method": method}
        for method, ps in (("m", [0.02, 0.04, 0.03]), ("other", [0.02]))
        for task, p in zip("abc", ps, strict=False)
    ]
    flat = [row(name, 0.0, -0.1, 0.1, 0.9) for name in ("brier", "auroc")]
    rows += [{**each, **other, **plain} for other in flat for each in rows]
    corrected = differences.corrected(rows)
    expected = [0.06, 0.06, 0.06, 0.02, *[1.0, 1.0, 1.0, 0.9] * 2]
    assert [each["p_holm"] for each in corrected] == pytest.approx(expected)
    found = {(each["task"], each["method"]): each["verdict"] for each in differences.verdicts(corrected)}
    assert found == {("a", "m"): "not distinguishable", ("b", "m"): "not distinguishable", ("c", "m"): "not distinguishable"} | {
        ("a", "other"): "better"
    }


def test_a_planted_difference_of_three_points_of_nll_is_found(tmp_path):
    seeds, n = 5, 600
    first, answer = coins(seeds, n)
    runs = [scored(tmp_path, "m", s + 1, first[s], answer) for s in range(seeds)]
    for s in range(seeds):
        odds = np.log(first[s] / (1 - first[s]))
        over = 1 / (1 + np.exp(-1.56 * odds))
        runs.append(scored(tmp_path, "lora", s + 1, np.clip(over, 1e-6, 1 - 1e-6), answer))
    found = comparison.compare(runs, seeds, Settings(resamples=500), "lora")
    (nll,) = (each for each in found["differences"] if each["metric"] == "nll")
    assert nll["difference"] == pytest.approx(-0.03, abs=0.005)
    (verdict,) = found["verdicts"]
    assert verdict["verdict"] == "better", verdict["reason"]


def in_memory(method: str, seed: int, first: np.ndarray, answer: np.ndarray) -> Answered:
    """Make an evaluation without its files."""
    answers = Answers.of(np.stack([first, 1 - first], axis=1), answer)
    values = {metric.name: metric.value(answers, QUICK) for metric in METRICS if metric.name in differences.COMPARED}
    run = comparison.Scored(method, seed, Path(), ("coins",))
    metrics, ones = {"task": "coins", "split": "test", **values}, np.ones(len(answer))
    return Answered(run, metrics, answers, None, np.zeros(len(answer)), 1, length=ones, seen=ones)


@pytest.mark.parametrize("seeds", [2, 5])
def test_of_methods_that_do_not_differ_hardly_any_is_called_better(seeds, monkeypatch):
    """Each seed's training wanders: it sharpens or flattens by chance. No method is better than the other."""
    monkeypatch.setattr(comparison, "METRICS", [m for m in METRICS if m.name in differences.COMPARED])
    generator, cases, wins, losses = np.random.default_rng(5), 120, 0, 0
    for case in range(cases):
        odds = generator.normal(0, 1.5, 60)
        answer = (generator.random(60) > 1 / (1 + np.exp(-odds))).astype(int)
        methods = {}
        for name in ("lora", "m"):
            wander = np.exp(generator.normal(0, 0.3, (seeds, 1)))
            seen = wander * (odds + generator.normal(0, 0.5, (seeds, 60)))
            methods[name] = [in_memory(name, s, 1 / (1 + np.exp(-seen[s])), answer) for s in range(seeds)]
        settings = Settings(resamples=200, seed=case)
        rows = differences.of_task(methods, comparison.resampled(methods, settings), "lora", settings)
        (verdict,) = differences.verdicts(differences.corrected(rows))
        wins, losses = wins + (verdict["verdict"] == "better"), losses + (verdict["verdict"] == "worse")
    assert wins / cases <= 0.05
    assert losses / cases <= 0.08


# ---- shifted questions, and what FEU is good for


def test_scores_tell_a_shifted_task_from_the_one_that_was_trained_on(tmp_path):
    answer, seeds = np.array([0, 1] * 20), (1, 2)
    generator = np.random.default_rng(0)
    inside, outside = generator.uniform(0.7, 0.99, (2, 40)), generator.uniform(0.5, 0.8, (2, 40))
    for s in seeds:
        samples = np.stack([outside[s - 1] - 0.1, outside[s - 1] + 0.1], axis=1)
        at_home = {"feu": inside[s - 1], "samples": inside[s - 1][:, None].repeat(2, 1), "seen": [0.9, 0.8] * 20}
        scored(tmp_path, "m", s, inside[s - 1], answer, **at_home)
        other = {"task": "shifted", "feu": 1 - inside[s - 1], "samples": samples, "question": "Which of these?"}
        other["seen"] = [0.85] * 40
        scored(tmp_path, "m", s, outside[s - 1], answer, **other)
    runs = [comparison.Scored("m", s, tmp_path / f"m-{s}", ("coins", "shifted")) for s in seeds]
    found = comparison.compare(runs, 2, QUICK, None)
    assert found["in_distribution"] == "coins"
    rows = {each["score"]: each for each in found["shift_detection"]}
    pairs = [[float(b < a) + 0.5 * float(b == a) for a in inside[s] for b in outside[s]] for s in (0, 1)]
    expected = np.mean([np.mean(each) for each in pairs])
    for score in ("max_probability", "entropy"):
        assert rows[score]["auroc"] == pytest.approx(expected, abs=1e-9)
        assert rows[score]["interval"][0] < expected < rows[score]["interval"][1]
    assert (rows["feu"]["auroc"], rows["feu"]["fpr95"]) == (1.0, 0.0)  # it is large in, small out of distribution
    assert rows["epistemic"]["auroc"] == 1.0
    assert rows["length"]["auroc"] == 1.0  # every shifted question is longer
    assert rows["unseen"]["auroc"] == 0.5  # half of the questions at home have fewer tokens of the training's
    assert rows["max_probability"]["seeds"] == [1, 2]
    passing = [np.mean(1 - outside[s] <= np.sort(1 - inside[s])[37]) for s in (0, 1)]  # 38 of 40 are 95 %
    assert rows["max_probability"]["fpr95"] == pytest.approx(np.mean(passing))


def test_a_score_that_a_method_does_not_have_is_null_with_a_reason(tmp_path):
    first, answer = coins(1, 20)
    scored(tmp_path, "m", 1, first[0], answer)
    run = scored(tmp_path, "m", 1, first[0], answer, task="shifted")
    rows = {each["score"]: each for each in comparison.compare([run], 1, QUICK, None)["shift_detection"]}
    assert [rows[score]["auroc"] for score in ("feu", "epistemic")] == [None, None]
    assert rows["length"]["auroc"] == 0.5  # one question, asked again and again
    assert (rows["unseen"]["auroc"], rows["unseen"]["reason"]) == (
        None,
        "the rows do not say which of their tokens were seen in training",
    )
    run = scored(tmp_path, "m", 1, first[0], answer, task="without text", question="")
    found = comparison.compare([run], 1, QUICK, None)["shift_detection"]
    rows = {each["score"]: each for each in found if each["shifted"] == "without text"}
    assert (rows["length"]["auroc"], rows["length"]["reason"]) == (None, "the rows do not carry the questions")
    assert "no FEU" in rows["feu"]["reason"]
    assert "one distribution per answer" in rows["epistemic"]["reason"]


def test_without_an_evaluation_like_the_training_questions_nothing_is_called_shifted(tmp_path):
    first, answer = coins(1, 20)
    run = scored(tmp_path, "m", 1, first[0], answer, task="another")
    found = comparison.compare([run], 1, QUICK, None)
    assert (found["in_distribution"], found["shift_detection"]) == (None, [])


def test_feu_is_tested_beside_the_confidence_against_shuffles_and_the_plain_mixture(tmp_path):
    first, answer = coins(3, 300)
    generator = np.random.default_rng(2)
    right = (first < 0.5).astype(int) == answer
    knows = [np.clip(0.4 + 0.2 * right[s] + generator.normal(0, 0.1, 300), 0, 1) for s in range(3)]
    runs = [scored(tmp_path, "uq4ct", s + 1, first[s], answer, feu=knows[s], options={"beta": 1}) for s in range(3)]
    runs += [scored(tmp_path, "mixlora", s + 1, first[s], answer, feu=generator.random(300)) for s in range(3)]
    runs += [scored(tmp_path, "lora", s + 1, first[s], answer) for s in range(3)]
    found = {each["method"]: each for each in comparison.compare(runs, 3, QUICK, "lora")["feu_usefulness"]}
    assert set(found) == {"uq4ct", "mixlora"}
    mine, plain = found["uq4ct"], found["mixlora"]
    assert mine["feu_auroc"] == pytest.approx(np.mean([auroc(knows[s], right[s]) for s in range(3)]))
    assert mine["max_probability_auroc"] == pytest.approx(
        np.mean([auroc(np.maximum(first[s], 1 - first[s]), right[s]) for s in range(3)])
    )
    assert mine["added_value"]["p"] < 0.001 < 0.05 < plain["added_value"]["p"]
    assert mine["added_value"]["coefficient"] > 0
    tests = [
        added_value(confidence_logit(run.answers), run.answers.feu, run.answers.correct)
        for run in read(runs)["coins"]["mixlora"]
    ]
    assert plain["added_value"]["p"] == pytest.approx(min(1.0, 2 * np.median([test.p for test in tests])))
    assert plain["added_value"]["lr_statistic"] == pytest.approx(np.median([test.lr_statistic for test in tests]))
    assert mine["shuffled_interval"][0] < 0.5 < mine["shuffled_interval"][1] < mine["feu_auroc"]
    assert (mine["beta_zero_method"], mine["beta_zero_feu_auroc"]) == ("mixlora", plain["feu_auroc"])
    assert plain["beta_zero_method"] is None


def test_a_mixture_with_other_options_is_no_control(tmp_path):
    first, answer = coins(1, 30)
    feu = np.linspace(0.2, 0.8, 30)
    runs = [scored(tmp_path, "uq4ct", 1, first[0], answer, feu=feu, options={"rank": 16})]
    runs += [scored(tmp_path, "mixlora", 1, first[0], answer, feu=feu, options={"rank": 8})]
    found = comparison.compare(runs, 1, QUICK, None)["feu_usefulness"]
    assert [each["beta_zero_method"] for each in found] == [None, None]


# ---- tables


def found_of(tmp_path, methods=("lora", "uq4ct[top_k=3;rank=8]+temperature"), seeds=(1, 2), wanted=2) -> dict:
    first, answer = coins(3, 40)
    runs = [scored(tmp_path, f"m{k}", s, first[s - 1] ** (1 + k), answer) for k in range(len(methods)) for s in seeds]
    runs = [run._replace(method=methods[int(run.method[1:])]) for run in runs]
    found = comparison.compare(runs, wanted, QUICK, methods[0])
    return found | {"absent": {}, "notes": ["A note " * 30]}


def finished_cell(cells: Path, seed: int) -> Path:
    """Write what a comparison reads of a finished cell, and return its folder."""
    first, answer = coins(1, 30)
    run = scored(cells, "lora", seed, first[0], answer)
    receipt = {"method": "lora", "task": "coins", "seed": seed, "seconds": 1.0, "digest": ""}
    write_json(run.folder / "cell.json", {**receipt, "evaluations": ["coins"], "evaluation_seconds": 1.0})
    cost = {"passes": 1, "trainable_parameters": 9, "seconds": 1.0}
    write_json(run.folder / "uq4ct.json", {"task": "coins", "data": {"path": "/elsewhere/train.jsonl"}, **cost})
    with (run.folder / "config.yaml").open("a") as file:
        file.write("data: {calibration_fraction: 0.1}\neval: {bins: 15, resamples: 100}\n")
    return run.folder


def test_the_machine_is_the_one_that_made_the_cells_and_all_of_them_where_they_are_several(tmp_path):
    one, other = finished_cell(tmp_path / "cells", 1), finished_cell(tmp_path / "cells", 2)
    made = {"uq4ct": "0.1.0", "code_sha256": "0" * 64, "packages": {"torch": "2.11", "peft": "0.21"}, "device": "H100"}
    for folder in (one, other):
        write_json(folder / "environment.json", made)
    found = concluding.reread(tmp_path)
    assert (found["code_sha256"], found["machine"]) == ("0" * 64, made)
    write_json(other / "environment.json", {**made, "packages": {"torch": "2.13", "peft": "0.21"}, "device": "cpu"})
    (tmp_path / "results.json").unlink()
    several = {"packages": {"torch": ["2.11", "2.13"], "peft": "0.21"}, "device": ["H100", "cpu"]}
    assert concluding.reread(tmp_path)["machine"] == {**made, **several}


def test_tables_that_are_gone_or_old_are_written_again_and_nothing_else(tmp_path):
    finished_cell(tmp_path / "cells", 1)
    found = concluding.reread(tmp_path)
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("*.*")}
    assert {path.name for path in files} == {"results.json", *comparison_tables.files(found)}
    (tmp_path / "table.md").unlink()
    (tmp_path / "differences.csv").write_text("of another comparison")
    concluding.reread(tmp_path)
    assert {path: path.read_bytes() for path in files} == {path: content for path, (content, _) in files.items()}
    rewritten = {path.name for path, (_, time) in files.items() if path.stat().st_mtime_ns != time}
    assert rewritten == {"table.md", "differences.csv"}


def test_the_terminal_shows_verdicts_on_a_hundred_columns(tmp_path):
    text = comparison_tables.text(found_of(tmp_path))
    assert max(map(len, text.splitlines())) <= 100
    assert "uq4ct[top_k=3;rank=8]+temperature against lora: " in text
    assert "not distinguishable from calibrated (ECE within its band): " in text


def test_a_missing_seed_is_shown_and_leaves_no_deviation(tmp_path):
    found = found_of(tmp_path, ("lora",), wanted=3)
    assert found["results"][0]["sd"]["accuracy"] is None
    text = comparison_tables.text(found)
    assert "2/3" in text
    assert "±" not in text
    assert "(2/3)" in comparison_tables.latex(found)


def test_an_ece_within_its_band_is_called_calibrated_and_one_above_is_not(tmp_path):
    generator = np.random.default_rng(0)
    first = generator.uniform(0.5, 0.99, 400)
    answer = (generator.random(400) > first).astype(int)
    runs = [scored(tmp_path, "fair", 1, first, answer), scored(tmp_path, "sure", 1, np.full(400, 0.99), answer)]
    found = comparison.compare(runs, 1, QUICK, None)
    assert [each["calibrated"] for each in found["results"]] == [True, False]
    text = comparison_tables.text(found | {"absent": {}, "notes": []})
    assert "not distinguishable from calibrated (ECE within its band): fair\n" in text + "\n"


def test_the_latex_table_has_the_papers_layout(tmp_path):
    found = found_of(tmp_path)
    table = comparison_tables.latex(found)
    body = table[table.index(r"\toprule") :].splitlines()
    assert body[1] == r"Metrics & Methods & coins \\"
    lora = found["results"][0]
    assert body[3] == rf"ACC $\uparrow$ & lora & ${100 * lora['accuracy']:.1f}_{{{100 * lora['sd']['accuracy']:.1f}}}$ \\"
    assert body[4].startswith(r" & uq4ct[top\_k=3;rank=8]+temperature & $")
    assert [line.split(" ")[0] for line in body if line[:1].isalpha() and "Methods" not in line] == [
        "ACC",
        "ECE",
        "NLL",
        "Brier",
        "AUROC",
    ]


def test_the_csv_files_hold_every_number_unrounded(tmp_path):
    found = found_of(tmp_path)
    rows = {each["metric"]: each for each in csv.DictReader(io.StringIO(comparison_tables.csv_table(found)))}
    second = found["results"][1]
    assert float(rows["nll"]["mean"]) == second["nll"]
    assert [float(rows["nll"][end]) for end in ("low", "high")] == second["intervals"]["nll"]
    lines = list(csv.DictReader(io.StringIO(comparison_tables.differences_csv(found))))
    assert [float(each["difference"]) for each in lines] == [each["difference"] for each in found["differences"]]
    assert lines[0]["seeds"] == "1 2"
    assert "| NLL, lower is better |" in comparison_tables.differences_markdown(found)


def test_runs_that_answered_other_questions_are_not_compared(tmp_path):
    runs = [
        scored(tmp_path, "m", 1, [0.8] * 4, [0, 1, 0, 1]),
        scored(tmp_path, "other", 1, [0.8] * 4, [0, 1, 0, 0]),
    ]
    with pytest.raises(UserError, match="answers other questions than"):
        comparison.compare(runs, 1, QUICK, None)


def test_names_are_escaped_in_every_table(tmp_path):
    name = "=a_b|<i>&%\x1b[31m\n"
    found = found_of(tmp_path)
    for key in ("results", "differences", "verdicts"):
        found[key] = [{**each, "method": name, "task": name, "baseline": name, "reason": name} for each in found[key]]
    found |= {"absent": {name: name}, "notes": [name]}
    assert "\x1b" not in comparison_tables.text(found)
    for markdown in (comparison_tables.markdown(found), comparison_tables.differences_markdown(found)):
        assert r"=a\_b\|&lt;i>&amp;%" in markdown
        assert "<i>" not in markdown
    assert r"=a\_b|<i>\&\%" in comparison_tables.latex(found)
    assert comparison_tables.csv_table(found).splitlines()[1].startswith("'=a_b")
    assert comparison_tables.differences_csv(found).splitlines()[1].startswith("'=a_b")
