"""The report reads folders only, is the same to the byte, needs no script, and shows hostile text as text."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from report_inputs import PAYLOAD, Elements, made_rows, make_comparison, make_run

from uq4ct import predictions
from uq4ct.errors import UserError
from uq4ct.manifest import write_json, write_manifest
from uq4ct.metrics.intervals import wilson
from uq4ct.posthoc.abstain import AbstainRule
from uq4ct.report import build_report, table
from uq4ct.report.differences import is_established, verdict_of
from uq4ct.report.drawing import Spots
from uq4ct.report.figures.comparing import forest
from uq4ct.report.files import tables_of
from uq4ct.report.material import Series
from uq4ct.report.scaling import scaled
from uq4ct.report.sections import build
from uq4ct.report.sections.verdict import headline, overview, standing, verdict
from uq4ct.report.sources import read_sources


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    tasks = {"tiny": 0.0, "tiny-far": 0.16}
    return [make_run(root / method, method, 80, tasks) for method in ("lora", "uq4ct")]


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("report") / "report.html"
    build_report(runs, output)
    return output.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks = {"tiny": 0.0, "tiny-far": 0.16}
    return make_comparison(tmp_path_factory.mktemp("compared") / "cmp", tasks=tasks)


@pytest.fixture(scope="module")
def compared_page(compared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("report") / "report.html"
    build_report([compared], output)
    return output.read_text(encoding="utf-8")


def test_a_report_of_runs_has_every_section_in_order(page: str) -> None:
    assert sections(page) == [
        *("overview", "verdict", "reliability", "risk", "confidence", "shift", "feu", "letters", "truth"),
        *("abstaining", "mistakes", "training", "cost", "provenance"),
    ]
    text = " ".join(Elements(page).text)
    for words in (
        "tiny-far",
        "uq4ct",
        "123,456",
        "47 s",
        "contradicted",
        "3f2a9c",
        "at least 85 % right",
        "5d41402abc4b2a76",
    ):
        assert words in text, words
    assert "Differences from a baseline: they come with the results.json" in text
    assert "Temperature scaling: no method with the suffix" in text


def test_a_report_of_a_comparison_adds_differences_and_temperature(compared_page: str) -> None:
    assert sections(compared_page) == [
        *("overview", "verdict", "differences", "reliability", "risk", "confidence", "scaling", "shift", "feu"),
        *("letters", "truth", "abstaining", "mistakes", "training", "cost", "provenance"),
    ]
    text = " ".join(Elements(compared_page).text)
    for words in (
        "Differences from lora",
        "Tests of FEU, a confidence, beside",
        "What that amounts to on tiny",
        "the labelled test split",
    ):
        assert words in text, words
    assert "Not shown" not in text


def sections(page: str) -> list[str]:
    """Return the ids of the sections; the list of contents must name the same ones."""
    elements = Elements(page)
    ids = [value for tag, name, value in elements.attributes if tag == "section" and name == "id"]
    targets = [value[1:] for tag, name, value in elements.attributes if tag == "a" and name == "href"]
    assert targets == ["main", *ids]
    return ids


def test_a_report_is_the_same_to_the_byte_whoever_builds_it(runs: list[Path], page: str, tmp_path: Path) -> None:
    command = "import sys; from uq4ct.report import build_report; build_report(sys.argv[2:], sys.argv[1])"
    output = tmp_path / "again.html"
    subprocess.run(
        [sys.executable, "-c", command, output, *runs], check=True, env={"PYTHONHASHSEED": "7", "MPLBACKEND": "agg"}
    )
    assert output.read_text(encoding="utf-8") == page


def test_a_report_is_one_file_that_needs_no_script_and_no_network(page: str) -> None:
    elements = Elements(page)
    assert not {"script", "link", "iframe", "object", "form", "img", "base"} & set(elements.tags)
    assert not [name for _, name, _ in elements.attributes if name.startswith("on")]
    links = [value for _, name, value in elements.attributes if name in ("href", "src", "xlink:href")]
    assert links
    assert all(value.startswith("#") for value in links)
    assert "default-src 'none'" in page
    assert "@import" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in page
    assert elements.open == []


def test_hostile_text_is_shown_and_never_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run <b>", "lora", 30, {PAYLOAD: 0.0})
    path = next(run.glob("evaluations/*/predictions.jsonl"))
    rows = predictions.read(path)
    for row in rows:
        row |= {"question": PAYLOAD, "stratum": PAYLOAD, "choices": [PAYLOAD] * len(row["choices"])}
    predictions.write(path, rows)
    write_json(path.with_name("metrics.json"), {"task": PAYLOAD, "split": PAYLOAD})
    write_manifest(path.parent)
    write_json(run / "uq4ct.json", {"method": PAYLOAD, "task": PAYLOAD, "notes": [PAYLOAD], PAYLOAD: PAYLOAD})
    write_json(run / "environment.json", {"device": PAYLOAD})
    build_report([run], tmp_path / "report.html", title=PAYLOAD)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    elements = Elements(page)
    assert "<script" not in page
    assert "<img" not in page
    assert not [name for _, name, _ in elements.attributes if name.startswith("on")]
    assert sum(PAYLOAD in part for part in elements.text) > 10


def test_missing_facts_and_files_do_not_break_a_report(tmp_path: Path) -> None:
    place = tmp_path / "run" / "evaluations" / "task"
    place.mkdir(parents=True)
    rows = made_rows(12, 0.0, 0.0, 1.0, False, "m")
    for row in rows:
        for key in ("stratum", "true_probabilities", "method", "seed", "logits", "question"):
            row.pop(key)
    predictions.write(place / "predictions.jsonl", rows)
    build_report([tmp_path / "run"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "unfinished: no manifest" in page
    assert "Known truth" not in page


def test_prediction_files_and_folders_of_runs_are_read_too(runs: list[Path], tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.csv"
    theirs.write_text('probabilities,label\n"[0.7, 0.3]",A\n"[0.6, 0.4]",B\n"[0.1, 0.9]",B\n')
    build_report([runs[0].parent, theirs], tmp_path / "report.html")
    text = " ".join(Elements((tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "Calibration report: lora, uq4ct and theirs on 3 tasks" in text


def test_all_right_answers_have_no_auroc_but_a_report(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"probabilities": {"A": 1.0, "B": 0.0}, "label": "A"}\n' * 3)
    build_report([tmp_path / "p.jsonl"], tmp_path / "report.html")
    assert "all 3 are right" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_two_runs_of_one_method_are_told_apart(tmp_path: Path) -> None:
    tasks = {"tiny": 0.0}
    folders = [make_run(tmp_path / name, "lora", 20, tasks) for name in ("first", "second", "third")]
    write_json(folders[2] / "uq4ct.json", {"method": "lora", "seed": 2})
    build_report(folders, tmp_path / "report.html")
    text = " ".join(Elements((tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "lora seed 2" in text
    assert f"lora seed 1 ({folders[0]})" in text


def test_what_cannot_be_read_is_named(runs: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    with pytest.raises(UserError, match="no such run folder or prediction file"):
        build_report([tmp_path / "absent"], output)
    with pytest.raises(UserError, match="neither a run folder"):
        build_report([tmp_path], output)
    with pytest.raises(UserError, match=r"name it \.html"):
        build_report(runs, tmp_path / "report.pdf")
    with pytest.raises(UserError, match="does not exist"):
        build_report(runs, tmp_path / "absent" / "report.html")
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "uq4ct.json", {})
    with pytest.raises(UserError, match="no evaluation yet"):
        build_report([tmp_path / "run"], output)
    changed = tmp_path / "changed"
    shutil.copytree(runs[0], changed)
    with next(changed.glob("evaluations/*/predictions.jsonl")).open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"predictions\.jsonl: .* bytes, the manifest says"):
        build_report([changed], output)
    assert not output.exists()


def test_tables_for_terminal_markdown_and_spreadsheet_agree(runs: list[Path]) -> None:
    results = [json.loads(path.read_text()) for run in runs for path in sorted(run.glob("evaluations/*/metrics.json"))]
    text, markdown, csv = (table(results, format=format) for format in ("text", "md", "csv"))
    accuracy = f"{100 * results[0]['accuracy']:.1f}"
    assert accuracy in text.splitlines()[2]
    assert accuracy in markdown.splitlines()[2]
    header, *lines = csv.splitlines()
    cells = dict(zip(header.split(","), lines[0].split(","), strict=True))
    assert float(cells["accuracy"]) == results[0]["accuracy"]
    assert float(cells["ece_low"]) == results[0]["intervals"]["ece"][0]
    assert len(lines) == 4
    assert "FEU AUROC" in text
    assert "calibrated ECE" in text


def test_a_table_survives_hostile_names() -> None:
    result = {"task": "a|b\nc\x1b[31m", "method": "=cmd()", "n": 1, "accuracy": None}
    assert table([result], "md").splitlines()[2].startswith("| a\\|b c [31m | =cmd() | 1 | - |")
    assert "\x1b" not in table([result])
    assert "'=cmd()" in table([result], "csv")


def test_seeds_of_one_method_are_one_series(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / f"lora{seed}", "lora", 40, {"tiny": 0.0}, resamples=20, seed=seed) for seed in (1, 2, 3)
    ]
    material = read_sources(folders)
    (series,) = material.series
    assert (series.label, series.seeds) == ("lora", (1, 2, 3))
    values = [member.metrics["nll"] for member in series.members]
    assert series.value("nll") == pytest.approx(np.mean(values))
    assert series.deviation("nll") == pytest.approx(np.std(values, ddof=1))
    low, high = series.interval("nll")
    assert low < np.mean(values) < high
    build_report(folders, tmp_path / "report.html")
    text = " ".join(Elements((tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "On tiny (40 questions, 3 seeds) lora is" in text
    assert "lora seed" not in text.partition("Run folders")[0]


def test_a_comparison_is_taken_at_its_word(compared: Path) -> None:
    results = json.loads((compared / "results.json").read_text())["results"]
    for source in (compared, compared / "cells"):
        material = read_sources([source])
        assert material.labels == ("lora", "lora+temperature", "mixlora", "uq4ct")
        assert [series.result for series in material.series if series.task == "tiny"] == results[:4]
        assert all(series.seeds == (1, 2) for series in material.series)
        assert material.comparison.baseline == "lora"
        assert material.fitted_on == "tiny"


def test_a_method_with_options_has_its_own_numbers_differences_and_verdict_beside_the_plain_one(tmp_path: Path) -> None:
    """A run's facts know its bare method: taken by it, ``lora[rank=4]`` would get the row of ``lora``."""
    folder = make_comparison(tmp_path / "cmp", ("lora", "lora[rank=4]"), {"tiny": 0.0})
    results = json.loads((folder / "results.json").read_text())["results"]
    assert results[0]["nll"] != results[1]["nll"]
    for source in (folder, folder / "cells"):
        material = read_sources([source])
        assert material.labels == ("lora", "lora[rank=4]")
        assert [series.result for series in material.series] == results
    (section,) = (section for section in build(material)[0] if section.key == "differences")
    drawn, verdicts = section.groups[0].blocks
    assert {row["method"] for row in drawn.figure.numbers} == {"lora[rank=4]"}
    assert [row[0].text for row in verdicts.rows] == ["lora[rank=4]"]
    (folder / "results.json").unlink()
    assert sorted(read_sources([folder]).labels) == ["lora", "lora[rank=4]"]


