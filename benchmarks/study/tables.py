"""What the pages say of a campaign: its results without the parts that no table needs, and the tables themselves.

A page holds ``<!-- bundled: results tiny -->`` and ``<!-- end -->``; what stands between is written from
``docs/study/bundled.json``. A table across campaigns names them all, with commas.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study import axes, scores, target
from benchmarks.study.figures import figures
from benchmarks.study.shown import interval, signed, spread
from uq4ct import tasks
from uq4ct.report.answered import Scored

Json = Mapping[str, Any]
METRICS = ("accuracy", "nll", "brier", "ece", "auroc", "augrc")
OF_FEU = "feu_ece"  # kept, with its interval, of the methods that have a FEU
_PLACE = re.compile(
    r"(<!-- (?P<campaigns>[\w,-]+): (?P<kind>\w+)(?P<args>[^>]*?) -->\n)(?:(?!<!-- ).)*(<!-- end -->)", re.DOTALL
)


def keep(results: Path, path: Path, campaign: Json | None = None) -> None:
    """Write what the tables need of a results.json, and what the campaign asks of target.py and scores.py."""
    found, campaign = json.loads(results.read_text(encoding="utf-8")), campaign or {}
    if unfinished := [cell for cell in found["cells"] if cell["status"] != "complete"]:
        print(f"{results}: {len(unfinished)} cells are not finished; what is written leaves them out", file=sys.stderr)
    finished = finished_cells(found, results.parent)
    for name in ("results", "differences", "verdicts", "feu_usefulness"):
        found[name] = [{**row, "task": _evaluation(row)} for row in found[name]]
    kept = {
        "machine": {name: found["machine"][name] for name in ("packages", "device")},
        "baseline": found["baseline"],
        "title": campaign.get("title"),
        "figure": campaign.get("figure"),
        "unfinished": unfinished,
        "results": [_shown(row) for row in found["results"]],
        "differences": [row for row in found["differences"] if row["metric"] in METRICS],
        **{name: found[name] for name in ("verdicts", "shift_detection", "feu_usefulness", "costs")},
        **(target.target_of(finished, campaign["target"]) if "target" in campaign else {}),
        "scores": scores.scores_of(finished, campaign["scores"]) if "scores" in campaign else [],
    }
    _write(path, kept)


def keep_together(campaigns: Sequence[Path], path: Path, asked: Json) -> None:
    """Write what the results.json of campaigns with different seeds say together on ``asked["target"]``."""
    founds = [(json.loads(results.read_text(encoding="utf-8")), results.parent) for results in campaigns]
    finished = [run for found, folder in founds for run in finished_cells(found, folder)]
    if len(named := {(run.method, run.seed) for run in finished}) < len(finished):
        raise ValueError(f"{', '.join(map(str, campaigns))}: {len(finished)} cells of {len(named)} methods and seeds")
    _write(path, {"of": asked["of"], **target.target_of(finished, asked["target"])})


def _write(path: Path, kept: Json) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [f"{json.dumps(name)}: {_one_row_per_line(value)}" for name, value in _rounded(kept).items()]
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def _shown(row: Json) -> dict[str, Any]:
    """Return what the tables need of one task and method."""
    own = ("task", "method", "passes", "n", "seeds", "feu", OF_FEU, "ece_null", *METRICS)
    return {
        **{name: row.get(name) for name in own},
        "intervals": {name: row["intervals"].get(name) for name in (*METRICS, OF_FEU)},
        "by_seed": {name: row["values"].get(name) for name in (*METRICS, "feu")},
    }


def finished_cells(found: Json, folder: Path) -> list[Scored]:
    """Return the finished cells that the results of a campaign name, in its folder, wherever that is now."""
    return [
        Scored(cell["method"], cell["seed"], folder / "cells" / Path(cell["folder"]).name, ())
        for cell in found["cells"]
        if cell["status"] == "complete"
    ]


def _evaluation(row: Json) -> str:
    """Return what the folder of an evaluation is called: the task, and its split where that is not the usual one.

    >>> _evaluation({"task": "arc_easy", "split": "validation"}), _evaluation({"task": "boolq", "split": "validation"})
    ('arc_easy.validation', 'boolq')
    """
    usual = tasks.get(row["task"]).evaluation_splits[0]
    return row["task"] if row["split"] == usual else f"{row['task']}.{row['split']}"


def write_tables(docs: Path) -> None:
    """Fill every place of every page whose campaign has results, and draw the figures."""
    for page in sorted([*docs.glob("*.md"), docs.parent / "README.md"]):
        before = page.read_text(encoding="utf-8")
        if len(_PLACE.findall(before)) != before.count("<!-- end -->"):
            raise ValueError(f"{page}: a table's place has no beginning or no end")
        after = _PLACE.sub(lambda place: _filled(place, docs / "study"), before)
        if after != before:
            page.write_text(after, encoding="utf-8")
        for name, text in figures_across(after, docs / "study"):
            (docs / "study" / name).write_text(text, encoding="utf-8")
    for results in sorted((docs / "study").glob("*.json")):
        for name, text in figures(results.stem, json.loads(results.read_text(encoding="utf-8"))):
            (docs / "study" / name).write_text(text, encoding="utf-8")


def _filled(place: re.Match[str], folder: Path) -> str:
    lines = table(place, folder)
    return place[0] if lines is None else place[1] + "\n" + "\n".join(lines) + "\n\n" + place[5]


def table(place: re.Match[str], folder: Path) -> list[str] | None:
    """Return the lines that belong into a place, of what is kept of its campaigns; None where nothing is kept."""
    founds = _founds(place, folder)
    if not founds:
        return None
    kind, args = place["kind"], place["args"].split()
    return list(ACROSS[kind](founds, args) if kind in ACROSS else KINDS[kind](*founds, args))


def figures_across(page: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and text of the SVG file that goes with every axis and grid, called after its first campaign."""
    for place in _PLACE.finditer(page):
        if place["kind"] in DRAWN and (founds := _founds(place, folder)):
            home, shifts, *methods = place["args"].split()
            shown = methods if place["kind"] == "axis" else methods[-1:]
            name = f"{place['campaigns'].split(',')[0]}-{place['kind']}.svg"
            yield name, axes.figure(founds, [home, shifts.split(",")[0], *shown])


