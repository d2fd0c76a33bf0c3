"""The sections of the page of results: the tables of each part and what is to be known about them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.speed.targets import CLOCKS, in_cells, interval, shapes


def prose(text: str, first: str = "") -> str:
    """Return a paragraph, or with ``first`` a point of a list, in lines of 120 characters."""
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text, 120, initial_indent=first, subsequent_indent=" " * len(first), **options)  # type: ignore[arg-type]


def _training(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Training step"
    for shape, one in shapes({"": found}, ""):
        size = f"{_number(one['layers'], 'layer')}, {one['rows']} x {one['tokens']} tokens, {one['rounds']} rounds"
        yield f"\n{shape}, {size}; over LoRA r80.\n"
        yield from _timed(one["against lora r80"])
        losses = f"With the two losses on routing and its record over without, {one['pairs']} rounds"
        said = f"{losses}: {_in_words(one['losses and record'])}."
        matched = one.get("per_linear over lora matched to per_linear")
        if matched:
            said += f" `per_linear` over LoRA of the matched rank {one['matched rank']}: {_in_words(matched)}."
        yield "\n" + prose(said)
    yield "\n*base* trains nothing: its gradients end at the outputs of the first q, k and v, as those of adapters do."


def _memory(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Memory of a training step"
    yield "\n" + prose(
        "MB, and over LoRA r80 in the same row. *Peak*: of the allocator in a step, gradients included; *kept*: what "
        "the graph keeps beside weights, each storage once. `dense` and `autograd` are other ways to compute the slots "
        "of `ffn_block` (`uq4ct/adapters/slots.py`). Gradient checkpointing makes everything in a layer again. All of "
        "one random router (seed 0): how evenly tokens fall on experts can move the peak of the `sorted` way."
    )
    arms = list(found["cases"][0]["arms"])
    for kind, name in (("allocated", "peak"), ("saved", "kept")):
        yield f"\n| {name} of | layers | dropout | checkpointing | {' | '.join(arms)} |"
        yield "|---" * (4 + len(arms)) + "|"
        for case in found["cases"]:
            cells = [f"{one[kind] / 1e6:.1f} ({one['over lora r80'][kind]:.2f})" for one in case["arms"].values()]
            yield f"| {in_cells(case)} | {' | '.join(cells)} |"


def _forward(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Forward pass in evaluation"
    for shape, one in shapes({"": found}, ""):
        yield f"\n{shape}, {one['rows']} x {one['tokens']} tokens, {one['rounds']} rounds; over the base.\n"
        yield from _timed(one["against base"])
        package = one["mixlora package against base"]
        if package:
            versions = ", ".join(f"{name} {version}" for name, version in package["versions"].items())
            how = f"{versions}; one layer of this width, {package['rounds']} rounds"
            yield "\n" + prose(f"The `mixlora` package ({how}) over its own base: {_in_words(package)}.")


def _curves(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Cost curves"
    rows, tokens = found["size"]
    size = f"{rows} x {tokens} tokens unless the curve says otherwise"
    yield "\n" + prose(
        f"Training step of `ffn_block`, one layer of {found['shape']}, {size}, {found['rounds']} rounds; over the "
        "point in bold. *kept*: MB that the graph keeps. Where a curve does not say `dense`, a CPU computes slots the "
        "`sorted` way from four experts on with at most half of them in use, else the `dense` way too; a GPU computes "
        "all `dense`."
    )
    for curve, one in found["curves"].items():
        yield f"\n| {curve} | wall | CPU | kept |\n|---|---|---|---|"
        for point, row in one["points"].items():
            name = f"**{point}**" if point == one["reference"] else point
            yield f"| {name} | {_both(row)} | {row['saved'] / 1e6:.1f} |"
        yield "\n" + _course(curve, one)


def _course(curve: str, found: Mapping[str, Any]) -> str:
    """Say in words how far a curve's points lie from its reference, for tokens and rows each one's own cost."""
    reference = found["reference"]
    points = found["points"]
    counted = curve in ("tokens", "rows")
    share = {point: int(point) / int(reference) if counted else 1.0 for point in points}
    time = [row["wall"][0] / share[point] for point, row in points.items()]
    kept = [row["saved"] / points[reference]["saved"] / share[point] for point, row in points.items()]
    what = f"for each of the {curve}" if counted else f"over the curve of {curve}"
    spans = [f"{min(values):.2f} to {max(values):.2f}" for values in (time, kept)]
    return prose(f"Time {what}: {spans[0]} times that at {reference}; kept memory: {spans[1]} times.")


def _compiled(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## torch.compile"
    size = f"{found['rows']} x {found['tokens']} tokens, {found['rounds']} rounds"
    how = f"one layer of {found['shape']} on cross entropy, {size}; over LoRA r80 as it is"
    yield "\n" + prose(f"Training step of {how}. The time to compile is left out.") + "\n"
    yield from _timed(found["against lora r80"])
    breaks = ", ".join(f"{arm} {number}" for arm, number in found["graph breaks"].items())
    yield "\n" + prose(
        f"Graph breaks in the whole model: {breaks}. Compiled, slots are computed by the plain formula (`autograd`); "
        "the hand-written gradients are not compiled."
    )


def _scoring(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Scoring"
    yield "\n" + prose(
        f"Mixture on {found['shape']}, {found['rows']} rows a batch, {found['rounds']} rounds. *per choice* runs every "
        "choice as a row of its own; *grouped*, as lm-evaluation-harness has it by default, choices that differ in "
        "their last token alone share a row, so that letters take one row a question. Ours computes the whole "
        "vocabulary at the answer position, not the letters' rows alone: the mass on the letters needs it."
    )
    for kind in ("letters", "options"):
        one = found[kind]
        yield f"\n| {kind}: {one['data']} | items per second | ours is so many times as fast: wall | CPU |"
        yield "|---|---|---|---|"
        for arm, speed in one["items per second"].items():
            yield f"| {arm} | {speed} | {_both(one['times as fast as'][arm]) if arm != 'ours' else '|'} |"


def _latency(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## One answer"
    for shape, one in shapes({"": found}, ""):
        yield f"\n{shape}, a prompt of {one['tokens']} tokens, {one['rounds']} rounds; over the base.\n"
        yield from _timed(one["against base"])


def _ensembles(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Samples and members"
    size = f"{found['shape']}, {found['rows']} x {found['tokens']} tokens, {found['rounds']} rounds"
    yield f"\n{size}; over a plain pass of LoRA r80.\n"
    yield from _timed(found["against a pass"])
    base, members = (found["bytes"][name] / 1e6 for name in ("base", "three members beside it"))
    yield "\n" + prose(
        f"Drawn over most likely experts: {_in_words(found['drawn over most likely experts'])}. The base takes "
        f"{base:.1f} MB once, three members of rank 80 beside it {members:.1f} MB. Samples and members of a single "
        "short question run as rows of one batch (`uq4ct/passes.py`), all others pass by pass; none share a prompt's "
        "prefix."
    )
    if cases := found.get("together"):
        yield from _together(cases)


def _together(cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "\n" + prose(
        "Ten samples of MC dropout (LoRA r80) and three members of an ensemble as rows of batches, over a pass for "
        "each:"
    )
    yield "\n| shape | rows x tokens | rounds | what | wall | CPU |\n|---|---|---|---|---|---|"
    for one in cases:
        case = f"{one['shape']} | {one['rows']} x {one['tokens']} | {one['rounds']}"
        for what, row in one["over passes"].items():
            yield f"| {case} | {what} | {_both(row)} |"


def _command_line(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Command line"
    yield f"\n`uq4ct --help`: median {found['seconds']} s, slowest {found['slowest']} s of {found['calls']} calls."


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
    "command_line": _command_line,
    "floor": _floor,
}


def _timed(rows: Mapping[str, Any]) -> Iterator[str]:
    yield "| arm | seconds | CPU seconds | wall | CPU |\n|---|---|---|---|---|"
    for arm, row in rows.items():
        yield f"| {arm} | {row['seconds']:.4f} | {row['cpu_seconds']:.4f} | {_both(row)} |"


def _both(row: Mapping[str, Sequence[float]]) -> str:
    return " | ".join(interval(row[clock]) for clock in CLOCKS)


def _in_words(row: Mapping[str, Sequence[float]]) -> str:
    return f"{interval(row['wall'])}, CPU {interval(row['cpu'])}"


def _number(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"