def test_runs_beside_a_comparison_get_their_own_numbers_and_leave_it_its_name(tmp_path: Path) -> None:
    """Method, task, split and seeds may all be those of cells; only the folder tells whose numbers they are."""
    folder = make_comparison(tmp_path / "cmp", ("lora", "mixlora"), {"tiny": 0.0})
    results = json.loads((folder / "results.json").read_text())["results"]
    loose = []
    for seed in (1, 2):
        run = make_run(tmp_path / "loose" / f"s{seed}", "uq4ct", 60, {"tiny": 0.0}, resamples=20, seed=seed)
        write_json(run / "uq4ct.json", {**json.loads((run / "uq4ct.json").read_text()), "method": "mixlora"})
        (run / "config.yaml").write_text("train: {learning_rate: 0.9}\n")
        loose.append(json.loads((run / "evaluations" / "tiny" / "metrics.json").read_text())["nll"])
    fresh = make_run(tmp_path / "fresh", "lora", 60, {"tiny": 0.0}, resamples=20, seed=3)
    material = read_sources([folder, tmp_path / "loose", fresh])
    assert material.labels == ("lora", "mixlora", f"mixlora ({tmp_path / 'loose' / 's1'})", "lora seed 3")
    assert [series.result for series in material.series[:2]] == results
    assert material.series[2].value("nll") == pytest.approx(np.mean(loose)) != results[1]["nll"]
    (section,) = (section for section in build(material)[0] if section.key == "differences")
    assert {row["method"] for row in section.groups[0].blocks[0].figure.numbers} == {"mixlora"}


