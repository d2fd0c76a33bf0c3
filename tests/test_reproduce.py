"""The paper's tables as experiments: their numbers, their layout, the settings of every cell, and a run end to end."""

from __future__ import annotations

import csv
import io
import re

import pytest

from uq4ct import experiments, tasks
from uq4ct.errors import UserError
from uq4ct.experiments.layout import Block, Cell, Entry, blocks, latex, markdown, tidy_csv


@pytest.mark.parametrize(("name", "numbers"), list(zip(experiments.names(), [60, 84, 20, 10, 60, 10], strict=True)))
def test_every_cell_of_the_paper_has_its_number(name, numbers):
    experiment = experiments.get(name)
    assert sum(len(row) for rows in experiment.paper.values() for row in rows.values()) == numbers
    for rows in experiment.paper.values():
        assert all(len(row) == len(experiment.columns) for row in rows.values())
        assert list(rows) == [row for row in experiment.methods if not experiment.is_ours(row)]


@pytest.mark.parametrize(
    ("name", "metric", "row", "column", "text"),
    [
        ("table1", "ACC", "LoRA", 0, "69.5_1.93"),
        ("table1", "ECE", "LA", 4, "12.6_1.9"),
        ("table1", "ECE", "UQ4CT", 0, "2.3_0.82"),
        ("table2", "ACC", "LoRA", 0, "72.1_1.87"),
        ("table2", "ECE", "MC Drop", 6, "25.9_2.27"),
        ("table2", "ECE", "UQ4CT", 3, "19.6_2.90"),
        ("table3", "ECE", "UQ4CT-Incremental", 2, "13.8_2.08"),
        ("table4", "ECE", "0.2", 0, "7.47_0.78"),
        ("table5", "ECE", "LA", 3, "6.41_3.22"),
        ("table5", "ACC", "UQ4CT", 2, "74.4_0.82"),
        ("table6", "ECE", "Top-5", 0, "6.29_0.61"),
    ],
)
def test_numbers_are_those_that_the_paper_prints(name, metric, row, column, text):
    assert experiments.get(name).paper[metric][row][column].text == text


def test_results_that_tables_share_agree_but_for_the_one_that_the_paper_prints_in_two_ways():
    one, two, three, four, six = (experiments.get(f"table{k}").paper for k in (1, 2, 3, 4, 6))
    for metric in ("ACC", "ECE"):
        for row in one[metric]:
            if (metric, row) != ("ACC", "LoRA"):  # 0.87 in Table 1, 1.87 in Table 2
                assert one[metric][row][3] == two[metric][row][0]
        assert one[metric]["UQ4CT"] == three[metric]["UQ4CT"]
        assert one[metric]["UQ4CT"][3] == four[metric]["1"][0] == six[metric]["Top-2"][0]
        assert one[metric]["MixLoRA"][3] == four[metric]["0"][0]


def test_every_column_is_a_known_task_with_the_splits_that_the_paper_uses():
    for name in experiments.names():
        for column in experiments.get(name).columns:
            assert "train" in tasks.get(column.train).splits
            assert tasks.get(column.test).paper_split == (
                "test" if column.test.startswith(("mmlu", "clima")) else "validation"
            )


def test_an_unknown_table_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"no experiment is called 'tabel1'\. Did you mean 'table1'\?"):
        experiments.get("tabel1")


def entries_of(experiment, states=()):
    """Row r, column c, seed s: accuracy 0.5 + r/100 + s/1000, ECE 0.2 - r/100 + s/1000, the same in every column."""
    found = {}
    for r, row in enumerate(experiment.methods):
        for column in experiment.columns:
            values = {
                "accuracy": tuple(0.5 + r / 100 + s / 1000 for s in range(3)),
                "ece": tuple(0.2 - r / 100 + s / 1000 for s in range(3)),
            }
            found[row, column.title] = Entry(values, 3)
    return found | dict(states)


def line_of(text, *starts):
    (line,) = [line for line in text.splitlines() if re.sub(r"[|\s]+", " ", line).strip().startswith(" ".join(starts))]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_has_accuracy_then_calibration_error_of_each_method_and_then_the_papers():
    experiment = experiments.get("table3")
    ours, paper = blocks(experiment, entries_of(experiment))
    assert ours.header == ("Metrics", "Methods", "BoolQ", "ARC-E", "ARC-C", "OBQA", "ClimateQA")
    assert [line[1].text for line in ours.lines] == ["UQ4CT", "UQ4CT-Incremental"] * 2
    assert [line[0].text for line in ours.lines] == ["ACC ↑", "", "ECE ↓", ""]
    # accuracy 0.500, 0.501, 0.502: mean 50.1 %, sample standard deviation 0.1
    assert ours.lines[0][2:] == (Cell("50.1_0.10"),) * 5
    assert ours.lines[1][2:] == (Cell("51.1_0.10", best=True),) * 5
    assert ours.lines[3][2:] == (Cell("19.10_0.10", best=True),) * 5
    assert (paper.title, paper.lines[2][2], paper.lines[3][4]) == (
        "paper, LLaMA-2-7B",
        Cell("2.3_0.82", best=True),
        Cell("13.8_2.08"),
    )


