"""Campaigns of the study are calls that `uq4ct compare` takes, and the pages say what its results say."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from compared_runs import scored

from benchmarks.study import __main__ as study
from benchmarks.study import axes, features, scores, target
from benchmarks.study.figures import figures
from benchmarks.study.tables import _PLACE, KINDS, figures_across, keep, keep_together, table, write_tables
from uq4ct import campaign, tasks
from uq4ct.cli import invoke

CAMPAIGNS = yaml.safe_load(study.CAMPAIGNS.read_text(encoding="utf-8"))
TOGETHER = [name for name, own in CAMPAIGNS.items() if "of" in own]


@pytest.mark.parametrize("name", sorted(set(CAMPAIGNS) - set(TOGETHER)))
def test_every_campaign_names_methods_options_and_tasks_that_exist(name):
    own = CAMPAIGNS[name]
    labels = [spec.label for spec in campaign.parse_methods(own["methods"])]
    assert len(set(labels)) == len(labels)
    assert all(tasks.wanted(source) for source in [own["data"], *own["eval-data"]])
    assert own["model"] in ("tiny", "minilm", "english")
    flags = {"model", "data", "eval-data", "methods", "seeds", "preset", "set", "baseline"}
    assert set(own) <= flags | set(study.OURS)
    assert len(own["seeds"].split(",")) >= 5
    if asked := own.get("scores"):
        evaluated = {source.replace(":", ".") for source in own["eval-data"]}
        assert {*asked["methods"], asked["ours"][0], *asked.get("features", ())} <= set(labels)
        assert {*asked["tasks"], *asked["shifted"], *asked["shifted"].values()} <= evaluated


@pytest.mark.parametrize("name", TOGETHER)
def test_campaigns_that_speak_together_have_the_methods_and_tasks_asked_for_and_no_seed_twice(name):
    parts, asked = [CAMPAIGNS[part] for part in CAMPAIGNS[name]["of"]], CAMPAIGNS[name]["target"]
    seeds = [seed for part in parts for seed in part["seeds"].split(",")]
    assert len(set(seeds)) == len(seeds)
    wanted = {asked["ours"], asked["temperature"], asked["baseline"], *asked["rivals"], *asked["beside"]}
    for part in parts:
        labels = {spec.label for spec in campaign.parse_methods(part["methods"])}
        assert wanted <= labels | {f"{label}+temperature" for label in labels}
        assert set(asked["tasks"]) <= set(part["eval-data"])
        assert {key: part[key] for key in ("model", "data", "set")} == {
            key: parts[0][key] for key in ("model", "data", "set")
        }


def test_a_campaign_is_planned_by_the_command_line_itself(tmp_path, capsys):
    call = study.command(CAMPAIGNS["readings"], tmp_path / "out", "hub", 2)
    assert call[1:6] == ["-m", "uq4ct", "compare", "--model", "tiny"]
    assert invoke([*call[3:], "--dry-run"]) == 0
    assert "uq4ct[calibration_target=mixture]+familiarity" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


RESULTS = {
    "machine": {"packages": {"torch": "2"}, "device": "cpu", "cpus": 2},
    "baseline": "lora",
    "cells": [
        {"method": "lora", "seed": 1, "folder": "cells/lora-1", "status": "complete"},
        {"method": "uq4ct", "seed": 1, "folder": "cells/uq4ct-1", "status": "failed"},
    ],
    "results": [
        {
            "task": "tiny", "split": "test", "method": method, "passes": 1, "n": 10, "seeds": [1, 2], "feu": None, "accuracy": 0.5,
            "nll": 1.25, "brier": 0.5, "ece": 0.125, "auroc": None, "augrc": 0.25,
            "ece_null": {"low": 0.01, "high": 0.04},
            "intervals": {"accuracy": [0.4, 0.6], "nll": [1.0, 1.5], "brier": None, "ece": [0.0, 0.2],
                          "auroc": None, "augrc": [0.2, 0.3]},
            "values": {name: [0.25, 0.75] for name in ("accuracy", "nll", "brier", "ece", "auroc", "feu")},
        }
        for method in ("uq4ct", "lora")
    ],
    "differences": [], "shift_detection": [], "feu_usefulness": [], "costs": [],
    "verdicts": [{"task": "tiny", "split": "test", "method": "uq4ct", "verdict": "worse"}],
}  # fmt: skip


def test_a_page_is_filled_from_the_results_again_and_again(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (tmp_path / "README.md").write_text("<!-- own: seeds tiny tiny lora -->\n<!-- end -->\n")
    page = "before\n\n<!-- own: results tiny -->\nold\n<!-- end -->\nbetween\n<!-- other: results tiny -->\nkept\n<!-- end -->\n"
    (docs / "study.md").write_text(page)
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    keep(tmp_path / "results.json", docs / "study" / "own.json")
    write_tables(docs)
    found = (docs / "study.md").read_text()
    assert (
        "| `lora` | 1 | 50.0 (40.0-60.0) | 1.250 (1.000-1.500) | 0.500 | 12.5 (0.0-20.0) | 1.0-4.0 | - | 0.250 (0.200-0.300) | baseline |"
        in found
    )
    assert (
        "| `uq4ct` | 1 | 50.0 (40.0-60.0) | 1.250 (1.000-1.500) | 0.500 | 12.5 (0.0-20.0) | 1.0-4.0 | - | 0.250 (0.200-0.300) | worse |"
        in found
    )
    assert found.index("`lora`") < found.index("`uq4ct`")
    assert "old" not in found
    assert found.startswith("before\n")
    assert "between\n" in found
    assert "<!-- other: results tiny -->\nkept\n" in found
    assert "| lora | 50.0 ± 35.4 | 50.0 ± 35.4 | 0.500 ± 0.354 |" in (tmp_path / "README.md").read_text()
    write_tables(docs)
    assert (docs / "study.md").read_text() == found
    kept = json.loads((docs / "study" / "own.json").read_text())
    assert [cell["status"] for cell in kept["unfinished"]] == ["failed"]


def test_variants_are_held_against_the_baseline_with_the_same_suffix():
    """The methods with FEU alone, the temperature at home and familiarity scaling under the shift."""

    def row(task, method, accuracy, nll):
        return {"task": task, "method": method, "accuracy": accuracy, "nll": nll, "ece": 0.1}

    def apart(task, method, difference):
        return {"task": task, "method": method, "metric": "nll", "difference": difference, "interval": [-0.5, 0.25]}

    names = ("uq4ct", "uq4ct[top_k=4]")
    found = {
        "baseline": "uq4ct",
        "results": [
            *(row("home", name + end, 0.5, 1 + place) for place, name in enumerate(names) for end in ("", "+temperature")),
            *(row("away", f"{name}+familiarity", 0.25, 2) for name in names),
            row("home", "lora", 0.5, 1),
        ],
        "differences": [apart("home", "uq4ct+temperature", 2), apart("home", "uq4ct[top_k=4]+temperature", 1),
                        apart("away", "uq4ct[top_k=4]+familiarity", 0)],
        "feu_usefulness": [
            {"task": "home", "method": name, "feu_auroc": 0.5, "interval": [0.4, 0.6]} for name in names
        ],
        "shift_detection": [
            {"shifted": "away", "method": name, "score": score, "auroc": auroc, "interval": None}
            for name in names
            for score, auroc in (("feu", 0.75), ("max_probability", 0.25))
        ],
    }  # fmt: skip
    assert list(KINDS["variants"](found, ["home", "away"]))[2:] == [
        "| `uq4ct` | 50.0 | 1.000 | 10.0 | 1.000 | 0.500 (0.400-0.600) | 0.750 | 2.000 |",
        "| `uq4ct[top_k=4]` | 50.0 | 2.000 | 10.0 | 2.000: +1.000 (-0.500, +0.250) | 0.500 (0.400-0.600) | 0.750 | "
        "2.000: +0.000 (-0.500, +0.250) |",
    ]


def test_feu_is_held_against_the_share_of_right_answers():
    """Read as a confidence, as the paper's Eq. 10 trains it to be; a method without FEU adds nothing of it."""
    result = {"method": "uq4ct", "task": "home", "accuracy": 0.5, "feu": 0.625, "feu_ece": 0.125}
    useful = {"method": "uq4ct", "task": "home", "feu_auroc": 0.5, "interval": [0.4, 0.6], "max_probability_auroc": 0.75}
    found = {
        "results": [{**result, "intervals": {"feu_ece": [0.1, 0.2]}}],
        "feu_usefulness": [{**useful, "added_value": {"p": 0.25}}, {**useful, "method": "mixlora"}],
    }
    assert list(KINDS["feu"](found, ["uq4ct"]))[2:] == [
        "| `uq4ct` | home | 50.0 | 62.5 | 12.5 (10.0-20.0) | 0.500 (0.400-0.600) | 0.750 | 0.25 |"
    ]