def test_a_comparison_that_still_runs_shows_its_finished_cells(compared: Path, tmp_path: Path) -> None:
    shutil.copytree(compared, tmp_path / "cmp")
    (tmp_path / "cmp" / "results.json").unlink()
    cells = sorted((tmp_path / "cmp" / "cells").iterdir())
    (cells[0] / "cell.json").unlink()
    material = read_sources([tmp_path / "cmp"])
    assert sum(len(series.members) for series in material.series if series.task == "tiny") == len(cells) - 1
    assert material.comparison is None


def test_seeds_that_answered_other_questions_stay_apart(tmp_path: Path) -> None:
    for seed, n in ((1, 20), (2, 30)):
        make_run(tmp_path / f"s{seed}", "lora", n, {"tiny": 0.0}, resamples=20, seed=seed)
    material = read_sources([tmp_path / "s1", tmp_path / "s2"])
    assert material.labels == ("lora seed 1", "lora seed 2")


def test_a_prediction_file_with_several_seeds_is_one_series(tmp_path: Path) -> None:
    rows = [row for seed in (1, 2) for row in made_rows(30, 0.0, 0.0, 1.5, False, "lora", seed)]
    predictions.write(tmp_path / "arc.jsonl", rows)
    (series,) = read_sources([tmp_path / "arc.jsonl"]).series
    assert (series.label, series.task, series.seeds, series.n) == ("lora", "arc", (1, 2), 30)


