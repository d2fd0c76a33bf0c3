"""Compare methods over seeds: plan the grid, run what has no result yet, and print what the files then say."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uq4ct import campaign, tasks
from uq4ct.campaign import MethodSpec, Outcome, Plan
from uq4ct.campaign.estimate import disk_bytes
from uq4ct.campaign.planning import Problems
from uq4ct.campaign.progress import duration, title
from uq4ct.concluding import baseline_of, write_results
from uq4ct.config import Layer, resolve
from uq4ct.data.files import SUFFIXES
from uq4ct.errors import UserError
from uq4ct.methods import parse
from uq4ct.protocols import Protocol, split_of
from uq4ct.runs import Say, to_stderr

Json = dict[str, Any]


def plan(
    methods: str,
    evaluate: Sequence[str],
    seeds: str,
    *,
    output: Path,
    held: Protocol,
    layers: Sequence[Layer],
    baseline: str | None = None,
    temperature: bool = True,
    engine: str = "local",
) -> Plan:
    """Lay out the comparison; raise UserError with every mistake of the call.

    With ``temperature`` every method without a suffix gets a ``+temperature`` row where the protocol has them.
    """
    source = str(resolve(layers).data.source)
    problems = Problems()
    with problems.caught():
        campaign.check_engine(engine)
    with problems.caught():
        refuse_foreign(output)
    with problems.caught():
        specs = campaign.parse_methods(methods, calibration=held.calibration > 0)
        refuse_options_of_some(specs, layers)
        if held.temperature and temperature:
            specs = with_temperature(specs, layers)
        baseline_of([spec.label for spec in specs], baseline)
    with problems.caught():
        numbers = parse_seeds(seeds)
    with problems.caught():
        sources = list(evaluate) or [evaluation_of(source)]
    problems.end()
    asked = [(each, split_of(each, held)) for each in sources]
    return campaign.plan(specs, source, numbers, asked, output=output, layers=layers)


def refuse_options_of_some(specs: Sequence[MethodSpec], layers: Sequence[Layer]) -> None:
    """Refuse options of ``method`` that not every method has, as layers speak to all; of a preset's each takes its own.

    Raises UserError with one sentence for each layer.

    >>> both = campaign.parse_methods("uq4ct,lora")
    >>> refuse_options_of_some(both, [Layer.of({"method": {"top_k": 3, "rank": 8}}, "run.yaml:2")])
    Traceback (most recent call last):
    uq4ct.errors.UserError: run.yaml:2: method: no option of lora: top_k; what is set here is set for all methods \