def test_an_axis_sets_campaigns_below_each_other(tmp_path):
    """Each with its own title, the scaled answers against the baseline's with a temperature, and what was not run left out."""

    def found(title, methods):
        results = [
            {"task": task, "method": method, "accuracy": 0.5, "nll": 1.5 if task == "away" else 1.0, "ece": 0.125,
             "feu": 0.375 if method.startswith("uq4ct") else None}
            for method in methods
            for task in ("home", "away")
        ]  # fmt: skip
        differences = [
            {"task": task, "method": method, "metric": "nll", "interval": [0.0, 0.5],
             "difference": 0.25 if task == "home" else 0.125 if method.endswith("temperature") else 0.375,
             "baseline": "lora+temperature" if "+" in method else "lora"}
            for method in methods if method not in ("lora", "lora+temperature")
            for task in ("home", "away")
        ]  # fmt: skip
        told = [
            {"shifted": "away", "method": "uq4ct", "score": "feu", "auroc": 0.75, "interval": [0.5, 1.0]},
            {"shifted": "away", "method": "lora", "score": "feu", "auroc": None, "interval": None, "reason": "no FEU"},
        ]
        return {
            "title": title,
            "baseline": "lora",
            "results": results,
            "differences": differences,
            "shift_detection": told,
        }

    scaled = ["lora", "lora+temperature", "uq4ct", "uq4ct+temperature", "uq4ct+familiarity"]
    founds = [found("few questions", scaled), found("many", ["uq4ct"])]
    assert list(axes.table(founds, ["home", "away", "lora", "uq4ct"]))[2:] == [
        "| few questions | `lora` | 50.0 | 1.000 | 12.5 | 1.000 | 1.500 | - | - | - |",
        "| few questions | `uq4ct` | 50.0 | 1.000 | 12.5 | 1.000: +0.250 (+0.000, +0.500) | "
        "1.500: +0.125 (+0.000, +0.500) | 1.500: +0.375 (+0.000, +0.500) | 0.750 (0.500-1.000) | 37.5 |",
        "| many | `uq4ct` | 50.0 | 1.000 | 12.5 | - | - | - | 0.750 (0.500-1.000) | 37.5 |",
    ]
    head, _, few, many = axes.grid(founds, ["home", "away", "lora", "uq4ct"])
    assert head == (
        "| training | accuracy %: `lora` / `uq4ct` | ECE % | ECE % with a temperature | NLL of `uq4ct+temperature` | "
        "`away`: NLL of `uq4ct+familiarity` | AUROC of FEU |"
    )
    assert few == (
        "| few questions | 50.0 / 50.0 | 12.5 / 12.5 | 12.5 / 12.5 | 1.000: +0.250 (+0.000, +0.500) | "
        "1.500: +0.375 (+0.000, +0.500) | 0.750 (0.500-1.000) |"
    )
    assert many == "| many | - / 50.0 | - / 12.5 | - / - | - | - | 0.750 (0.500-1.000) |"
    head, _, few, many = axes.rivals(founds, ["home", "away", "lora", "uq4ct"])
    assert head == (
        "| training | accuracy %: `lora` / `uq4ct` | ECE % | ECE % with a temperature | NLL of `uq4ct+temperature` | "
        "`away`: ECE % | NLL of `uq4ct+temperature` |"
    )
    assert few == (
        "| few questions | 50.0 / 50.0 | 12.5 / 12.5 | 12.5 / 12.5 | 1.000: +0.250 (+0.000, +0.500) | "
        "12.5 / 12.5 | 1.500: +0.125 (+0.000, +0.500) |"
    )
    assert many == "| many | - / 50.0 | - / 12.5 | - / - | - | - / 12.5 | - |"
    kept = tmp_path / "docs" / "study"
    kept.mkdir(parents=True)
    for name, one in zip(("few", "many"), founds, strict=True):
        (kept / f"{name}.json").write_text(json.dumps(one))
    page = kept.parent / "page.md"
    page.write_text("<!-- few,unknown,many: axis home away uq4ct -->\n<!-- end -->\n")
    (tmp_path / "README.md").touch()
    write_tables(kept.parent)
    assert page.read_text().count("| `uq4ct` | 50.0") == 2
    drawn = (kept / "few-axis.svg").read_text()
    assert drawn.count(">few: uq4ct</text>") == 2
    for word in ("one temperature", "familiarity", "away: NLL beside lora+temperature"):
        assert f">{word}</text>" in drawn, word
    assert "many" not in drawn  # nothing was scaled there


