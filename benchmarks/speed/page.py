"""The page of results: every target beside what was measured, then the tables. Every number is from the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.tables import SECTIONS, prose
from benchmarks.speed.targets import (
    MEMORY,
    MEMORY_ARMS,
    STEP,
    in_cells,
    memory_cases,
    memory_targets,
    peak,
    shapes,
    targets,
)

MIXTURES = ("ffn_block", "per_linear")
WHAT = (
    "What a mixture of LoRA experts costs. Written by `python -m benchmarks.speed` (`make bench`) from `{source}`; "
    "every run measures all arms beside each other, on the same base weights and batch. The command is below the "
    "tables of each part."
)
ARMS = (
    "Arms: PEFT's LoRA (r16, r80, and the rank with as many parameters as `per_linear`), our mixture of 8 experts of "
    "rank 16, top 2, with all three losses of Eq. 11 (`ffn_block`: one router per FFN; `per_linear`: one per linear), "
    "the public reference's way (a loop over experts that selects rows, base down projection per expert) and the base "
    "alone. Dropout 0.05 where nothing else is said, {precision}, AdamW, random weights; blocks of one or two whole "
    "decoder layers are named by their width, whole models by their size."
)
RATIOS = (
    "A ratio is the median over rounds of a ratio within a round; a round runs all arms in order and in reverse "
    "(A B B A). In brackets: two order statistics between which the median lies with a confidence of 95 % or more; of "
    "fewer than 6 rounds, their range. *CPU* is the process CPU time of all threads; neighbours on the machine disturb "
    "it less than wall time, least of all with one thread."
)

TARGETS = """## Targets

{counts}

| what | target | measured, wall | CPU | verdict |
|---|---|---|---|---|"""

OF_VERDICTS = (
    "*met* and *missed*: the whole interval of wall time lies on that side of the goal; *not resolved*: it holds the "
    "goal, or there were fewer than 6 rounds, so that they say neither. Flat and linear are read as: no more than a "
    "tenth above the curve's point of reference."
)

MEMORY_HEAD = """
Peak memory of a training step over LoRA r80, target {goal} in every case; exact, for one router. A {device} takes the
{way} way; only its figures count above.