def _founds(place: re.Match[str], folder: Path) -> list[Json]:
    paths = [path for name in place["campaigns"].split(",") if (path := folder / f"{name}.json").is_file()]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _results(found: Json, args: Sequence[str]) -> Iterator[str]:
    """Return all methods on one task; further words choose methods."""
    task, *chosen = args
    verdicts = {(row["task"], row["method"]): row["verdict"] for row in found["verdicts"]}
    rows = {row["method"]: row for row in found["results"] if row["task"] == task}
    titles = "accuracy % | NLL | Brier | ECE % | calibrated ECE % | AUROC | AUGRC"
    yield f"| method | passes | {titles} | against the baseline |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for method in chosen or sorted(rows, key=lambda name: ("+" in name, name)):
        row = rows[method]
        cells = (_cell(row, name, 100 if name in ("accuracy", "ece") else 1) for name in METRICS)
        accuracy, nll, brier, ece, auroc, augrc = cells
        verdict = "baseline" if method == found["baseline"] else verdicts.get((task, method), "-")
        shown = [accuracy, nll, brier, ece, _band(row["ece_null"]), auroc, augrc]
        yield f"| `{method}` | {row['passes']} | {' | '.join(shown)} | {verdict} |"


def _seeds(found: Json, args: Sequence[str]) -> Iterator[str]:
    """Return mean and standard deviation over seeds of two tasks for the methods named."""
    task, shifted, *methods = args
    rows = {(row["task"], row["method"]): row["by_seed"] for row in found["results"]}
    yield f"| method | accuracy % | ECE % | NLL | `{shifted}`: ECE % | NLL |"
    yield "|---|---|---|---|---|---|"
    for method in methods:
        own, other = rows[task, method], rows[shifted, method]
        cells = [spread(own["accuracy"], 100), spread(own["ece"], 100), spread(own["nll"], 1)]
        yield f"| {method} | {' | '.join([*cells, spread(other['ece'], 100), spread(other['nll'], 1)])} |"


def _differences(found: Json, args: Sequence[str]) -> Iterator[str]:
    """Return paired differences of one task from the baseline; further words choose methods."""
    task, *chosen = args
    rows = [row for row in found["differences"] if row["task"] == task]
    by_method = {(row["method"], row["metric"]): row for row in rows}
    yield "| method | against | accuracy, points | NLL | Brier | ECE, points | AUROC | AUGRC |"
    yield "|---|---|---|---|---|---|---|---|"
    for method in chosen or dict.fromkeys(row["method"] for row in rows):
        cells = []
        for metric in METRICS:
            percent = metric in ("accuracy", "ece")
            cells.append(signed(by_method[method, metric], 100 if percent else 1, 1 if percent else 3))
        yield f"| `{method}` | `{by_method[method, 'nll']['baseline']}` | {' | '.join(cells)} |"


def _costs(found: Json, args: Sequence[str]) -> Iterator[str]:
    """Return what every method without a suffix takes; the argument is the number of questions answered."""
    (questions,) = args
    answering = f"answering {questions} questions, s"
    yield f"| method | passes | trainable parameters | beside the base, MB | fit, s | {answering} |"
    yield "|---|---|---|---|---|---|"
    for row in sorted(found["costs"], key=lambda row: row["method"]):
        if "+" not in row["method"]:
            sizes = f"{row['trainable_parameters']:,} | {row['extra_bytes'] / 1e6:.1f}"
            seconds = f"{row['fit_seconds']:.0f} | {row['evaluation_seconds']:.0f}"
            yield f"| `{row['method']}` | {row['passes']} | {sizes} | {seconds} |"


