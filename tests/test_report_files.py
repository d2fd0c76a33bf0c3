"""Figures and tables as files: the numbers that are drawn, safe names, valid formats, the same bytes."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest
from report_inputs import PAYLOAD, made_rows, make_comparison, make_run

from uq4ct import predictions
from uq4ct.cli import invoke
from uq4ct.errors import UserError
from uq4ct.manifest import write_json
from uq4ct.report import build_report
from uq4ct.report.drawing import Drawing, Plane, fitted, inline_svg, plain_number, svg_file, ticks
from uq4ct.report.figures.base import Figure, Panel
from uq4ct.report.files import named, rows_as_csv, tables_of
from uq4ct.report.rendering import render
from uq4ct.report.sections import build
from uq4ct.report.sources import read_sources

KINDS = ("differences", "reliability", "risk", "confidence", "scaling", "feu", "feu-strata", "letters")
TABLES = {"table.md", "table.csv", "table.tex", "differences.md", "differences.csv"}
FORMS = ("svg", "pdf", "png", "csv", "json")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    methods = ("lora", "lora+temperature", "uq4ct")
    return make_comparison(tmp_path_factory.mktemp("compared") / "cmp", methods, {"tiny": 0.0}, n=40)


@pytest.fixture(scope="module")
def figures(compared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert invoke(["report", str(compared), "-o", str(folder / "r.html"), "--figures", str(folder / "figures")]) == 0
    return folder / "figures"


def test_every_figure_is_a_file_in_five_forms_and_the_table_in_three(figures: Path) -> None:
    stems = {f"{kind}-tiny" for kind in KINDS} | {
        "load",
        *(f"training-{m}" for m in ("lora", "uq4ct")),
    }
    expected = {f"{stem}.{form}" for stem in stems for form in FORMS} | TABLES
    assert {path.name for path in figures.iterdir()} == expected
    for path in figures.glob("*.svg"):
        root = xml.fromstring(path.read_text(encoding="utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in path.read_text(encoding="utf-8")
    assert all(path.read_bytes().startswith(b"%PDF-") for path in figures.glob("*.pdf"))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures.glob("*.png"))


def test_csv_and_json_hold_the_same_numbers(figures: Path) -> None:
    for path in figures.glob("*.json"):
        told = json.loads(path.read_text(encoding="utf-8"))
        with path.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == len(told["numbers"]) > 0
        for line, row in zip(lines, told["numbers"], strict=True):
            for key, value in row.items():
                if isinstance(value, float):
                    assert float(line[key]) == value
                if key == "interval" and value:
                    assert [float(line["interval_low"]), float(line["interval_high"])] == value


def test_the_reliability_file_has_the_bins_of_the_metrics(compared: Path, figures: Path) -> None:
    (series,) = (s for s in read_sources([compared]).series if (s.label, s.task) == ("uq4ct", "tiny"))
    rows = json.loads((figures / "reliability-tiny.json").read_text())["numbers"]
    mine = [row for row in rows if row["method"] == "uq4ct"]
    assert [row["n"] for row in mine] == [row["n"] for row in series.bins]
    assert sum(row["n"] for row in mine) == pytest.approx(40)


def test_the_table_has_the_papers_layout_whatever_it_is_made_of(figures: Path, tmp_path: Path) -> None:
    rows = [row for seed in (1, 2) for row in made_rows(30, 0.0, 0.0, 1.5, False, "lora", seed)]
    predictions.write(tmp_path / "arc_c.jsonl", rows)
    loose = tables_of(read_sources([tmp_path / "arc_c.jsonl"]))
    assert set(loose) == {"table.md", "table.csv", "table.tex"}
    for latex, tasks, methods in (((figures / "table.tex").read_text(), "tiny", 3), (loose["table.tex"], r"arc\_c", 1)):
        assert rf"Metrics & Methods & {tasks} \\" in latex
        assert latex.count(r"\midrule") == 5  # ACC, ECE, NLL, Brier, AUROC
        assert len(re.findall(r"\$[\d.]+_\{[\d.]+\}\$", latex)) == 5 * methods
    (series,) = read_sources([tmp_path / "arc_c.jsonl"]).series
    (nll,) = (row for row in csv.DictReader(loose["table.csv"].splitlines()) if row["metric"] == "nll")
    assert float(nll["mean"]) == series.value("nll")
    assert [float(nll["low"]), float(nll["high"])] == list(series.interval("nll"))
    assert (nll["n"], nll["seeds"]) == ("30", "2")


def test_files_are_the_same_bytes_each_time(compared: Path, figures: Path) -> None:
    material = read_sources([compared])
    made, _ = build(material)
    found = dict(named(made))
    figure = found["reliability-tiny"]
    assert (figures / "reliability-tiny.svg").read_text(encoding="utf-8") == svg_file(figure.sheet, figure.title)
    for form in ("pdf", "png"):
        assert (figures / f"reliability-tiny.{form}").read_bytes() == render(figure.sheet, figure.title, form)
    for stem in found:
        assert (figures / f"{stem}.csv").read_text(encoding="utf-8") == rows_as_csv(found[stem].numbers)


def test_hostile_names_stay_in_the_folder_and_in_their_cells(tmp_path: Path) -> None:
    rows = [
        {"probabilities": {"A": 0.7, "B": 0.3}, "label": "AB"[k % 3 == 0], "method": method, "seed": 1, "id": f"{k}"}
        for k in range(12)
        for method in (PAYLOAD, "=cmd()", "\x1b[31m\x00red\nline", "m" * 300, "模型é")
    ]
    hostile = tmp_path / "..;<b>&\"'$(x) é.jsonl"
    predictions.write(hostile, rows)
    build_report([hostile], tmp_path / "r.html", figures=tmp_path / "out")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert all(re.fullmatch(r"[\w.-]+", name, re.ASCII) and not name.startswith(".") for name in names)
    for path in (tmp_path / "out").glob("*.svg"):
        xml.fromstring(path.read_text(encoding="utf-8"))
        assert "<script" not in path.read_text(encoding="utf-8")
    with (tmp_path / "out" / "table.csv").open(encoding="utf-8", newline="") as file:
        assert not any(row["method"].startswith("=") for row in csv.DictReader(file))
    assert "\\textbackslash{}frac" in (tmp_path / "out" / "table.tex").read_text(encoding="utf-8")


def test_two_tasks_whose_names_differ_in_signs_only_get_files_of_their_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "lora", 20, {"a b": 0.0, "a;b": 0.1}, resamples=10)
    stems = [stem for stem, _ in named(build(read_sources([run]))[0])]
    assert {"risk-a-b", "risk-a-b-2"} <= set(stems)
    assert len(stems) == len(set(stems))


def test_a_bad_place_for_figures_is_refused_before_any_work(compared: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, expected a folder"):
        build_report([compared], tmp_path / "r.html", figures=tmp_path / "file")
    with pytest.raises(UserError, match="does not exist"):
        build_report([compared], tmp_path / "r.html", figures=tmp_path / "no" / "folder")
    assert not (tmp_path / "r.html").exists()


def test_a_plane_puts_data_where_its_scale_says() -> None:
    plane = Plane(Drawing(100, 100), 10, 20, 90, 80, (0, 2), (-1, 1))
    assert plane.at(0, -1) == (10, 80)
    assert plane.at(2, 1) == (90, 20)
    assert plane.at(1, 0) == (50, 50)
    assert plane.at(9, 9) == (90, 20)
    assert plane.box(0, -1, 1, 0) == (10, 50, 50, 80)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.31, 0.02), (0.30505, 0.3055), (0, 1e-9), (-4e5, 1e6)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    step = found[1] - found[0]
    assert 2 <= len(found) <= 9
    assert low - 1e-9 <= found[0]
    assert found[-1] <= high + 1e-9
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert any(mantissa == pytest.approx(round_step, rel=1e-3) for round_step in (1, 2, 2.5, 5))
    assert all(plain_number(value) for value in found)


def test_a_drawing_escapes_its_texts_in_every_form() -> None:
    drawing = Drawing(80, 40)
    drawing.words(4, 20, PAYLOAD + "\x00\ufffe")
    drawing.spots([(1, 2)], shape="diamond", hollow=True)
    drawing.line((0, 0), (1, 1), dash=(3, 2))
    for svg in (svg_file(drawing, PAYLOAD), inline_svg(drawing, PAYLOAD, PAYLOAD)):
        root = xml.fromstring(svg)
        assert "<script" not in svg
        assert next(e for e in root.iter() if e.tag.rpartition("}")[2] == "text").text.startswith(PAYLOAD)
    assert render(drawing, PAYLOAD, "pdf").startswith(b"%PDF")


def test_long_texts_are_shortened_to_their_place() -> None:
    assert fitted("short", 100) == "short"
    assert fitted("m" * 300, 100).endswith("…")
    assert len(fitted("m" * 300, 100)) < 20


def test_a_sheet_holds_every_panel_in_rows_of_even_length() -> None:
    panels = tuple(Panel(f"p{k}", Drawing(212, 100), "") for k in range(6))
    sheet = Figure("k", "t", "title", panels, ()).sheet
    assert (sheet.width, sheet.height) == (3 * 230 - 18, 2 * 140 - 18)
    assert [mark.text for mark in sheet.marks] == [f"p{k}" for k in range(6)]


def test_loose_runs_are_averaged_as_a_comparison_averages_them(compared: Path) -> None:
    """The same means, deviations and intervals, for the same draws are made."""
    known = json.loads((compared / "results.json").read_text())["results"]
    material = read_sources(sorted((compared / "cells").glob("lora-tiny-*")))
    (series,) = material.series
    assert material.comparison is None
    for key in ("nll", "accuracy", "ece", "sd", "item_sd", "intervals", "ece_null"):
        assert series.result[key] == known[0][key], key


def test_numbers_that_a_comparison_lacks_are_left_out(compared: Path, tmp_path: Path) -> None:
    shutil.copytree(compared, tmp_path / "cmp")
    found = json.loads((tmp_path / "cmp" / "results.json").read_text())
    found["differences"] = [row | {"difference": None, "interval": None, "p": None} for row in found["differences"]]
    found["shift_detection"] = [
        row | {"auroc": None, "interval": None, "fpr95": None} for row in found["shift_detection"]
    ]
    found["verdicts"], found["feu_usefulness"] = [], []
    write_json(tmp_path / "cmp" / "results.json", found)
    made, absent = build(read_sources([tmp_path / "cmp"]))
    assert "differences" not in [section.key for section in made]
    assert any(line.startswith("Differences from a baseline") for line in absent)