def test_one_task_has_ours_and_the_papers_numbers_in_one_row():
    experiment = experiments.get("table4")
    (block,) = blocks(experiment, entries_of(experiment))
    assert block.header == ("beta", "ACC ↑", "ECE ↓", "ACC ↑ (paper, LLaMA-2-7B)", "ECE ↓ (paper, LLaMA-2-7B)")
    assert line_of(markdown(block), "0.2") == ["0.2", "51.1_0.10", "19.10_0.10", "76.0_0.6", "7.47_0.78"]
    assert line_of(markdown(block), "1 ") == ["1", "**54.1_0.10**", "**16.10_0.10**", "**77.3_1.36**", "**5.0_1.15**"]


def test_cells_without_results_say_why_and_missing_seeds_are_counted_and_never_best():
    experiment = experiments.get("table3")
    one_seed_less = Entry({"accuracy": (0.9, 0.9), "ece": (0.0, 0.0)}, 3)
    states = {
        ("UQ4CT", "ClimateQA"): Entry({}, 3, "no data"),
        ("UQ4CT-Incremental", "ClimateQA"): Entry({}, 3, "no data"),
        ("UQ4CT", "BoolQ"): one_seed_less,
        ("UQ4CT", "ARC-E"): Entry({}, 3, "failed"),
    }
    ours, paper = blocks(experiment, entries_of(experiment, states))
    assert ours.lines[0][2:] == (
        Cell("90.0_0.00 (2/3)"),
        Cell("failed"),
        Cell("50.1_0.10"),
        Cell("50.1_0.10"),
        Cell("no data"),
    )
    assert not any(cell.best for line in ours.lines for cell in (line[2], line[3]))
    assert paper.lines[0][6].text == "63.3_1.74"


def test_ties_share_the_mark():
    experiment = experiments.get("table4")
    same = {(row, "OBQA"): Entry({"accuracy": (0.5,), "ece": (0.25,)}, 1) for row in experiment.methods}
    (block,) = blocks(experiment, same)
    assert [line[1] for line in block.lines] == [Cell("50.0", best=True)] * 5  # one seed has no deviation


def test_rows_of_ours_stand_apart_from_the_papers():
    experiment = experiments.get("table1")
    ours, paper = blocks(experiment, entries_of(experiment))
    assert [line[1].text for line in ours.lines][:2] == ["Zero-shot", "LoRA"]
    assert paper.lines[0][:2] == (Cell("ACC ↑"), Cell("LoRA"))
    assert len(paper.lines) == 12


def test_latex_carries_every_number_with_its_deviation_as_a_subscript():
    experiment = experiments.get("table2")
    text = latex("A & B", blocks(experiment, entries_of(experiment)), experiment.columns, "smoke")
    assert r"\caption{A \& B}" in text
    assert (
        r" &  & \multicolumn{1}{c}{ID} & \multicolumn{2}{c}{smaller shift} & \multicolumn{4}{c}{larger shift} \\"
        in text
    )
    assert text.count(r"$_{") == 7 * 2 * (7 + 6)
    assert r"\textbf{5.0$_{1.15}$}" in text
    ends = {len(re.findall(r"(?<!\\)&", line)) for line in text.splitlines() if "$_{" in line}
    assert ends == {8}


def test_csv_has_one_number_a_line():
    experiment = experiments.get("table6")
    found = entries_of(experiment, {("Top-3", "OBQA"): Entry({}, 3, "diverged")})
    rows = list(csv.DictReader(io.StringIO(tidy_csv(experiment, found))))
    assert len(rows) == 2 * 10
    by_key = {(row["source"], row["metric"], row["row"]): row for row in rows}
    ours = by_key["ours", "ECE", "Top-1"]
    assert (ours["mean"], ours["sd"], ours["seeds"], ours["state"]) == ("20.1", "0.1", "3", "complete")
    assert by_key["ours", "ACC", "Top-3"]["state"] == "diverged"
    assert by_key["paper, LLaMA-2-7B", "ECE", "Top-5"]["mean"] == "6.29"


def test_markdown_keeps_its_columns_whatever_a_title_holds():
    text = markdown(Block("", ("a|b", "x"), ((Cell("c"), Cell("1", best=True)),), labels=1))
    assert text.splitlines() == ["| a\\|b |     x |", "|:-----|------:|", "| c    | **1** |"]