TARGET = {
    "ours": "ours", "temperature": "scaled", "baseline": "lora", "rivals": ["lora", "other"], "tasks": ["coins", "dice"]
}  # fmt: skip


def runs_for_a_target(folder):
    """Three seeds of four methods on two tasks: right answers at odds, said with more or less confidence."""
    generator, runs = np.random.default_rng(3), {}
    surer = {"lora": 3.0, "other": 2.0, "scaled": 1.0, "ours": 1.1}
    for task in TARGET["tasks"]:
        odds = generator.normal(0, 1, 400)
        answer = (generator.random(400) > 1 / (1 + np.exp(-odds))).astype(int).tolist()
        for method, factor in surer.items():
            for seed in (1, 2, 3):
                seen = 1 / (1 + np.exp(-factor * (odds + generator.normal(0, 0.05, 400))))
                run = scored(folder / "cells", method, seed, seen, answer, task=task)
                runs[method, seed] = run
    return list(runs.values())


def test_the_target_is_asked_by_task_and_pooled(tmp_path):
    both = target.target_of(runs_for_a_target(tmp_path), {**TARGET, "beside": ["scaled"]})
    rows = both["target"]
    found = {(row["task"], row["demand"]): row for row in rows}
    assert set(found) == {(t, d) for t in ("coins", "dice", "all") for d in ("nll", "accuracy", "ECE excess")}

    def mean(method, task, name):
        paths = (tmp_path / "cells").glob(f"{method}-?/evaluations/{task}/metrics.json")
        return np.mean([json.loads(path.read_text())[name] for path in paths])

    for task in TARGET["tasks"]:
        metrics = [json.loads(p.read_text()) for p in (tmp_path / "cells").glob(f"*/evaluations/{task}/metrics.json")]
        assert len(metrics) == 12
        assert found[task, "ECE excess"]["rival"] == "other"  # the better of the two rivals
        difference = mean("ours", task, "nll") - mean("scaled", task, "nll")
        assert found[task, "nll"]["difference"] == pytest.approx(difference)
        difference = mean("ours", task, "accuracy") - mean("lora", task, "accuracy")
        assert found[task, "accuracy"]["difference"] == pytest.approx(difference)
    excess = {
        (method, task): np.mean(
            [
                (one := json.loads(path.read_text()))["ece"] - one["ece_null"]["mean"]
                for path in (tmp_path / "cells").glob(f"{method}-?/evaluations/{task}/metrics.json")
            ]
        )
        for method in ("ours", "other")
        for task in TARGET["tasks"]
    }
    by_task = [excess["ours", task] - 0.75 * excess["other", task] for task in TARGET["tasks"]]
    assert found["coins", "ECE excess"]["difference"] == pytest.approx(by_task[0])
    pooled = found["all", "ECE excess"]
    assert pooled["difference"] == pytest.approx(np.mean(by_task))
    assert pooled["interval"][0] < pooled["difference"] < pooled["interval"][1] < 0
    lines = list(target.table({"target": rows}, []))
    assert len(lines) == 2 + 9
    assert lines[-1].startswith("| all | ECE excess")
    assert lines[-1].endswith("| yes |")
    own = {(row["task"], row["demand"]): row for row in both["beside"]}
    assert {row["rival"] for row in both["beside"]} == {"scaled"}
    for name in ("nll", "ece"):
        apart = [mean("ours", task, name) - mean("scaled", task, name) for task in TARGET["tasks"]]
        assert [own[task, name]["difference"] for task in TARGET["tasks"]] == pytest.approx(apart)
        assert own["all", name]["difference"] == pytest.approx(np.mean(apart))
    lines = list(target.beside(both, []))
    assert lines[0] == "| beside | ours minus it | coins | dice | all |"
    assert lines[2].startswith(f"| `scaled` | NLL | {own['coins', 'nll']['difference']:+.3f} (")
    assert len(lines) == 4


