"""The tables that print a comparison, from what its results.json holds: terminal, Markdown, csv, LaTeX."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from uq4ct.metrics.summary import METRICS
from uq4ct.report.differences import TITLES
from uq4ct.report.tables import COLUMNS, Column, decimals, percent

Result = Mapping[str, Any]

WIDTH = 100  # of the terminal
LONG = 20  # a name of more letters has a line of its own there
# What the terminal shows; Markdown shows all of COLUMNS, csv every metric.
SHORT = ("accuracy", "nll", "brier", "ece", "auroc")
# The blocks of the LaTeX table, as the paper calls them, and the proper scores that it does not print.
BLOCKS = {"accuracy": "ACC", "ece": "ECE", "nll": "NLL", "brier": "Brier", "auroc": "AUROC"}


def files(found: Result) -> dict[str, str]:
    """Return the files that a comparison leaves beside its results.json, by name."""
    return {
        "table.md": markdown(found),
        "table.csv": csv_table(found),
        "table.tex": latex(found),
        "differences.md": differences_markdown(found),
        "differences.csv": differences_csv(found),
    }


def text(found: Result) -> str:
    """Return the comparison for a terminal: a block per task with ``mean ±sd`` and the verdicts, then the notes."""
    blocks = []
    for (task, split), rows in _by_task(found["results"]):
        columns = [column for column in _columns(rows) if column.key in SHORT]
        lines = [["method", "seeds", *(column.title for column in columns), "band %"]]
        for row in rows:
            cells = [_seeds(row), *(_mean_sd(row, c, " ±{}") for c in columns), _null(row)]
            name = _plain(row["method"])
            lines += [[name, *cells]] if len(name) <= LONG else [[name], ["", *cells]]
        said = [_wrapped(line) for line in (*_verdict_lines(found, task, split), *_calibration_lines(rows))]
        blocks.append("\n".join([f"{_plain(task)} ({split}, n = {_sizes(rows)})", _aligned(lines), "", *said]))
    blocks += [_wrapped(f"{_plain(name)}: no data. {_plain(reason)}") for name, reason in found["absent"].items()]
    return "\n\n".join([*blocks, "\n".join(_wrapped(_plain(note)) for note in found["notes"])])


def markdown(found: Result) -> str:
    """Return the comparison as Markdown: ``mean ±sd [interval]`` of each task, and the verdicts."""
    parts = []
    for (task, split), rows in _by_task(found["results"]):
        columns = _columns(rows)
        header = ["method", "seeds", *(column.title for column in columns), "band %"]
        lines = [
            [row["method"], _seeds(row), *(_mean_sd(row, c, " ±{}", True) for c in columns), _null(row)] for row in rows
        ]
        said = (*_verdict_lines(found, task, split), *_calibration_lines(rows))
        listed = "\n".join(f"* {_md(line)}" for line in said)
        parts += [f"**{_md(task)}** ({split}, n = {_sizes(rows)})", _md_table(header, lines, 1), listed]
    parts += [f"**{_md(name)}**: no data. {_md(reason)}" for name, reason in found["absent"].items()]
    return "\n\n".join([*parts, *_uses(found), *map(_md, found["notes"])]) + "\n"


def _uses(found: Result) -> Iterator[str]:
    """Yield Markdown tables of what uncertainties are good for, where there are any."""
    shifted = [row for row in found["shift_detection"] if row["auroc"] is not None]
    if shifted:
        yield (
            f"**Telling shifted questions from {_md(found['in_distribution'])}**: AUROC of each score; length and "
            "unseen (the share of tokens that the training has not) need no model: what the others have to beat"
        )
        scores = list(dict.fromkeys(row["score"] for row in shifted))
        by_run: dict[tuple[str, str], dict[str, str]] = {}
        for row in shifted:
            shown = by_run.setdefault((row["shifted"], row["method"]), {})
            shown[row["score"]] = _ranged(row["auroc"], row["interval"])
        lines = [[*names, *(each.get(score, "-") for score in scores)] for names, each in by_run.items()]
        yield _md_table(["shifted", "method", *(score.replace("_", " ") for score in scores)], lines, 2)
    if found["feu_usefulness"]:
        yield (
            "**What FEU says of correctness**: its AUROC beside the confidence's, with answers exchanged, and without "
            "the calibration loss; p of the likelihood-ratio test that it adds nothing to the confidence"
        )
        header = ["task", "method", "FEU AUROC", "confidence", "exchanged", "without the loss", "p of no added value"]
        lines = []
        for row in found["feu_usefulness"]:
            others = (row["max_probability_auroc"], row["shuffled_auroc"], row["beta_zero_feu_auroc"])
            p = row["added_value"]["p"]
            numbers = [_ranged(row["feu_auroc"], row["interval"]), *(_known(value) for value in (*others, p))]
            lines.append([row["task"], row["method"], *numbers])
        yield _md_table(header, lines, 2)


def _ranged(value: float | None, ends: Sequence[float] | None) -> str:
    return _known(value) + (f" [{decimals(ends[0])}, {decimals(ends[1])}]" if ends else "")


def _known(value: float | None) -> str:
    return "-" if value is None else decimals(value)


def differences_markdown(found: Result) -> str:
    """Return every difference from the baseline as Markdown: interval, p-values, and the spreads that it comes from."""
    parts = []
    header = ["method", "baseline", "metric", "difference", "interval", "p", "p (Holm)", "seed sd", "item sd"]
    for (task, split), rows in _by_task(found["differences"]):
        lines = []
        for row in rows:
            show = percent if row["metric"] in ("accuracy", "ece") else decimals
            ends = f"[{show(row['interval'][0])}, {show(row['interval'][1])}]"
            p = [f"{row[key]:.3f}" for key in ("p", "p_holm")]
            spread = ["-" if row[key] is None else show(row[key]) for key in ("seed_sd", "item_sd")]
            unit = " %" if show is percent else ""
            name = [row["method"], row["baseline"], f"{TITLES[row['metric']]}{unit}, {row['better']} is better"]
            lines.append([*name, show(row["difference"]), ends, *p, *spread])
        seeds = ", ".join(sorted({str(len(row["seeds"])) for row in rows}))
        parts += [f"**{_md(task)}** ({split}, n = {rows[0]['n']:,}, {seeds} paired seeds)", _md_table(header, lines, 3)]
    return "\n\n".join([*parts, *map(_md, found["notes"])]) + "\n"


def latex(found: Result) -> str:
    """Return the comparison in the paper's layout: methods as rows, tasks as columns, a block per metric.

    Deviations over seeds are subscripts; the table needs the package booktabs.
    """
    results = found["results"]
    tasks = list(dict.fromkeys((row["task"], row["split"]) for row in results))
    methods = list(dict.fromkeys(row["method"] for row in results))
    by_name = {(row["task"], row["split"], row["method"]): row for row in results}
    lines = [f"% {_plain(note)}" for note in found["notes"]]
    lines += [f"% no data: {_plain(name)}: {_plain(reason)}" for name, reason in found["absent"].items()]
    lines += [f"% {_plain(task)}: {split}, n = {_sizes(rows, 'd')}" for (task, split), rows in _by_task(results)]
    heads = " & ".join(["Metrics", "Methods", *(_tex(task) for task, _ in tasks)])
    lines += [rf"\begin{{tabular}}{{ll{'c' * len(tasks)}}}", r"\toprule", rf"{heads} \\"]
    for column in (column for key in BLOCKS for column in COLUMNS if column.key == key):
        arrow = {"higher": r" $\uparrow$", "lower": r" $\downarrow$"}.get(column.better, "")
        lines.append(r"\midrule")
        for number, method in enumerate(methods):
            shown = [by_name.get((*key, method)) for key in tasks]
            cells = ["--" if row is None else _tex_number(_mean_sd(row, column, "_{{{}}}"), row) for row in shown]
            title = f"{BLOCKS[column.key]}{arrow}" if number == 0 else ""
            lines.append(" & ".join([title, _tex(method), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv_table(found: Result) -> str:
    """Return every number, unrounded: one line per task, method and metric."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["task", "split", "method", "metric", "mean", "sd", "item_sd", "low", "high", "n", "seeds", "seeds_wanted"]
    )
    for row in found["results"]:
        for metric in METRICS:
            if (mean := row.get(metric.name)) is not None:
                ends = row["intervals"].get(metric.name) or (None, None)
                spread = [row["sd"].get(metric.name), row["item_sd"].get(metric.name)]
                facts = [row["n"], len(row["seeds"]), row["seeds_wanted"]]
                names = [_formula_free(row[key]) for key in ("task", "split", "method")]
                _write(writer, [*names, metric.name, mean, *spread, *ends, *facts])
    for name in found["absent"]:
        writer.writerow([_formula_free(name), "", "", "no data"])
    return buffer.getvalue()