| case | layers | dropout | checkpointing | {arms} |
|---|---|---|---|{lines}"""

ON_CPU = (
    "What a GPU takes (step time at Llama-2-7B's sizes, bfloat16, 16 x 512 tokens, and its targets) is on a page of "
    "its own, [speed-gpu.md](speed-gpu.md), which `python -m benchmarks.speed --size gpu` writes."
)
NO_GPU_PARTS = ("command_line", "floor")  # which have nothing to do with a GPU
DENSE = (
    "A GPU takes the `dense` way, a CPU the `sorted` one (`uq4ct/adapters/slots.py`); tests hold both to the plain "
    "formula."
)
NOT_DONE = (
    "Not done: members or samples of an ensemble on a shared prefix, or of several questions in one batch, which was "
    "no faster at width 512; the letters' rows of the vocabulary alone; a fused GPU kernel (Triton) for router, "
    "bottleneck and gating. Gradient checkpointing makes a whole layer again: PyTorch's selective checkpointing, "
    "asked to keep what router and bottleneck give, took no less time (`docs/log.md`)."
)


def write_page(results: Mapping[str, Any], path: Path) -> None:
    """Write the page of the parts that were measured; all of them are of one device."""
    run = next(iter(results.values()))["run"]
    device, precision = run["device"], run["precision"]
    title = "Speed" if device == "cpu" else f"Speed on a GPU: {run['machine']}"
    head = [WHAT.format(source=path.with_suffix(".json").name), ARMS.format(precision=precision), RATIOS]
    if said := " ".join(in_short(results)):
        head.append(f"In short: {said.removesuffix(';')}.")
    parts = [f"# {title}\n", *(prose(text) + "\n" for text in head), "\n".join(_targets(results, device)) + "\n"]
    for part, tables in SECTIONS.items():
        if part in results:
            parts.append("\n".join(tables(results[part])) + "\n\n" + _how(results[part]["run"]))
    path.write_text("\n".join([*parts, _left_open(results, device)]))


def in_short(results: Mapping[str, Any]) -> Iterator[str]:
    """Say what was found in a few sentences, from the best to the worst case of each figure."""
    steps = [found["against lora r80"] for _, found in shapes(results, "training_step")]
    if steps:
        names = ", ".join(name for name, _ in shapes(results, "training_step"))
        spans = [f"{_span(step[arm]['wall'][0] for step in steps)} with `{arm}`" for arm in MIXTURES]
        yield f"a training step takes {' and '.join(spans)} times as long as with LoRA r80 ({names});"
    cases = memory_cases(results)
    if cases:
        spans = [f"{_span(peak(case, arm) for case in cases)} with `{arm}`" for arm in MIXTURES]
        yield f"its peak memory is {' and '.join(spans)} times that of LoRA r80 ({len(cases)} cases);"
    answers = [found["against base"] for _, found in shapes(results, "latency")]
    if answers:
        spans = [f"{_span(answer[arm]['wall'][0] for answer in answers)} with `{arm}`" for arm in MIXTURES]
        yield f"one answer takes {' and '.join(spans)} times as long as from the base alone;"
    for kind, name in (("letters", "letter"), ("options", "text of the options")):
        if "scoring" in results:
            found = results["scoring"][kind]["times as fast as"]
            each, grouped = (f"{found[arm]['wall'][0]:.2f}" for arm in ("per choice", "per choice, grouped"))
            yield f"scoring by {name} is {each} times as fast as a pass per choice, {grouped} as grouped passes;"


def _span(values: Iterable[float]) -> str:
    low, *_, high = sorted([*values] * 2)
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def _targets(results: Mapping[str, Any], device: str) -> Iterator[str]:
    judged, memory = targets(results, device), memory_targets(results)
    verdicts = [target.verdict for target in judged if target.verdict]
    taken = [arm for arm in MEMORY_ARMS if device != "cpu" or not arm.endswith("dense")]  # a CPU does not go that way
    verdicts += [by_arm[arm] for _, by_arm in memory for arm in taken]
    counts = Counter(verdicts)
    shown = ", ".join(f"{counts[each]} {each}" for each in ("met", "missed", "not resolved"))
    yield TARGETS.format(counts=prose(f"Of {len(verdicts)} targets: {shown}. {OF_VERDICTS}"))
    for target in judged:
        yield f"| {' | '.join(target)} |"
    if memory:
        yield from _of_memory(memory, device)


def _of_memory(memory: Sequence[tuple[dict[str, Any], dict[str, str]]], device: str) -> Iterator[str]:
    named, way = ("CPU", "`sorted`") if device == "cpu" else ("GPU", "`dense`")
    arms, lines = " | ".join(MEMORY_ARMS), "---|" * len(MEMORY_ARMS)
    yield MEMORY_HEAD.format(goal=MEMORY, device=named, way=way, arms=arms, lines=lines)
    for case, by_arm in memory:
        cells = [f"{peak(case, arm):.3f} {verdict}" for arm, verdict in by_arm.items()]
        yield f"| {in_cells(case)} | {' | '.join(cells)} |"


def _left_open(results: Mapping[str, Any], device: str) -> str:
    points = [DENSE + _of_dense(results), NOT_DONE]
    points.insert(0, ON_CPU + _of_the_model(results) if device == "cpu" else _not_measured(results))
    return "\n".join(["## Not measured, not done\n", *(prose(point, "* ") for point in points)]) + "\n"


def _not_measured(results: Mapping[str, Any]) -> str:
    """Say which parts a page of a GPU does not have."""
    missing = [f"`{part}`" for part in SECTIONS if part not in results and part not in NO_GPU_PARTS]
    return f"Not measured: {', '.join(missing)} (`--only`)." if missing else "Every part was measured."


def _of_dense(results: Mapping[str, Any]) -> str:
    """Say what the memory of the way that a GPU takes was in the cases that were measured."""
    peaks = [peak(case, "ffn_block, dense") for case in memory_cases(results)]
    return f" The peak of `dense` is {min(peaks):.2f} to {max(peaks):.2f} of LoRA r80's here." if peaks else ""


def _of_the_model(results: Mapping[str, Any]) -> str:
    """Say what the counted operations and bytes let expect of the targets of a GPU."""
    said = [
        f"{value:.3f} for `{arm}`, {'within' if value <= STEP['cuda'][arm].value else 'above'} the target of "
        f"{STEP['cuda'][arm].value:.2f}"
        for arm, value in _modelled(results).items()
    ]
    model = " The model of operations and bytes above, counted and not timed, puts a step over that of LoRA r80 at "
    return f"{model}{'; at '.join(said)}." if said else ""


def _modelled(results: Mapping[str, Any]) -> dict[str, float]:
    if "floor" not in results:
        return {}
    arms = results["floor"]["arms"]
    return {arm: arms[arm]["over lora r80"]["seconds, modelled"] for arm in MIXTURES}


def _how(run: Mapping[str, Any]) -> str:
    versions = f"torch {run['torch']}, transformers {run['transformers']}, peft {run['peft']}"
    machine = f"{run['machine']}, {run['cores']} cores, load {run['load']} with this run, {run['threads']} thread(s)"
    return f"`{run['command']}`: {run['device']}, {run['precision']}, {machine}; {versions}; {run['seconds']} s.\n"