def test_a_demand_is_reached_or_missed_by_the_whole_interval_alone():
    rows = [
        {"demand": "nll", "interval": [-0.2, 0.1], "difference": -0.1},
        {"demand": "nll", "interval": [-0.2, 0.0], "difference": -0.1},
        {"demand": "accuracy", "interval": [-0.02, 0.1], "difference": 0.05},
        {"demand": "accuracy", "interval": [-0.01, 0.1], "difference": 0.05},
        {"demand": "ECE excess", "interval": [-0.1, 0.1], "difference": 0.01},
        {"demand": "ECE excess", "interval": [0.0, 0.1], "difference": 0.01},
    ]
    decided = [target._verdict(row)[1] for row in rows]
    assert decided == ["not resolved", "yes", "not resolved", "yes", "not resolved", "no"]


def test_a_target_of_methods_with_other_seeds_is_no_target(tmp_path):
    runs = [run for run in runs_for_a_target(tmp_path) if (run.method, run.seed) != ("other", 2)]
    with pytest.raises(ValueError, match="methods have different seeds"):
        target.target_of(runs, TARGET)


def test_campaigns_of_other_seeds_say_together_what_all_their_runs_say(tmp_path):
    runs, parts = runs_for_a_target(tmp_path), []
    for name, seeds in (("first", (1, 2)), ("second", (3,))):
        own = [run for run in runs if run.seed in seeds]
        cells = [{"method": run.method, "seed": run.seed, "folder": str(run.folder), "status": "complete"} for run in own]
        (tmp_path / name).mkdir()
        for run in own:
            shutil.copytree(run.folder, tmp_path / name / "cells" / run.folder.name)
        parts.append(tmp_path / name / "results.json")
        parts[-1].write_text(json.dumps({"cells": cells}))
    asked = {"of": ["first", "second"], "target": {**TARGET, "beside": ["scaled"]}}
    keep_together(parts, tmp_path / "both.json", asked)
    kept, whole = json.loads((tmp_path / "both.json").read_text()), target.target_of(runs, asked["target"])
    for kind in ("target", "beside"):
        assert [row["seeds"] for row in kept[kind]] == [3] * len(whole[kind])
        found = [row["difference"] for row in kept[kind]]
        assert found == pytest.approx([row["difference"] for row in whole[kind]], abs=1e-5)
    assert not list(figures("both", kept))
    with pytest.raises(ValueError, match="16 cells of 8 methods and seeds"):
        keep_together([parts[0], parts[0]], tmp_path / "twice.json", asked)


