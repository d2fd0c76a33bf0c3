"""From a request for a table to cells of a campaign: every mistake is found here, before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from uq4ct import campaign, comparing, experiments, tasks
from uq4ct.campaign.planning import Desk, Problems
from uq4ct.config import Layer, preset_layers
from uq4ct.data import DataConfig, NoData, QuestionSet
from uq4ct.data.files import read_rows
from uq4ct.errors import UserError, did_you_mean
from uq4ct.experiments import Column, Experiment
from uq4ct.methods.base import LoraMethod

SEEDS = {"full": (1, 2, 3), "smoke": (1, 2)}  # by budget; the paper has three runs


class Questions(NamedTuple):
    """What a column is trained and tested on, or the reason why there is nothing.

    ``rows`` counts the rows of the test split's files below a data root, before anything is read from them.
    """

    column: Column
    train: QuestionSet | None = None
    test: QuestionSet | None = None
    rows: int | None = None
    missing: str = ""


@dataclass(frozen=True)
class Request:
    """A table that is ready to run."""

    experiment: Experiment
    model: str
    preset: str
    budget: str
    seeds: tuple[int, ...]
    output: Path
    methods: dict[str, str]  # by row: the method that the budget runs
    columns: tuple[Questions, ...]
    plan: campaign.Plan
    deviations: tuple[str, ...]


def prepare(
    table: str,
    *,
    model: str | None,
    output: Path | None,
    root: str = "hub",
    preset: str = "paper",
    seeds: str | None = None,
    budget: str = "full",
    engine: str = "local",
) -> Request:
    """Check what was asked for and lay out the cells; nothing is written.

    Columns without data are kept, with the reason. Raises UserError with every mistake at once, and where no column has
    data.
    """
    problems = Problems()
    problems.add(*_mistakes(table, model, output, root, preset, budget, engine))
    numbers = SEEDS.get(budget, ())
    with problems.caught():
        numbers = SEEDS.get(budget, ()) if seeds is None else tuple(comparing.parse_seeds(seeds))
    if model is not None:
        with problems.caught():
            _outline(model)
    if output is not None:
        with problems.caught():
            comparing.refuse_foreign(output)
    problems.end()
    assert model is not None
    assert output is not None
    experiment = experiments.get(table)
    smoke = experiments.smoke() if budget == "smoke" else {"methods": {}, "train": {}}
    methods = {
        row: smoke["methods"].get(method.partition("[")[0], method) for row, method in experiment.methods.items()
    }
    desk = Desk()
    columns = tuple(_questions(column, root, desk) for column in experiment.columns)
    if all(each.missing for each in columns):
        raise UserError([each.missing for each in columns])
    common = [Layer.of({"model": {"name": model}, "data": {"root": root}, "train": smoke["train"]}, "reproduce")]
    if unknown := _targets_that_the_model_lacks(model, preset):
        common.append(Layer.of({"method": {"target_modules": None}}, f"preset {preset}"))
    plan = _plan(columns, methods.values(), numbers, output, preset, common, desk)
    deviations = tuple(_deviations(experiment, model, preset, numbers, columns, unknown))
    return Request(experiment, model, preset, budget, numbers, output, methods, columns, plan, deviations)


def _mistakes(
    table: str, model: str | None, output: Path | None, root: str, preset: str, budget: str, engine: str
) -> list[str]:
    """Return what is wrong with the flags, each by itself."""
    found: list[str] = []
    known = table in experiments.names()
    if not known:
        near = did_you_mean(table, experiments.names())
        found.append(f"reproduce: '{table}' is not one of {', '.join(experiments.names())}.{near}")
    if model is None:
        paper = f"; the paper's is {experiments.get(table).base}" if known else ""
        found.append(f"--model: name the base model, a hub id, a folder or tiny{paper}")
    if output is None:
        found.append("--output: name the folder for the table and its runs")
    if root != "hub" and not Path(root).is_dir():
        found.append(f"--data-root: no folder {root}; expected hub, or a folder laid out as <task>/<split>.jsonl")
    applicable = experiments.get(table).presets if known else ("paper", "bayesian-lora")
    if preset not in applicable:
        near = did_you_mean(preset, applicable)
        found.append(f"--preset: '{preset}' does not apply to {table}; expected {' or '.join(applicable)}.{near}")
    for flag, value, choices in (("--budget", budget, SEEDS), ("--engine", engine, campaign.ENGINES)):
        if value not in choices:
            found.append(f"{flag}: '{value}' is not one of {', '.join(choices)}.{did_you_mean(value, [*choices])}")
    return found


@cache
def _outline(model: str) -> Any:
    """Return the base model without its weights."""
    from uq4ct import backbone

    return backbone.outline(backbone.ModelConfig(name=model))


def _questions(column: Column, root: str, desk: Desk) -> Questions:
    """Read what a column is trained and tested on: the split that the paper tests on.

    Where the hub cannot give one of the data sets, its column has no data, and the others have theirs.
    """
    split = tasks.get(column.test).paper_split
    try:
        train = desk.questions(column.train, None, root, DataConfig(), True)
        test = desk.questions(column.test, split, root, DataConfig(), False)
    except NoData as error:
        return Questions(column, missing=str(error))
    except UserError as error:
        if root != "hub":
            raise
        return Questions(column, missing=str(error))
    return Questions(column, train, test, None if root == "hub" else _rows(column.test, split, Path(root)))


def _rows(task: str, split: str, root: Path) -> int:
    """Count the rows of a split's files, so that a question that was lost on the way shows."""
    return sum(len(read_rows(root / part.path)) for part in tasks.get(task).parts(split))