def differences_csv(found: Result) -> str:
    """Return every difference, unrounded: one line per task, method and metric."""
    keys = ["task", "split", "method", "baseline", "metric", "better", "difference", "low", "high", "p", "p_holm"]
    keys += ["seed_sd", "item_sd", "clt_se", "clustered_se", "seeds", "n", "interval_kind"]
    names = {"task", "split", "method", "baseline"}
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(keys)
    for row in found["differences"]:
        low, high = row["interval"]
        plain = {**row, "low": low, "high": high, "seeds": " ".join(map(str, row["seeds"]))}
        _write(writer, [_formula_free(plain[key]) if key in names else plain.get(key) for key in keys])
    return buffer.getvalue()


def cost_table(rows: Sequence[Result]) -> str:
    """Return what each method costs, for a terminal."""
    lines = [["method", "passes", "trainable", "extra memory MB", "fit seconds", "evaluation seconds"]]
    for row in rows:
        extra = "-" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 1e6:.1f}"
        spent = ["-" if row[key] is None else f"{row[key]:.1f}" for key in ("fit_seconds", "evaluation_seconds")]
        cells = [str(row["passes"]), f"{row['trainable_parameters']:,}", extra, *spent]
        name = _plain(row["method"])
        lines += [[name, *cells]] if len(name) <= LONG else [[name], ["", *cells]]
    return _aligned(lines)


