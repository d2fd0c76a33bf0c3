"""A reproduced table as a Markdown page: ours, the paper's, and below them all that is needed to judge them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from uq4ct.experiments import Experiment
from uq4ct.experiments.layout import Block, Cell, Entries, blocks, markdown


def page(experiment: Experiment, entries: Entries, record: Mapping[str, Any]) -> str:
    """Return the page of a table from its record."""
    parts = [f"# {record['title']}"]
    for block in blocks(experiment, entries):
        parts += [f"**{block.title}**"] if block.title else []
        parts.append(markdown(block))
    parts.append(
        "ACC and ECE in per cent, mean_sd over the seeds (sample standard deviation), the best of a column in bold, in "
        f"the paper's numbers too. ECE with {_and(record['bins'])} bins of equal width."
    )
    parts += [f"**{record['remark']}.**"] if record["remark"] else []
    parts.append(markdown(_columns(record["columns"])))
    for title, lines in _sections(record):
        parts.append("\n".join([f"**{title}**", "", *(f"- {line}" for line in lines)]))
    return "\n\n".join(parts) + "\n"


def _columns(columns: list[dict[str, Any]]) -> Block:
    """Lay out what each column was trained and tested on, and that no question was lost."""
    header = (
        "Column",
        "trained on",
        "tested on",
        "training questions",
        "steps",
        "n scored",
        "rows in file",
        "official rows",
    )
    lines = []
    for column in columns:
        named = f"{column['title']} ({column['group']})" if column["group"] else column["title"]
        tested = f"{column['test']} {column['split']}" if column["split"] else column["test"]
        counts = [column["train_questions"], column["steps"], None, column["rows"], column["official"]]
        texts = ["-" if count is None else f"{count:,}" for count in counts]
        texts[2] = _and(f"{n:,}" for n in column["n"]) if column["n"] else "no data" if column["missing"] else "-"
        lines.append(tuple(map(Cell, (named, column["train"], tested, *texts))))
    return Block("", header, tuple(lines), labels=3)


def _sections(record: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield what stands below the table: a title and its lines; empty sections are left out."""
    yield (
        "How",
        [
            f"model {record['model']}, computed in {_and(record['dtypes'])}; preset {record['preset']}; budget "
            f"{record['budget']}; seeds {_and(record['seeds'])}",
            *(f"prompt pack {prompt}" for prompt in record["prompts"]),
            *record["settings"],
            f"forward passes per answer: {_passes(record['rows'])}",
            *record["machines"],
            f"{record['seconds']['cells']:,.0f} s in all cells, {record['seconds']['this_call']:,.0f} s in this call",
        ],
    )
    if missing := [f"{column['title']}: {column['missing']}" for column in record["columns"] if column["missing"]]:
        yield "No data", missing
    if failed := [_failure(cell) for cell in record["cells"] if cell["status"] != "complete"]:
        yield "Cells without a result", failed
    if record["deviations"]:
        yield "Unlike the paper", record["deviations"]
    yield "Where the paper leaves room (docs/decisions.md has all readings)", record["notes"]


def _passes(rows: list[dict[str, Any]]) -> str:
    counts = {row["passes"] for row in rows}
    return str(*counts) if len(counts) == 1 else _and(f"{row['title']} {row['passes']}" for row in rows)


def _failure(cell: Mapping[str, Any]) -> str:
    reason = f": {cell['message']}" if cell["message"] else ""
    return f"{cell['method']} on {cell['task']}, seed {cell['seed']}: {cell['status']}{reason}"


def _and(items: Any) -> str:
    return ", ".join(map(str, items)) or "-"