def _plan(
    columns: Sequence[Questions],
    methods: Collection[str],
    seeds: Sequence[int],
    output: Path,
    preset: str,
    common: Sequence[Layer],
    desk: Desk,
) -> campaign.Plan:
    """Lay out the cells: each method is trained once per training task and seed, and tested on all columns of it.

    A seed comes to its end before the next begins, so that an interrupted table has whole columns. Zero-shot, which no
    seed changes, runs once.
    """
    specs = [campaign.parse_methods(method)[0] for method in methods]
    whole = campaign.Plan((), {each.column.title: each.missing for each in columns if each.missing}, {})
    for train in dict.fromkeys(each.column.train for each in columns if not each.missing):
        tests = [(each.column.test, each.test.split) for each in columns if each.test and each.column.train == train]
        whole += campaign.plan(
            specs, train, seeds, tests, output=output, layers=[*preset_layers(preset, train), *common], desk=desk
        )
    cells = [cell for cell in whole.cells if cell.method != "zero_shot" or cell.seed == seeds[0]]
    return replace(whole, cells=tuple(sorted(cells, key=lambda cell: seeds.index(cell.seed))))


def _targets_that_the_model_lacks(model: str, preset: str) -> list[str]:
    """Return those of the linears that a preset adapts by name which this model's family calls otherwise."""
    wanted = LoraMethod.presets.get(preset, {}).get("target_modules") or ()
    names = {path.rpartition(".")[2] for path, _ in _outline(model).model.named_modules()}
    return [name for name in wanted if name not in names]


def _deviations(
    experiment: Experiment,
    model: str,
    preset: str,
    seeds: Sequence[int],
    columns: Sequence[Questions],
    lacking: Sequence[str],
) -> Iterator[str]:
    """Say what sets this table apart from the paper's, besides a smaller budget."""
    if Path(model).name.casefold() != Path(experiment.base).name.casefold():
        yield f"The base model is {model}, not {experiment.base_title}: numbers do not compare with the paper's."
    if len(seeds) != 3:
        yield f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}; the paper has 3 runs."
    if preset != "paper":
        yield (
            "The protocol is that of Laplace-LoRA and BLoB, not the paper's: other prompts, loss, rank, steps and "
            "schedule. They compute in 8 bits, we in the precision named above. They have no mixture: MixLoRA and "
            "UQ4CT have 8 experts of rank 8 on attention and FFN."
        )
    if lacking:
        yield f"The model has no module {', '.join(lacking)}: LoRA adapts attention and FFN, not query, value and head."
    for each in columns:
        if each.test and each.rows is not None and each.rows != len(each.test):
            yield (
                f"{each.column.title}: {len(each.test):,} of the {each.rows:,} rows are scored; the data set marks the "
                "others as not valid."
            )
        if each.test and each.column.rows not in (None, len(each.test)):
            yield f"{each.column.title}: {len(each.test):,} questions; the official split has {each.column.rows:,}."