def test_no_less_excess_is_asked_where_a_rival_has_next_to_none(tmp_path):
    rows = target.target_of(runs_for_a_target(tmp_path), {**TARGET, "rivals": ["scaled"]})["target"]
    assert {row["demand"] for row in rows} == {"nll", "accuracy"}


def test_another_score_may_stand_in_for_feu(tmp_path):
    """By hand: with the confidence as the score, log T is raised by how far it lies below the calibration split's."""
    generator = np.random.default_rng(4)
    odds = generator.normal(0, 2, 300)
    answer = (generator.random(300) > 1 / (1 + np.exp(-odds / 2))).astype(int).tolist()
    seen = 1 / (1 + np.exp(-odds))
    run = scored(tmp_path / "cells", "lora", 1, seen, answer)
    shutil.copy(run.folder / "evaluations" / "coins" / "predictions.jsonl", run.folder / "calibration.jsonl")
    found = scores.scores_of([run], {"methods": ["lora"], "tasks": ["coins"]})
    assert [row["score"] for row in found] == ["confidence", "energy"]
    confidence = np.maximum(seen, 1 - seen)
    rise = np.maximum(0, (confidence.mean() - confidence) / (confidence.std() * np.sqrt(301 / 297)) - 1)

    def nll(level):
        z = odds / np.exp(level + rise)
        return np.mean(np.log1p(np.exp(np.where(np.array(answer) == 0, -z, z))))

    best = min(np.arange(-3, 3, 0.001), key=lambda level: 300 * nll(level) + level**2 / 2)
    assert found[0]["nll"] == pytest.approx(nll(best), abs=1e-5)
    assert next(scores.table({"scores": found}, ["coins"])) == "| method | score | `coins`: NLL | ECE % |"
    assert list(scores.table({"scores": found}, ["coins"]))[2].startswith(f"| `lora` | confidence | {nll(best):.3f} |")