compared, so leave `method` out and write a method's own options in brackets, as in uq4ct[top_k=3]
    """
    kinds = {spec.label: parse(spec.layer.values["method"]["name"])[0] for spec in specs}
    problems = []
    for layer in layers:
        own = set(_own(layer))
        lacking = {label: own - kind.model_fields.keys() for label, kind in kinds.items()}
        if names := [name for name in _own(layer) if any(name in lacks for lacks in lacking.values())]:
            without = ", ".join(label for label, lacks in lacking.items() if lacks)
            place = layer.places[f"method.{names[0]}"]
            problems.append(
                f"{place}: method: no option of {without}: {', '.join(names)}; what is set here is set for all methods "
                "compared, so leave `method` out and write a method's own options in brackets, as in uq4ct[top_k=3]"
            )
    if problems:
        raise UserError(problems)


def _own(layer: Layer) -> list[str]:
    """Return the options of ``method`` in a layer that is no preset."""
    places = {name: layer.places[f"method.{name}"] for name in layer.values.get("method", {}) if name != "name"}
    return [name for name, place in places.items() if not place.startswith("preset ")]


def with_temperature(specs: Sequence[MethodSpec], layers: Sequence[Layer] = ()) -> list[MethodSpec]:
    """Put a temperature-scaled row behind each method that has no suffix and keeps a calibration split.

    >>> specs = campaign.parse_methods("lora,mixlora+vector,uq4ct[top_k=3],uq4ct[top_k=3]+temperature")
    >>> [spec.label for spec in with_temperature(specs)][:3]
    ['lora', 'lora+temperature', 'mixlora+vector']
    """
    asked = {spec.label for spec in specs}
    found: list[MethodSpec] = []
    for spec in specs:
        found.append(spec)
        label = f"{spec.label}+temperature"
        config = resolve([*layers, spec.layer])
        if config.method.posthoc is None and config.data.calibration_fraction and label not in asked:
            found += campaign.parse_methods(label)
    return found


def parse_seeds(text: str) -> list[int]:
    """Read seeds: whole numbers with commas between.

    >>> parse_seeds("1,2,3")
    [1, 2, 3]
    """
    parts = [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if not (part.isascii() and part.isdigit() and int(part) < 2**32)]:
        raise UserError(f"--seeds: expected whole numbers from 0 with commas between, as in 1,2,3, got '{wrong[0]}'")
    if len({int(part) for part in parts}) < len(parts):
        raise UserError(f"--seeds: {text}: a seed is named twice; name each once")
    return [int(part) for part in parts]


def evaluation_of(source: str) -> str:
    """Return where a training source is evaluated when nothing else is named: its own evaluation split.

    For a file it is the file called test, or validation, beside it. Raises UserError where there is none, and where
    it is what is trained on.
    """
    path = Path(source)
    if wanted := tasks.wanted(source):
        if wanted.split == wanted.task.evaluation_splits[0]:
            raise UserError(f"--eval-data: name the questions to evaluate on; {source} is trained on")
        return f"{wanted.task.name}@{wanted.revision}" if wanted.revision else wanted.task.name
    if not path.is_file():
        return source
    beside = [path.with_name(f"{name}{suffix}") for name in ("test", "validation") for suffix in SUFFIXES]
    for other in beside:
        if other.is_file() and other != path:
            return str(other)
    raise UserError(
        f"--eval-data: name the questions to evaluate on; {path} is trained on, and there is no test{path.suffix} or "
        f"validation{path.suffix} beside it"
    )


def describe(made: Plan, outcomes: Sequence[Outcome]) -> list[Json]:
    """Return the cells of a plan as plain values: what is done, and how long the rest will take."""
    estimates = campaign.estimate(made, outcomes)
    return [
        {
            "method": outcome.cell.method,
            "task": outcome.cell.task,
            "seed": outcome.cell.seed,
            "status": outcome.status,
            "seconds": estimates[outcome.cell.name].seconds,
            "passes": outcome.cell.config.method.passes,
            "basis": estimates[outcome.cell.name].basis,
            "folder": str(outcome.cell.folder),
            **({"message": outcome.message} if outcome.message else {}),
        }
        for outcome in outcomes
    ]


def plan_table(cells: Sequence[Json], made: Plan, outcomes: Sequence[Outcome]) -> str:
    """Return a plan for people: each cell, then time and disk in all, and what there is to say of it."""
    width = max(len(cell["method"]) for cell in cells)
    lines = [
        f"{c['method']:<{width}}  {c['task']}  seed {c['seed']:<3} {c['status']:<11} {duration(c['seconds']):>8} "
        f"({c['basis']}), {c['passes']} passes"
        for c in cells
    ]
    todo = [outcome.cell for outcome in outcomes if outcome.status not in ("complete", "diverged")]
    left = sum(cell["seconds"] for cell in cells if cell["status"] not in ("complete", "diverged"))
    lines.append(f"\n{len(todo)} of {len(cells)} cells to run: about {duration(left)} of work, divided by the workers")
    lines.append(f"disk: about {disk_bytes(made, todo) / 1e6:,.0f} MB while it runs")
    lines += [f"no data: {reason}" for reason in made.absent.values()]
    lines += [f"note: {note}" for note in made.notes]
    return "\n".join(lines)


def problems_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line for each cell without a result."""
    return [f"{title(o.cell)}: {o.status}: {o.message}" for o in outcomes if o.status != "complete"]


def refuse_foreign(output: Path) -> None:
    """Refuse a folder that holds anything but a campaign, and a place where none can be made."""
    if (output / "cells").is_dir():
        return
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"--output: {output} is not empty and holds no comparison; choose another folder")
    place = output
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(f"--output: {place} is a file, expected a folder")
    try:  # permissions alone do not tell: not for root, and not in /proc
        os.rmdir(tempfile.mkdtemp(dir=place, prefix=".uq4ct-"))
    except OSError as error:
        raise UserError(f"--output: {place}: no folder can be made there ({error.strerror}); choose another") from error


def run(
    made: Plan,
    output: Path,
    held: Protocol,
    *,
    engine: str,
    workers: int | None,
    gpus_per_cell: float | None,
    baseline: str | None = None,
    preset: str | None = None,
    say: Say = to_stderr,
) -> tuple[list[Outcome], Json]:
    """Run what has no result yet; return what became of every cell, and what was written to results.json.

    ``preset`` is the one that the plan's layers begin with, None for the protocol's own.
    """
    for note in (*made.notes, *made.absent.values()):
        say(f"note: {note}")
    outcomes = campaign.run_cells(
        made.cells, output, engine=engine, workers=workers, gpus_per_cell=gpus_per_cell, say=say
    )
    return outcomes, write_results(made, outcomes, held, output, baseline, preset=preset or held.preset)