def _verdict_lines(found: Result, task: str, split: str) -> Iterator[str]:
    """Yield the verdict on each method of a task."""
    for row in found["verdicts"]:
        if (row["task"], row["split"]) == (task, split):
            method, baseline, reason = (_plain(row[key]) for key in ("method", "baseline", "reason"))
            yield f"{method} against {baseline}: {row['verdict']}. {reason[0].upper()}{reason[1:]}"


def _calibration_lines(rows: Sequence[Result]) -> Iterator[str]:
    """Yield which methods' ECE lies within what a perfectly calibrated model shows."""
    inside = [_plain(row["method"]) for row in rows if row["calibrated"]]
    yield f"not distinguishable from calibrated (ECE within its band): {', '.join(inside) or 'none'}"


def _by_task(rows: Sequence[Result]) -> Iterator[tuple[tuple[str, str], list[Result]]]:
    for key in dict.fromkeys((row["task"], row["split"]) for row in rows):
        yield key, [row for row in rows if (row["task"], row["split"]) == key]


def _sizes(rows: Sequence[Result], form: str = ",") -> str:
    """Print how many questions the methods answered: one number in a comparison, not always in a report of files."""
    return " and ".join(format(n, form) for n in sorted({row["n"] for row in rows}))


def _columns(rows: Sequence[Result]) -> list[Column]:
    columns = [column for column in COLUMNS if any(row.get(column.key) is not None for row in rows)]
    has_feu = any(row.get("feu_auroc") is not None for row in rows)
    return [*columns, *([Column("FEU AUROC", "feu_auroc", decimals, "higher")] if has_feu else [])]


def _mean_sd(row: Result, column: Column, deviation: str, interval: bool = False) -> str:
    value = row.get(column.key)
    if value is None:
        return "-"
    text = column.show(value)
    if (sd := row["sd"].get(column.key)) is not None:
        text += deviation.format(column.show(sd))
    if interval and (ends := row["intervals"].get(column.key)):
        text += f" [{column.show(ends[0])}, {column.show(ends[1])}]"
    return text


def _seeds(row: Result) -> str:
    """Print the number of seeds; of a partial result also how many were wanted."""
    there, wanted = len(row["seeds"]), row["seeds_wanted"]
    return str(there) if there == wanted else f"{there}/{wanted}"


def _null(row: Result) -> str:
    return f"{percent(row['ece_null']['low'])}-{percent(row['ece_null']['high'])}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Align columns; a line of one cell takes no part in it."""
    full = [line for line in lines if len(line) > 1]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    rows = [
        line[0]
        if len(line) == 1
        else "  ".join(
            f"{c:<{w}}" if k == 0 else f"{c:>{w}}" for k, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([rows[0].rstrip(), "-" * len(rows[0]), *(row.rstrip() for row in rows[1:])])


def _wrapped(line: str) -> str:
    """Break a line for the terminal, but never inside a word."""
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _plain(text: str) -> str:
    """Drop line breaks and control characters, which could rewrite a terminal or end a comment."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def _md(text: str) -> str:
    """Escape what Markdown or html would read as more than text.

    >>> _md("a|b_c<i>")
    'a\\\\|b\\\\_c&lt;i>'
    """
    escaped = "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in _plain(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def _md_table(header: Sequence[str], lines: Sequence[Sequence[str]], names: int) -> str:
    """Return a Markdown table; the first cells of a line are names, which are escaped."""
    rows = [[*map(_md, line[:names]), *line[names:]] for line in lines]
    ruler = ["---" if k < names else "---:" for k in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ruler, *rows))


_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _tex(text: str) -> str:
    """Escape a text for LaTeX.

    >>> _tex("top_k 50%")
    'top\\\\_k 50\\\\%'
    """
    return "".join(_TEX.get(character, character) for character in _plain(text))


def _tex_number(text: str, row: Result) -> str:
    """Set a number; one that not all seeds are in says how many are."""
    partial = "" if len(row["seeds"]) == row["seeds_wanted"] else f" ({_seeds(row)})"
    return "--" if text == "-" else f"${text}${partial}"


def _write(writer: Any, line: Sequence[Any]) -> None:
    writer.writerow(["" if cell is None else cell for cell in line])


def _formula_free(value: Any) -> str:
    """Quote text that a spreadsheet would run as a formula."""
    text = _plain(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
