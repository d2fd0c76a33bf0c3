"""The page of results: every target beside what was measured, then the tables. Every number is from the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = """# Speed

What a mixture of LoRA experts costs. Written by `python -m benchmarks.speed` (`make bench`) from `{source}`; every
run measures all arms beside each other, on the same base weights and batch.

Arms: PEFT's LoRA (r16, r80, and the rank with as many parameters as `per_linear`), our mixture of 8 experts of rank 16,
top 2, with all three losses of Eq. 11 (`ffn_block`: one router per FFN; `per_linear`: one per linear), the public
reference's way (a loop over experts that selects rows, base down projection per expert) and the base alone. Dropout
0.05, float32, AdamW, random weights. A ratio is the median over rounds of a ratio within a round; a round runs all arms
in order and in reverse (A B B A); in brackets the 95 % bootstrap interval over rounds. *CPU* is process CPU time, which
neighbours on the machine disturb less than wall time.
"""

UNMEASURED = """## Not measured

* **No GPU was at hand.** The targets for a GPU (step time at Llama-2-7B's sizes, bfloat16, 16 x 512 tokens; twice as
  fast as the reference) are open; `python -m benchmarks.speed --size gpu` measures them. The table of operations and
  bytes is counted, not timed.
* `torch.compile` takes the plain formula (`autograd`); the hand-written gradients are not compiled.
* A GPU takes the `dense` way, a CPU the `sorted` one (`uq4ct/adapters/slots.py`); tests hold both to the plain formula.
"""


def write_page(results: Mapping[str, Any], path: Path) -> None:
    """Write the page of the parts that were measured."""
    parts = [HEAD.format(source=path.with_suffix(".json").name)]
    for part, tables in SECTIONS.items():
        if part in results:
            parts.append("\n".join(tables(results[part])) + "\n\n" + _how(part, results[part]))
    path.write_text("\n".join([parts[0], _targets(results), *parts[1:], UNMEASURED]))


def _targets(results: Mapping[str, Any]) -> str:
    lines = ["## Targets", "", "| what | target | measured, wall | CPU |", "|---|---|---|---|"]
    for shape, found in _shapes(results, "training_step"):
        own = found["against lora r80"]
        goal = "reported" if shape == "135M" else "<= 1.20"
        lines.append(f"| {shape}: step of `ffn_block` / LoRA r80 | {goal} | {_both(own['ffn_block'])} |")
        goal = "reported" if shape == "135M" else "<= 1.15"
        lines.append(f"| {shape}: step of `per_linear` / LoRA r80 | {goal} | {_both(own['per_linear'])} |")
        loop = found["reference loop over ffn_block"]
        lines.append(f"| {shape}: reference loop / `ffn_block` | >= 1.3 | {_both(loop)} |")
        lines.append(f"| {shape}: both extra losses and the record | <= 1.02 | {_both(found['losses and record'])} |")
    for case, found in _shapes(results, "memory"):
        for arm in ("ffn_block", "per_linear"):
            own = found["arms"][arm]["over lora r80"]
            shown = ", ".join(f"{name} {value:.2f}" for name, value in own.items())
            lines.append(f"| {case}: memory of `{arm}` / LoRA r80 | <= 1.10 | {shown} | exact |")
    for kind in ("letters", "options"):
        if kind in results.get("scoring", {}):
            own = results["scoring"][kind]["times as fast as"]
            goals = (">= 3", ">= 0.95") if kind == "letters" else ("reported", "reported")  # letters are the default
            for other, goal in zip(("per choice", "bare forward"), goals, strict=True):
                lines.append(f"| scoring, {kind}: ours / {other} | {goal} | {_both(own[other])} |")
    for shape, found in _shapes(results, "latency"):
        own = found["against base"]["ffn_block"]
        lines.append(f"| {shape}: one answer, `ffn_block` / base | <= 1.25 | {_both(own)} |")
    if "ensembles" in results:
        own = results["ensembles"]["against a pass"]["a pass of MC dropout"]
        lines.append(f"| pass of MC dropout / plain pass | reported | {_both(own)} |")
    if "command_line" in results:
        own = results["command_line"]
        slowest = f"slowest of {own['calls']}: {own['slowest']} s"
        lines.append(f"| `uq4ct --help` | <= 0.5 s | {own['seconds']} s, {slowest} | |")
    return "\n".join(lines) + "\n"


def _training(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Training step"
    for shape, one in _shapes({"": found}, ""):
        yield f"\n{shape}, {one['rows']} x {one['tokens']} tokens, {one['rounds']} rounds; over LoRA r80.\n"
        yield from _timed(one["against lora r80"])
        matched = _both(one["per_linear over matched lora"]).replace(" | ", ", CPU ")
        yield f"\n`per_linear` over LoRA of the matched rank {one['matched rank']}: {matched}."


def _memory(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Memory of a training step"
    yield "\nMB; *saved*: what the graph keeps beside weights, each storage once; *allocated*: peak of the allocator in"
    yield "a step, gradients included. `dense` and `autograd` are the other ways to compute the slots, see below."
    for case, one in _shapes({"": found}, ""):
        yield f"\n{case}, {one['rows']} x {one['tokens']} tokens.\n"
        kinds = ("saved", "allocated")
        yield f"| arm | {' | '.join(f'{kind} | / LoRA r80' for kind in kinds)} |"
        yield "|---|" + "---|" * 2 * len(kinds)
        for arm, numbers in one["arms"].items():
            over = numbers["over lora r80"]
            cells = [f"{numbers[kind] / 1e6:.1f} | {over[kind]:.2f}" for kind in kinds]
            yield f"| {arm} | {' | '.join(cells)} |"


def _forward(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Forward pass in evaluation"
    for shape, one in _shapes({"": found}, ""):
        yield f"\n{shape}, {one['rows']} x {one['tokens']} tokens, {one['rounds']} rounds; over the base.\n"
        yield from _timed(one["against base"])
        package = one["mixlora package against base"]
        if package:
            shown = _both(package).replace(" | ", ", CPU ")
            yield f"\nThe `mixlora` package (0.2.3, one layer of this width) over its own base: {shown}"
            yield f"({package['interval']})."


def _curves(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Cost curves"
    rows, tokens = found["size"]
    size = f"{rows} x {tokens} tokens unless the curve says otherwise"
    yield f"\nTraining step of `ffn_block`, one layer of {found['shape']}, {size}, {found['rounds']} rounds;"
    yield "over the point in bold. *saved*: MB that the graph keeps."
    for curve, one in found["curves"].items():
        yield f"\n| {curve} | wall | CPU | saved |\n|---|---|---|---|"
        for point, row in one["points"].items():
            name = f"**{point}**" if point == one["reference"] else point
            yield f"| {name} | {_both(row)} | {row['saved'] / 1e6:.1f} |"


def _compiled(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## torch.compile"
    size = f"{found['rows']} x {found['tokens']} tokens, {found['rounds']} rounds"
    yield f"\nTraining step of one layer of {found['shape']} on cross entropy, {size};"
    yield "over LoRA r80 as it is. The time to compile is left out.\n"
    yield from _timed(found["against lora r80"])
    breaks = ", ".join(f"{arm} {number}" for arm, number in found["graph breaks"].items())
    yield f"\nGraph breaks in the whole model: {breaks}."


def _scoring(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Scoring"
    yield f"\nMixture on {found['shape']}, {found['data']}, batch {found['batch']}, {found['rounds']} rounds."
    for kind in ("letters", "options"):
        one = found[kind]
        yield f"\n| {kind} | items per second | ours is so many times as fast: wall | CPU |\n|---|---|---|---|"
        for arm, speed in one["items per second"].items():
            yield f"| {arm} | {speed} | {_both(one['times as fast as'][arm]) if arm != 'ours' else '|'} |"


def _latency(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## One answer"
    for shape, one in _shapes({"": found}, ""):
        yield f"\n{shape}, a prompt of {one['tokens']} tokens, {one['rounds']} rounds; over the base.\n"
        yield from _timed(one["against base"])


def _ensembles(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Samples and members"
    size = f"{found['shape']}, {found['rows']} x {found['tokens']} tokens, {found['rounds']} rounds"
    yield f"\n{size}; over a plain pass of LoRA r80.\n"
    yield from _timed(found["against a pass"])
    drawn = _both(found["drawn over most likely experts"]).replace(" | ", ", CPU ")
    base, members = (found["bytes"][name] / 1e6 for name in ("base", "three members beside it"))
    yield f"\nDrawn over most likely experts: {drawn}."
    yield f"The base takes {base:.1f} MB once, three members of rank 80 beside it {members:.1f} MB."


def _floor(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Operations and bytes on a GPU, counted"
    size = f"{found['rows']} x {found['tokens']} tokens, {found['dtype']}, without dropout"
    yield f"\nForward and backward of one layer of {found['layer of']}, {size}, the `dense` way, every operator"
    yield "by itself; *modelled*: operations at 60 % of an H100's peak plus bytes at its bandwidth.\n"
    yield "| arm | TFLOP | GB | operations / LoRA r80 | bytes / LoRA r80 | modelled time / LoRA r80 |"
    yield "|---|---|---|---|---|---|"
    for arm, one in found["arms"].items():
        ratios = " | ".join(f"{value:.3f}" for value in one["over lora r80"].values())
        yield f"| {arm} | {one['operations'] / 1e12:.2f} | {one['bytes'] / 1e9:.1f} | {ratios} |"


SECTIONS = {
    "training_step": _training,
    "memory": _memory,
    "forward": _forward,
    "curves": _curves,
    "compiled": _compiled,
    "scoring": _scoring,
    "latency": _latency,
    "ensembles": _ensembles,
    "floor": _floor,
}


def _shapes(results: Mapping[str, Any], part: str) -> Iterator[tuple[str, Any]]:
    return ((name, found) for name, found in results.get(part, {}).items() if name != "run")


def _timed(rows: Mapping[str, Any]) -> Iterator[str]:
    yield "| arm | seconds | CPU seconds | wall | CPU |\n|---|---|---|---|---|"
    for arm, row in rows.items():
        yield f"| {arm} | {row['seconds']:.4f} | {row['cpu_seconds']:.4f} | {_both(row)} |"


def _both(row: Mapping[str, Sequence[float]]) -> str:
    return " | ".join(f"{row[c][0]:.3f} ({row[c][1]:.3f}-{row[c][2]:.3f})" for c in ("wall", "cpu"))


def _how(part: str, found: Mapping[str, Any]) -> str:
    run = found["run"]
    versions = f"torch {run['torch']}, transformers {run['transformers']}, peft {run['peft']}"
    machine = f"{run['machine']}, {run['cores']} cores, load {run['load']}, {run['threads']} thread(s)"
    command = f"`python -m benchmarks.speed --only {part} --size {run['size']}`"
    return f"{command}: {run['device']}, {machine}; {versions}; {run['seconds']} s.\n"