def share(n: int) -> float:
    """Some share of tokens that were seen in training, of a question of n."""
    return int(n) // 2 % 3 / 10


def runs_whose_feu_is_length(folder):
    """Two seeds of two methods: FEU is 0.2 + 3 / n of n tokens, a little less on dice; lengths are kept in another order."""
    generator, runs = np.random.default_rng(5), []
    tokens = {"coins": generator.integers(20, 40, 60), "dice": generator.integers(38, 80, 60)}
    for seed in (1, 2):
        for method in ("lora", "uq4ct"):
            for task, n in tokens.items():
                seen = generator.uniform(0.1, 0.9, 60)
                answer = (generator.random(60) > seen).astype(int).tolist()
                feu = 0.2 + 3 / n - (1e-4 if task == "dice" else 0) if method == "uq4ct" else None
                run = scored(folder / "cells", method, seed, seen, answer, task=task, feu=feu)
            shutil.copy(run.folder / "evaluations" / "coins" / "predictions.jsonl", run.folder / "calibration.jsonl")
            lengths, shares = (
                {
                    part: {f"{task}-{i}": value(tokens[task][i]) for i in generator.permutation(60)}
                    for part, task in (("calibration", "coins"), ("coins", "coins"), ("dice", "dice"))
                }
                for value in (lambda n: -float(np.log(n)), share)
            )
            place = features.place_of(run.folder)
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps({"seen": shares, "length": lengths}))
            runs.append(run)
    return runs, tokens