def test_what_a_comparison_cannot_back_is_refused(compared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a report shows one comparison"):
        read_sources([compared, compared / "cells"])
    shutil.copytree(compared, tmp_path / "cmp")
    shutil.rmtree(next((tmp_path / "cmp" / "cells").iterdir()))
    with pytest.raises(UserError, match=r"missing, .*results\.json lists it as complete"):
        read_sources([tmp_path / "cmp"])
    diverged = [{"method": "lora", "seed": 1, "status": "diverged", "folder": "lora-1"}]
    write_json(tmp_path / "cmp" / "results.json", {"cells": diverged, "results": []})
    with pytest.raises(UserError, match="cmp: no cell of the comparison is finished"):
        read_sources([tmp_path / "cmp"])
    write_json(tmp_path / "cmp" / "results.json", {"cells": "none"})
    with pytest.raises(UserError, match="not the results of a comparison"):
        read_sources([tmp_path / "cmp"])


def test_bins_over_seeds_are_those_of_all_answers_with_the_interval_of_one_seed(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / f"lora{seed}", "lora", 60, {"tiny": 0.0}, resamples=20, seed=seed) for seed in (1, 2)
    ]
    (series,) = read_sources(folders).series
    confidence = np.concatenate([member.answers.confidence for member in series.members])
    correct = np.concatenate([member.answers.correct for member in series.members])
    seen = 0
    for row in series.bins:
        inside = (confidence > row["lower"]) & (confidence <= row["upper"])
        seen += inside.sum()
        assert row["n"] == inside.sum() / 2
        assert row["accuracy"] == pytest.approx(correct[inside].mean())
        assert row["confidence"] == pytest.approx(confidence[inside].mean())
        size = max(1, round(row["n"]))
        assert (row["accuracy_low"], row["accuracy_high"]) == wilson(row["accuracy"] * size, size)
    assert seen == 120


