"""Methods side by side over several seeds: means, deviations and intervals, and the tables that print them.

Read from the files of finished runs only. The interval of a mean is a two-level bootstrap: seeds are drawn, then
questions; one draw of questions serves every method and seed, because all of them answer the same ones.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uq4ct import predictions
from uq4ct.errors import UserError
from uq4ct.manifest import sha256
from uq4ct.metrics import Answers
from uq4ct.metrics.answers import Metric, Settings, Undefined
from uq4ct.metrics.intervals import bootstrap_weights, percentile, pivotal
from uq4ct.metrics.summary import METRICS
from uq4ct.report.tables import COLUMNS, Column, decimals, percent

Json = Mapping[str, Any]
Result = dict[str, Any]


class Scored(NamedTuple):
    """A finished run: its name in the tables, its seed, and its evaluations, folders below ``evaluations/``."""

    method: str
    seed: int
    folder: Path
    evaluations: tuple[str, ...]


def compare(scored: Sequence[Scored], seeds: int, settings: Settings | None = None) -> list[Result]:
    """Return one result per task and method, over its seeds, in the order in which tasks and methods are met.

    Each metric is the mean over seeds; ``sd`` holds its standard deviation over seeds (n - 1), null unless all
    ``seeds`` are there and more than one; ``intervals`` [low, high] at ``settings.level``; ``values`` those of the
    seeds. ``ece_null`` is averaged over seeds. A metric that is undefined for a seed is null, with the reason.
    Raises UserError where runs did not answer the same questions.
    """
    settings = settings or Settings()
    groups: dict[tuple[str, str], list[Scored]] = {}
    for task in dict.fromkeys(name for run in scored for name in run.evaluations):
        for run in scored:
            if task in run.evaluations:
                groups.setdefault((task, run.method), []).append(run)
    asked: dict[str, tuple[Path, tuple[Any, ...]]] = {}
    return [
        _over_seeds(task, method, runs, seeds, settings, asked.setdefault(task, _items(runs[0], task)))
        for (task, method), runs in groups.items()
    ]


def fingerprint(scored: Sequence[Scored], settings: Settings) -> str:
    """Return a text that changes with the runs, their evaluations or the settings: the same one, the same results."""
    parts = [
        [run.method, run.seed, name, sha256(run.folder / "evaluations" / name / "manifest.json")]
        for run in scored
        for name in run.evaluations
    ]
    return json.dumps([parts, settings.bins, settings.resamples, settings.seed, settings.level])


def costs(scored: Sequence[Scored]) -> list[Result]:
    """Return what each method costs: passes, trainable parameters and bytes beside the base, mean seconds over seeds.

    ``evaluation_seconds`` is null where another method's predictions served, as for a post-hoc calibration.
    """
    found: dict[str, list[Json]] = {}
    for run in scored:
        facts = json.loads((run.folder / "uq4ct.json").read_text(encoding="utf-8"))
        cell = json.loads((run.folder / "cell.json").read_text(encoding="utf-8"))
        found.setdefault(run.method, []).append(facts | {"evaluation_seconds": cell["evaluation_seconds"]})
    return [
        {
            "method": method,
            "passes": facts[0]["passes"],
            "trainable_parameters": facts[0]["trainable_parameters"],
            "extra_bytes": facts[0].get("extra_bytes"),
            "fit_seconds": float(np.mean([each["seconds"] for each in facts])),
            "evaluation_seconds": _mean_of_known([each["evaluation_seconds"] for each in facts]),
        }
        for method, facts in found.items()
    ]


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _items(run: Scored, task: str) -> tuple[Path, tuple[Any, ...]]:
    """Return the questions that a run answered, and where that is written."""
    path = run.folder / "evaluations" / task / "predictions.jsonl"
    return path, tuple((row["id"], row["label"]) for row in predictions.read(path))


def _over_seeds(
    task: str,
    method: str,
    runs: Sequence[Scored],
    seeds: int,
    settings: Settings,
    asked: tuple[Path, tuple[Any, ...]],
) -> Result:
    found: list[Json] = []
    answers: list[Answers] = []
    for run in runs:
        folder = run.folder / "evaluations" / task
        rows = predictions.read(folder / "predictions.jsonl")
        if tuple((row["id"], row["label"]) for row in rows) != asked[1]:
            raise UserError(f"{folder}: answers other questions than {asked[0].parent}; they cannot be compared")
        found.append(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
        answers.append(Answers.of_rows(rows))
    facts = {"task": found[0]["task"], "split": found[0]["split"], "method": method, "n": answers[0].n}
    given = {"seeds": [run.seed for run in runs], "seeds_wanted": seeds}
    return {**facts, **given, **over_seeds(found, answers, settings, whole=len(runs) == seeds > 1)}


def over_seeds(found: Sequence[Json], answers: Sequence[Answers], settings: Settings, whole: bool = True) -> Result:
    """Return means over seeds with deviation, interval and values, of results whose answers are to the same questions.

    ``sd`` is null unless ``whole``: a deviation over the seeds that happen to be there would mislead.
    """
    values: dict[str, list[Any]] = {metric.name: [result.get(metric.name) for result in found] for metric in METRICS}
    defined = [metric for metric in METRICS if None not in values[metric.name]]
    draws = _draws(answers, defined, settings)
    reasons = {key: reason for result in found for key, reason in (result.get("reasons") or {}).items()}
    return {
        **{metric.name: float(np.mean(values[metric.name])) if metric in defined else None for metric in METRICS},
        "sd": {metric.name: float(np.std(values[metric.name], ddof=1)) if whole else None for metric in defined},
        "intervals": {m.name: _interval(m, values[m.name], draws[m.name], settings.level) for m in defined},
        "values": values,
        "ece_null": {
            end: float(np.mean([result["ece_null"][end] for result in found])) for end in ("mean", "low", "high", "p95")
        },
        "reasons": reasons,
    }


def _draws(answers: Sequence[Answers], metrics: Sequence[Metric], settings: Settings) -> dict[str, np.ndarray]:
    """Return resampled means over seeds of each metric, (resample,)."""
    size, seeds = answers[0].n, len(answers)
    generator = np.random.default_rng([settings.seed, seeds])  # the same draw of seeds for every method
    chosen = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=settings.resamples) / seeds
    drawn: dict[str, list[np.ndarray]] = {metric.name: [] for metric in metrics}
    begin = 0
    for weights in bootstrap_weights(size, settings.resamples, settings.seed):
        share = chosen[begin : begin + len(weights)]
        begin += len(weights)
        for metric in metrics:
            by_seed = np.stack([_drawn(metric, each, settings, weights) for each in answers], axis=1)
            used = np.where(share > 0, by_seed, 0.0)  # a seed that is not drawn may be undefined
            drawn[metric.name].append((share * used).sum(axis=1))
    return {name: np.concatenate(parts) for name, parts in drawn.items()}


def _drawn(metric: Metric, answers: Answers, settings: Settings, weights: np.ndarray) -> np.ndarray:
    if metric.draws is None:  # accuracy, whose interval for one run has a formula
        return weights @ answers.correct / answers.n
    try:
        return metric.draws(answers, settings, weights)
    except Undefined:
        return np.full(len(weights), np.nan)


def _interval(metric: Metric, values: Sequence[float], draws: np.ndarray, level: float) -> list[float] | None:
    biased = metric.interval == "pivotal"
    ends = pivotal(float(np.mean(values)), draws, level) if biased else percentile(draws, level)
    return list(ends) if ends else None


def text_table(results: Sequence[Result], absent: Mapping[str, str], notes: Sequence[str]) -> str:
    """Return the comparison for a terminal: a block per task with ``mean ±sd`` of each metric, and the notes."""
    blocks = []
    for (task, split), rows in _by_task(results):
        lines = [["method", "seeds", *(column.title for column in _columns(rows)), "calibrated ECE %"]]
        lines += [
            [_plain(row["method"]), _seeds(row), *(_mean_sd(row, c, " ±{}") for c in _columns(rows)), _null(row)]
            for row in rows
        ]
        blocks.append(f"{_plain(task)} ({split}, n = {rows[0]['n']:,})\n{_aligned(lines)}")
    blocks += [f"{_plain(name)}: no data. {_plain(reason)}" for name, reason in absent.items()]
    return "\n\n".join([*blocks, "\n".join(map(_plain, notes))])


def markdown_table(results: Sequence[Result], absent: Mapping[str, str], notes: Sequence[str]) -> str:
    """Return the comparison as Markdown: ``mean ±sd [interval]``."""
    parts = []
    for (task, split), rows in _by_task(results):
        columns = _columns(rows)
        header = ["method", "seeds", *(column.title for column in columns), "calibrated ECE %"]
        lines = [
            [_md(row["method"]), _seeds(row), *(_mean_sd(row, c, " ±{}", True) for c in columns), _null(row)]
            for row in rows
        ]
        ruler = ["---" if number == 0 else "---:" for number in range(len(header))]
        body = "\n".join("| " + " | ".join(line) + " |" for line in (header, ruler, *lines))
        parts.append(f"**{_md(task)}** ({split}, n = {rows[0]['n']:,})\n\n{body}")
    parts += [f"**{_md(name)}**: no data. {_md(reason)}" for name, reason in absent.items()]
    return "\n\n".join([*parts, *map(_md, notes)]) + "\n"


def latex_table(results: Sequence[Result], absent: Mapping[str, str], notes: Sequence[str]) -> str:
    """Return the comparison as LaTeX, deviations as subscripts; needs booktabs."""
    columns = _columns(results)
    titles = " & ".join(["method", "seeds", *(_tex(column.title) for column in columns)])
    lines = [f"% {_plain(note)}" for note in notes]
    lines += [rf"\begin{{tabular}}{{l{'r' * (1 + len(columns))}}}", r"\toprule", rf"{titles} \\"]
    width = 2 + len(columns)
    for (task, split), rows in _by_task(results):
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{{_tex(task)} ({split}, $n = {rows[0]['n']}$)}} \\"]
        for row in rows:
            cells = [_tex(row["method"]), _seeds(row), *(_tex_number(_mean_sd(row, c, "_{{{}}}")) for c in columns)]
            lines.append(" & ".join(cells) + r" \\")
    lines += [rf"\midrule {_tex(name)} & \multicolumn{{{width - 1}}}{{l}}{{no data}} \\" for name in absent]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv_table(results: Sequence[Result], absent: Mapping[str, str]) -> str:
    """Return every number, unrounded: one line per task, method and metric."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["task", "split", "method", "metric", "mean", "sd", "low", "high", "n", "seeds", "seeds_wanted"])
    for row in results:
        for metric in METRICS:
            if (mean := row[metric.name]) is not None:
                ends = row["intervals"].get(metric.name) or (None, None)
                facts = [row["n"], len(row["seeds"]), row["seeds_wanted"]]
                names = [_formula_free(row[key]) for key in ("task", "split", "method")]
                line = [*names, metric.name, mean, row["sd"].get(metric.name), *ends, *facts]
                writer.writerow(["" if cell is None else cell for cell in line])
    for name in absent:
        writer.writerow([_formula_free(name), "", "", "no data"])
    return buffer.getvalue()