def _shift(found: Json, args: Sequence[str]) -> Iterator[str]:
    """Return how well each score of ``method/score`` tells the questions of every shifted task."""
    rows = {(row["method"], row["score"], row["shifted"]): row for row in found["shift_detection"]}
    tasks = list(dict.fromkeys(row["shifted"] for row in found["shift_detection"]))
    yield f"| method | score | {' | '.join(tasks)} |"
    yield "|---|---|" + "---|" * len(tasks)
    for pair in args:
        method, score = pair.split("/")
        cells = (interval(rows[method, score, task]["auroc"], rows[method, score, task]["interval"]) for task in tasks)
        yield f"| `{method}` | {score.replace('_', ' ')} | {' | '.join(cells)} |"


def _feu(found: Json, args: Sequence[str]) -> Iterator[str]:
    """Return, for each method named, how near FEU is to the share of right answers, and what it says of each answer."""
    results = {(row["method"], row["task"]): row for row in found["results"]}
    heads = ["method", "task", "accuracy %", "mean FEU %", "ECE of FEU %", "AUROC of FEU", "of the confidence"]
    yield f"| {' | '.join(heads)} | p of what FEU adds |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in found["feu_usefulness"]:
        if row["method"] in args:
            own = results[row["method"], row["task"]]
            level = f"{100 * own['accuracy']:.1f} | {100 * own['feu']:.1f}"
            error = interval(100 * own[OF_FEU], [100 * end for end in own["intervals"][OF_FEU]], 1)
            auroc = interval(row["feu_auroc"], row["interval"])
            added = (row["added_value"] or {}).get("p")
            shown = "-" if added is None else f"{added:.2f}"
            yield (
                f"| `{row['method']}` | {row['task']} | {level} | {error} | {auroc} | "
                f"{row['max_probability_auroc']:.3f} | {shown} |"
            )


def _variants(found: Json, args: Sequence[str]) -> Iterator[str]:
    """Return what every method with FEU does, at home and under a shift, and how far its scaled answers are apart from
    the baseline's with the same suffix.
    """
    home, shifted = args
    rows = {(row["task"], row["method"]): row for row in found["results"]}
    apart = {(row["task"], row["method"]): row for row in found["differences"] if row["metric"] == "nll"}
    right = {(row["task"], row["method"]): row for row in found["feu_usefulness"]}
    unusual = {(row["shifted"], row["method"]): row for row in found["shift_detection"] if row["score"] == "feu"}
    yield (
        "| method | accuracy % | NLL | ECE % | NLL with a temperature | AUROC of FEU: right answers | shift | "
        "shift: NLL with `+familiarity` |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for method in dict.fromkeys(row["method"] for row in found["results"] if "+" not in row["method"]):
        if (home, method) not in right:
            continue
        own, knows, hears = rows[home, method], right[home, method], unusual[shifted, method]
        cells = [f"{100 * own['accuracy']:.1f}", f"{own['nll']:.3f}", f"{100 * own['ece']:.1f}"]
        for task, name in ((home, f"{method}+temperature"), (shifted, f"{method}+familiarity")):
            row = apart.get((task, name)) if method != found["baseline"] else None
            cells.append(f"{rows[task, name]['nll']:.3f}" + (f": {signed(row, 1, 3)}" if row else ""))
        measured = [interval(knows["feu_auroc"], knows["interval"]), interval(hears["auroc"], hears["interval"])]
        yield f"| `{method}` | {' | '.join([*cells[:4], *measured, cells[4]])} |"


DRAWN = {"axis": axes.table, "grid": axes.grid}  # of several campaigns, with a figure
ACROSS = {**DRAWN, "rivals": axes.rivals}
KINDS: dict[str, Callable[[Json, Sequence[str]], Iterator[str]]] = {
    "results": _results,
    "seeds": _seeds,
    "differences": _differences,
    "costs": _costs,
    "shift": _shift,
    "feu": _feu,
    "variants": _variants,
    "target": target.table,
    "beside": target.beside,
    "scores": scores.table,
}


def _cell(row: Json, metric: str, scale: float) -> str:
    value, ends = row[metric], row["intervals"][metric]
    if value is None:
        return "-"
    return interval(scale * value, ends and [scale * end for end in ends], 1 if scale == 100 else 3)


def _band(null: Json | None) -> str:
    if not null:
        return "-"
    return f"{100 * null['low']:.1f}-{100 * null['high']:.1f}"


def _one_row_per_line(value: Any) -> str:
    return "[" + ",\n".join(map(json.dumps, value)) + "]" if isinstance(value, list) else json.dumps(value)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