@pytest.mark.parametrize("places", [["compared"], ["runs"]])
def test_headings_are_in_order_and_everything_drawn_is_described(
    places: list[str], request: pytest.FixtureRequest
) -> None:
    page = request.getfixturevalue("compared_page" if places == ["compared"] else "page")
    levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    svgs = re.findall(r"<svg[^>]*>", page)
    assert len(svgs) > 20
    assert all(' role="img" aria-label="' in svg for svg in svgs)
    tables = re.findall(r"<table.*?</table>", page, re.S)
    assert all("<caption" in table and '<th scope="col"' in table and '<th scope="row"' in table for table in tables)
    assert '<a class="skip" href="#main">' in page
    assert page.count('id="main"') == 1
    assert len(re.findall(r' id="([^"]+)"', page)) == len(set(re.findall(r' id="([^"]+)"', page)))


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_texts_are_readable_in_both_themes(page: str) -> None:
    """WCAG 2.2: 4.5 for text, 3 for marks; black on white is 21."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    palettes = [dict(re.findall(r"--(\w+): (#\w{6});", rule)) for rule in re.findall(r":root \{[^}]*#[^}]*\}", page)]
    light, dark, printed = palettes
    for palette in (light, dark, light | printed):
        for ground in ("paper", "shade"):
            for text in ("ink", "muted", "accent", "right", "wrong"):
                assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground, palette)
        for mark in ("ink", "accent"):
            assert contrast(palette[mark], palette["band"]) >= 3, (mark, palette)


def test_words_say_what_ece_shows(tmp_path: Path) -> None:
    def series(correct: list[int], confidence: float) -> Series:
        rows = [
            {"id": str(k), "probabilities": {"A": confidence, "B": 1 - confidence}, "label": "AB"[1 - right]}
            for k, right in enumerate(correct)
        ]
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_sources([tmp_path / "p.jsonl"]).series[0]

    def told(parts: list[tuple[float, int, int]]) -> Series:
        rows = [{"confidence": c, "correct": k < right} for c, right, wrong in parts for k in range(right + wrong)]
        (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_sources([tmp_path / "q.jsonl"]).series[0]

    assert standing(series([1] * 75 + [0] * 25, 0.75)).words == "not distinguishable from calibrated"
    assert standing(series([1] * 50 + [0] * 50, 0.9)).words == "overconfident by 40.0 points"
    assert standing(series([1] * 99 + [0], 0.6)).words == "underconfident by 39.0 points"
    assert standing(told([(0.02, 2, 6)])).words == "miscalibrated, direction not established"
    assert standing(told([(0.95, 60, 40), (0.55, 90, 10)])).words == "miscalibrated in both directions"


def test_a_temperature_that_no_cell_has_is_fitted_on_the_calibration_split(tmp_path: Path) -> None:
    run = make_run(tmp_path / "lora", "lora", 80, {"tiny": 0.0}, resamples=20, calibration=120)
    (entry,) = scaled(read_sources([run]))["tiny"]
    assert entry.fitted_here
    assert entry.questions == 120
    rows = predictions.read(run / "calibration.jsonl")
    grid = np.linspace(0.5, 6, 1101)
    losses = [np.mean([nll_at(row, t) for row in rows]) for t in grid]
    assert entry.temperatures[0] == pytest.approx(grid[int(np.argmin(losses))], abs=0.006)
    evaluated = predictions.read(run / "evaluations" / "tiny" / "predictions.jsonl")
    assert entry.scaled["nll"] == pytest.approx(np.mean([nll_at(row, entry.temperatures[0]) for row in evaluated]))
    assert entry.scaled["nll"] < entry.raw["nll"]


def test_a_plus_within_the_options_of_a_method_is_no_suffix(tmp_path: Path) -> None:
    name = "lora[train.learning_rate=1e+3]"
    run = make_run(tmp_path / "lora", name, 40, {"tiny": 0.0}, resamples=20, calibration=120)
    write_json(run / "cell.json", {"method": name})
    (entry,) = scaled(read_sources([run]))["tiny"]
    assert entry.label == name


def nll_at(row: dict, temperature: float) -> float:
    logits = np.array(row["logits"]) / temperature
    logits -= logits.max()
    gold = list(row["probabilities"]).index(row["label"])
    return float(np.log(np.exp(logits).sum()) - logits[gold])


def test_detection_is_computed_where_no_comparison_tells_it(runs: list[Path], compared_page: str, page: str) -> None:
    home, away = (
        [row["confidence"] for row in predictions.read(runs[0] / "evaluations" / task / "predictions.jsonl")]
        for task in ("tiny", "tiny-far")
    )
    expected = np.mean([(a > b) + (a == b) / 2 for a in home for b in away])
    (row,) = (row for row in numbers(runs, "shift") if row["method"] == "lora" and "auroc" in row)
    assert row["auroc"] == pytest.approx(expected)
    assert "computed for this page without an interval" in page
    assert "computed for this page without an interval" not in compared_page


def numbers(sources: list[Path], key: str) -> list[dict]:
    """Return what the first figure of a section shows."""
    made, _ = build(read_sources(sources))
    (section,) = (section for section in made if section.key == key)
    return list(
        next(block for group in section.groups for block in group.blocks if block.form == "figure").figure.numbers
    )


def test_a_difference_is_established_by_its_interval_and_its_corrected_p() -> None:
    row = {"difference": -0.1, "interval": [-0.2, -0.05], "better": "lower", "p_holm": 0.01, "seeds": [1, 2]}
    assert is_established(row)
    assert is_established(row | {"p_holm": None})
    assert not is_established(row | {"p_holm": 0.2})
    assert not is_established(row | {"seeds": [1]})
    assert not is_established(row | {"interval": [-0.2, 0.01]})
    assert not is_established(row | {"interval": None})


def test_figure_headline_and_verdict_call_the_same_difference_established(compared: Path, tmp_path: Path) -> None:
    """Errors clustered by group take back what the interval over questions shows, wherever it is told."""
    folder = Path(shutil.copytree(compared, tmp_path / "cmp"))
    found = json.loads((folder / "results.json").read_text())
    best = min((row for row in found["results"] if row["task"] == "tiny"), key=lambda row: row["nll"])["method"]
    found["baseline"] = "other"
    clear = {"p": 0.001, "p_holm": 0.001, "seeds": [1, 2, 3], "seed_sd": 0.001, "item_sd": 0.01, "n": 60}
    clear |= {"task": "tiny", "split": "test", "method": best, "baseline": "other", "better": "lower"}
    for error, words, said in ((0.01, ".", "better"), (0.03, ", which is not established.", "not distinguishable")):
        rows = [
            {**clear, "metric": name, "difference": -0.05, "interval": [-0.07, -0.03], "clustered_se": error}
            for name in ("nll", "brier")
        ]
        rows.append({**clear, "metric": "auroc", "better": "higher", "difference": 0.0, "interval": [-0.01, 0.01]})
        write_json(folder / "results.json", found | {"differences": rows, "verdicts": []})
        material = read_sources([folder])
        assert f"against other that is −0.050 (−0.070 to −0.030){words}" in headline(material)[0]
        assert verdict_of({row["metric"]: row for row in rows})[0] == said
        figure = forest("tiny", rows, "other")
        assert figure is not None
        (panel,) = figure.panels
        looks = [(mark.colour, mark.hollow) for mark in panel.drawing.marks if isinstance(mark, Spots)]
        assert looks[3:5] == [("right", False) if said == "better" else ("muted", True)] * 2  # three are the key's
        assert any("or 0 within errors clustered by group" in str(mark) for mark in panel.drawing.marks)
        (section,) = (part for part in build(material)[0] if part.key == "differences")
        assert "with errors clustered by group, too" in section.intro


def test_the_risk_curve_and_its_oracle_are_those_of_the_answers(runs: list[Path]) -> None:
    rows = [row for row in numbers(runs, "risk") if row["method"] == "lora"]
    answers = sorted(
        predictions.read(runs[0] / "evaluations/tiny/predictions.jsonl"), key=lambda row: -row["confidence"]
    )
    wrong = [not row["correct"] for row in answers]
    for row in rows:
        k = round(row["coverage"] * len(wrong))
        assert row["error_rate"] == pytest.approx(np.mean(wrong[:k]))
        assert row["oracle"] == pytest.approx(np.mean(sorted(wrong)[:k]))


def test_ten_methods_on_six_tasks_over_five_seeds_stay_below_two_megabytes(tmp_path: Path) -> None:
    """One run serves all methods and seeds: bytes depend on how much is drawn, not on what."""
    tasks = {"tiny": 0.0, "near": 0.06, "far": 0.16, "odd": 0.1, "health": 0.3, "unanswerable": 0.45}
    run = make_run(tmp_path / "run", "uq4ct", 120, tasks, resamples=20)
    facts = json.loads((run / "uq4ct.json").read_text())
    results, cells = [], []
    for number in range(10):
        for seed in range(1, 6):
            cell = tmp_path / "cmp" / "cells" / f"m{number}-{seed}"
            shutil.copytree(run, cell)
            write_json(cell / "uq4ct.json", facts | {"method": f"a_longer_name_{number}", "seed": seed})
            cells.append({"method": f"a_longer_name_{number}", "seed": seed, "status": "complete", "folder": str(cell)})
        for task in tasks:
            metrics = json.loads((run / "evaluations" / task / "metrics.json").read_text())
            spread = dict.fromkeys(metrics["intervals"], 0.01)
            results.append(metrics | {"method": f"a_longer_name_{number}", "seeds": [1, 2, 3, 4, 5], "sd": spread})
    write_json(tmp_path / "cmp" / "results.json", {"cells": cells, "results": results})
    build_report([tmp_path / "cmp"], tmp_path / "report.html")
    assert 800_000 < (tmp_path / "report.html").stat().st_size < 2_000_000


def test_another_split_is_another_task_and_keeps_what_the_comparison_says(compared: Path, tmp_path: Path) -> None:
    """``compare --protocol paper`` evaluates validation: its folder is task.validation, its results say task and split."""
    shutil.copytree(compared, tmp_path / "cmp")
    for place in (tmp_path / "cmp" / "cells").glob("*/evaluations/tiny"):
        metrics = json.loads((place / "metrics.json").read_text())
        write_json(place / "metrics.json", metrics | {"split": "validation"})
        write_manifest(place)
        place.rename(place.with_name("tiny.validation"))
    found = json.loads((tmp_path / "cmp" / "results.json").read_text())
    for key in ("results", "differences", "verdicts", "feu_usefulness"):
        found[key] = [row | ({"split": "validation"} if row["task"] == "tiny" else {}) for row in found[key]]
    write_json(tmp_path / "cmp" / "results.json", found | {"in_distribution": "tiny.validation"})
    material = read_sources([tmp_path / "cmp"])
    assert material.fitted_on == "tiny.validation"
    assert material.tasks == ("tiny.validation", "tiny-far")
    write_json(tmp_path / "cmp" / "results.json", found | {"in_distribution": "tiny"})  # as comparisons write it
    assert read_sources([tmp_path / "cmp"]).fitted_on == "tiny.validation"
    assert {row["task"] for row in material.rows("differences")} == {"tiny.validation", "tiny-far"}
    assert {row["in_distribution"] for row in material.rows("shift_detection")} == {"tiny.validation"}
    assert material.find("lora", "tiny.validation").result == found["results"][0]
    assert [len(section.groups) for section in build(material)[0] if section.key == "differences"] == [2]


ODD = {
    "one row": [{"probabilities": {"A": 0.7, "B": 0.3}, "label": "A"}],
    "all wrong": [{"probabilities": {"A": 0.7, "B": 0.3}, "label": "B"}] * 5,
    "a right answer of probability 0": [{"probabilities": {"A": 1.0, "B": 0.0}, "label": label} for label in "AB"],
    "one FEU": [{"probabilities": [0.7, 0.3], "label": k % 2, "feu": 0.25} for k in range(6)],
    "26 choices": [{"probabilities": {chr(65 + k): 1 / 26 for k in range(26)}, "label": "Z"}] * 3,
    "confidences alone": [{"confidence": 0.5 + 0.05 * k, "correct": k % 2 == 0} for k in range(9)],
    "half a character": [
        {"probabilities": {"A": 0.6, "B": 0.4}, "label": "B", "question": "\ud800 \u202e", "choices": ["\udfff", "b"]}
    ]
    * 2,
}


@pytest.mark.parametrize("name", ODD)
def test_odd_answers_have_a_page_too(name: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ODD[name]))
    build_report([tmp_path / "p.jsonl"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert Elements(page).open == []
    assert not re.search(r"\b(nan|inf)\b", page, re.IGNORECASE)
    assert ("Letter priors: the answers are confidences" in page) == (name == "confidences alone")


def test_each_evaluation_is_shown_with_the_abstain_rule_that_it_was_made_under(tmp_path: Path) -> None:
    """``predict --abstain-below`` saves its rule with the run, and leaves evaluations made under another, or none."""
    run = make_run(tmp_path / "run", "uq4ct", 60, {"tiny": 0.0, "tiny-far": 0.16, "tiny-near": 0.06}, resamples=20)
    write_manifest(run / "evaluations" / "tiny", rule=AbstainRule(0.5).to_dict())
    write_manifest(run / "evaluations" / "tiny-far", rule=None)
    write_manifest(run / "evaluations" / "tiny-near", rule=AbstainRule(0.95).to_dict())
    AbstainRule(0.95).save(run / "abstain.json")
    (section,) = (section for section in build(read_sources([run]))[0] if section.key == "abstaining")
    shown = {group.title: group.blocks[0].rows[0][-1] for group in section.groups}
    first, now = (f"abstains below confidence {threshold}, chosen by hand" for threshold in (0.5, 0.95))
    assert (shown["tiny"].text, shown["tiny"].small) == (first, f"the run's rule now: {now}")
    assert (shown["tiny-far"].text, shown["tiny-far"].small) == ("none", f"the run's rule now: {now}")
    assert (shown["tiny-near"].text, shown["tiny-near"].small) == (now, "")
    assert "0.95" not in section.intro
    write_manifest(run / "evaluations" / "tiny", rule={"threshold": "high"})
    with pytest.raises(UserError, match=r"tiny/manifest\.json: not an abstain rule"):
        read_sources([run])


def test_methods_that_answered_different_questions_are_not_ranked(tmp_path: Path) -> None:
    """Two files that name no task are one task, and so are evaluations of one name, whatever questions they hold."""
    for name, shift in (("obqa", 0.0), ("arc", 0.16)):
        rows = made_rows(40, shift, 0.0, 1.5, False, "m")
        kept = [{"id": f"{name}-{row['id']}", **{key: row[key] for key in ("probabilities", "label")}} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        (tmp_path / f"{name}2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept[::-1]))
    runs = [make_run(tmp_path / m, m, n, {"tiny": 0.0}, resamples=20) for m, n in (("lora", 40), ("mixlora", 50))]
    for sources in ([tmp_path / "obqa.jsonl", tmp_path / "arc.jsonl"], runs):
        material = read_sources(sources)
        (task,) = material.tasks
        said = f"On {task} the methods answered different questions (ids or right answers differ): no ranking."
        assert headline(material)[0] == said
        assert not re.search("lowest|leads", " ".join(headline(material)))
        assert overview(material).caption.startswith("Not sorted")
        (group,) = verdict(material).groups
        assert "the methods answered different questions" in group.facts
        assert not any(cell.strong for row in group.blocks[0].rows for cell in row)
        assert said in tables_of(material)["table.md"]
    assert "n = 40 and 50" in tables_of(material)["table.md"]
    alike = read_sources([tmp_path / "obqa.jsonl", tmp_path / "obqa2.jsonl"])
    assert "has the lowest NLL" in headline(alike)[0]
    assert any(cell.strong for row in verdict(alike).groups[0].blocks[0].rows for cell in row)


def test_runs_of_other_options_are_no_seeds_of_one_method(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"s{s}", "lora", 20, {"tiny": 0.0}, resamples=20, seed=s) for s in (1, 2, 3)]
    for folder, rate in zip(folders, ("1e-4", "1e-4", "5e-4"), strict=True):
        text = f"train: {{learning_rate: {rate}}}\noutput: {{folder: {folder}, seed: 9}}\n"
        (folder / "config.yaml").write_text(text)
    material = read_sources(folders)
    assert [(series.label, series.seeds) for series in material.series] == [("lora", (1, 2)), ("lora seed 3", (3,))]
    (folders[0] / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml: not readable as YAML"):
        read_sources(folders)