def cost_table(rows: Sequence[Result]) -> str:
    """Return what each method costs, for a terminal."""
    lines = [["method", "passes", "trainable parameters", "extra memory MB", "fit seconds", "evaluation seconds"]]
    for row in rows:
        extra = "-" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 1e6:.1f}"
        spent = ["-" if row[key] is None else f"{row[key]:.1f}" for key in ("fit_seconds", "evaluation_seconds")]
        lines.append([_plain(row["method"]), str(row["passes"]), f"{row['trainable_parameters']:,}", extra, *spent])
    return _aligned(lines)


def _by_task(results: Sequence[Result]) -> Iterator[tuple[tuple[str, str], list[Result]]]:
    for key in dict.fromkeys((row["task"], row["split"]) for row in results):
        yield key, [row for row in results if (row["task"], row["split"]) == key]


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
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        "  ".join(f"{c:<{w}}" if k == 0 else f"{c:>{w}}" for k, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    return "\n".join([rows[0].rstrip(), "-" * len(rows[0]), *(row.rstrip() for row in rows[1:])])


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


def _tex_number(text: str) -> str:
    return "--" if text == "-" else f"${text}$"


def _formula_free(value: Any) -> str:
    """Quote text that a spreadsheet would run as a formula."""
    text = _plain(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