def test_what_length_explains_is_taken_out_of_feu(tmp_path):
    asked = {
        "methods": ["lora", "uq4ct"],
        "ours": ["uq4ct", "feu"],
        "tasks": ["coins", "dice"],
        "shifted": {"dice": "coins"},
    }
    runs, tokens = runs_whose_feu_is_length(tmp_path)
    rows = {(row["method"], row["score"], row["task"]): row for row in scores.scores_of(runs, asked)}
    feu, rest = rows["uq4ct", "feu", "dice"], rows["uq4ct", "feu, length taken out", "dice"]
    pairs = [(a, b) for a in tokens["coins"] for b in tokens["dice"]]
    longer = np.mean([(a < b) + 0.5 * (a == b) for a, b in pairs])
    assert rows["lora", "length", "dice"]["auroc"] == pytest.approx(longer)
    assert feu["auroc"] == pytest.approx(np.mean([a <= b for a, b in pairs])) != pytest.approx(longer)
    assert 0.9 < longer < 1
    assert feu["length"] == pytest.approx(-1)
    alike = [(a, b) for a, b in pairs if abs(np.log(a) - np.log(b)) <= 0.05]
    worded = [(a, b) for a, b in alike if abs(share(a) - share(b)) <= 0.02]
    for key, some in (("alike", alike), ("worded", worded)):
        told = np.mean([a <= b for a, b in some])
        assert feu[key] == pytest.approx(told)
        assert feu[f"{key}_by_seed"] == [pytest.approx(told)] * 2
        assert 0 < told < 1
    assert feu["alike"] != feu["worded"]
    assert [score for method, score, task in rows if (method, task) == ("lora", "dice")][-2:] == ["length", "seen"]
    left = scores._without_length({"length": -np.log(tokens["coins"]), "feu": 0.2 + 3 / tokens["coins"]})
    assert left({"length": -np.log(tokens["dice"]), "feu": 0.3 + 3 / tokens["dice"]}) == pytest.approx(0.1)
    assert rest["auroc"] == 1.0 != pytest.approx(longer)  # what is left is the little that dice have less
    assert "auroc" in rows["uq4ct", "feu", "coins"]
    assert rows["uq4ct", "feu", "coins"]["auroc"] is None
    other = rows["lora", "length", "dice"]
    assert other["difference"] == pytest.approx(other["nll"] - feu["nll"])
    assert other["interval"][0] < other["difference"] < other["interval"][1]
    assert "difference" not in feu
    lines = list(scores.table({"scores": list(rows.values())}, ["coins", "dice"]))
    assert lines[0].endswith("`dice`: NLL | ECE % | AUROC of the shift | at equal length | and words |")
    (shown,) = [line for line in lines if line.startswith("| `lora` | length | -1.00 |")]
    assert f"{other['nll']:.3f}: {target.signed(other, 1, 3)}" in shown
    assert {line.count("|") for line in lines} == {11}


def test_features_of_some_seeds_alone_are_no_result(tmp_path):
    runs, _ = runs_whose_feu_is_length(tmp_path)
    features.place_of(runs[0].folder).unlink()
    with pytest.raises(ValueError, match="features of lora-1 were not read"):
        scores.scores_of(runs, {"methods": ["lora", "uq4ct"], "tasks": ["coins"]})


def test_the_tables_of_the_pages_are_those_of_the_kept_results(tmp_path):
    """Nobody edits a table by hand."""
    for page in (*study.DOCS.glob("*.md"), study.DOCS.parent / "README.md"):
        text = page.read_text(encoding="utf-8")
        for place in _PLACE.finditer(text):
            lines = table(place, study.DOCS / "study")
            assert lines is not None, (page.name, place["campaigns"])
            assert all(
                CAMPAIGNS[name].get("title") for name in place["campaigns"].split(",") if "," in place["campaigns"]
            )
            assert "\n".join(lines) in place[0], (page.name, place[1])
        for name, drawn in figures_across(text, study.DOCS / "study"):
            assert (study.DOCS / "study" / name).read_text(encoding="utf-8") == drawn, name
    for kept in (study.DOCS / "study").glob("*.json"):
        for name, text in figures(kept.stem, json.loads(kept.read_text(encoding="utf-8"))):
            assert (study.DOCS / "study" / name).read_text(encoding="utf-8") == text, name


def test_a_figure_marks_every_method_and_task_with_its_interval():
    results = [
        {**RESULTS["results"][0], "method": method, "task": task, "nll": 1.0 + place}
        for place, method in enumerate(("lora", "lora+temperature", "uq4ct+familiarity"))
        for task in ("tiny", "tiny-far")
    ]
    titles = {"lora": "LoRA", "lora+temperature": "LoRA, T", "uq4ct+familiarity": "ours & more"}
    drawn = dict(figures("own", {"results": results, "figure": {"tasks": ["tiny", "tiny-far"], "methods": titles}}))
    assert list(drawn) == ["own-nll.svg", "own-ece.svg"]
    for word in ("LoRA, T", "ours &amp; more", "tiny-far", "3.000"):
        assert f">{word}</text>" in drawn["own-nll.svg"], word
    assert ">12.5</text>" in drawn["own-ece.svg"]
    assert not list(figures("own", {"results": results}))
