"""From methods, seeds and sources to cells: everything that can be a mistake is found here, before anything runs."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from uq4ct import data, tasks
from uq4ct.campaign.cells import Cell, placed
from uq4ct.campaign.specs import MethodSpec
from uq4ct.config import Config, Layer, resolve
from uq4ct.data import DataConfig, NoData, QuestionSet
from uq4ct.encoders import tokens_of, with_head
from uq4ct.errors import UserError
from uq4ct.types import Question

if TYPE_CHECKING:
    from uq4ct.backbone import Outline

Source = tuple[str, str | None]  # a task, file, folder or hub id; a split, or None for its default


class Size(NamedTuple):
    """What a cell has to compute, for an estimate of its time and disk."""

    steps: int
    questions: int  # to fit on
    question_tokens: float  # of one of them, on average
    training_tokens: float  # in all steps
    answer_tokens: float  # of the questions to answer, once each
    answers: int
    choices: float  # of a question to answer, on average
    calibration: int  # of these, the ones that are kept from training, which every fit answers for itself
    parameters: int  # of the base model
    trainable: int  # numbers in one adapter
    hidden: int


@dataclass(frozen=True)
class Plan:
    """Cells in the order in which they should run; ``absent`` sources have no data, and the reason why."""

    cells: tuple[Cell, ...]
    absent: Mapping[str, str]
    sizes: Mapping[str, Size]  # by the cell's name
    notes: tuple[str, ...] = ()

    def __add__(self, other: Plan) -> Plan:
        """Join two plans of one campaign; a cell that is in both is there once."""
        cells = {cell.name: cell for cell in (*self.cells, *other.cells)}
        notes = tuple(dict.fromkeys((*self.notes, *other.notes)))
        return Plan(tuple(cells.values()), {**self.absent, **other.absent}, {**self.sizes, **other.sizes}, notes)


def plan(
    methods: Sequence[MethodSpec],
    source: str,
    seeds: Sequence[int],
    evaluate: Sequence[Source],
    *,
    output: Path,
    layers: Sequence[Layer] = (),
    desk: Desk | None = None,
) -> Plan:
    """Lay out the cells of all methods and seeds on one training task, each evaluated on every source.

    ``layers`` are the options that all methods have in common; a method's own win over them. The base model is read
    without its weights, and what a ``desk`` has read for another plan not again. A source to evaluate on that is a
    known task without data is left out and told in ``absent``.
    Raises UserError with every mistake in options, questions, base model and prompts; NoData where there is nothing to
    train on.
    """
    problems = Problems()
    configs: dict[str, Config] = {}
    for spec in methods:
        with problems.caught():
            config = resolve([*layers, spec.layer, Layer.of({"data": {"source": source}}, "--data")])
            configs[spec.label] = _anywhere(config)
    if problems.found and not configs:
        problems.end()
    desk = desk or Desk()
    anyone = next(iter(configs.values()))
    training: QuestionSet | None = None
    with problems.caught():
        training = desk.training = desk.questions(anyone.data.source, None, anyone.data.root, _reading(anyone), True)
    sets, absent = _evaluation_sets(evaluate, anyone, desk, problems)
    for label, config in configs.items():
        with problems.caught():
            config.method.check(desk.outline(config).model)
        with problems.caught():
            if training is not None:
                parts = [desk.split(config, training, seed) for seed in seeds]
                reasons = config.method.unfit(*(min(map(len, part)) for part in zip(*parts, strict=True)))
                problems.add(*(f"--methods: '{label}': {reason}" for reason in reasons))
    problems.end()
    assert training is not None
    digests = {part.evaluation_name: part.sha256 for part in sets.values()}
    cells: list[Cell] = []
    sizes: dict[str, Size] = {}
    for seed in seeds:
        for label, config in configs.items():
            seeded = config.model_copy(update={"output": config.output.model_copy(update={"seed": seed})})
            bare = Cell(label, training.name, seed, seeded, tuple(sets))
            cell = placed(bare, output.resolve(), desk.outline(config).identity, training.sha256, digests)
            with problems.caught():
                sizes[cell.name] = _size(cell, training, list(sets.values()), desk)
            cells.append(cell)
    _refuse_twins(cells, problems)
    problems.end()
    small = dict.fromkeys(
        note
        for seed in seeds
        for note in data.calibration_notes(training, desk.split(anyone, training, seed)[1], config=anyone.data)
    )
    remarks = dict.fromkeys(
        f"{cell.method}: {note}" for cell in cells for note in cell.config.method.notes_on_steps(sizes[cell.name].steps)
    )
    overlaps = _overlaps(training, sets.values())
    notes = (*training.notes, *small, *overlaps, *_trained_differently(methods, configs), *remarks)
    return Plan(tuple(cells), absent, sizes, notes)


def _anywhere(config: Config) -> Config:
    """Name files and folders so that processes with another working directory find them."""
    places = {"source": _place(config.data.source)}
    if config.data.root != "hub":
        places["root"] = str(Path(config.data.root).resolve())
    model = config.model
    if model.name != "tiny" and Path(model.name).expanduser().is_dir():
        model = model.model_copy(update={"name": str(Path(model.name).expanduser().resolve())})
    return config.model_copy(update={"data": config.data.model_copy(update=places), "model": model})


def _place(source: str) -> str:
    here = source.strip() and not tasks.wanted(source) and Path(source).exists()  # Path("") is this very folder
    return str(Path(source).resolve()) if here else source


def _reading(config: Config) -> DataConfig:
    """Return how question files are read."""
    return DataConfig.model_validate(config.data.model_dump(include=set(DataConfig.model_fields)))


class Problems:
    """Mistakes that were found so far."""

    def __init__(self) -> None:
        self.found: dict[str, None] = {}
        self._no_data: list[NoData] = []

    def add(self, *problems: str) -> None:
        self.found |= dict.fromkeys(problems)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Note the UserError of the block and go on."""
        try:
            yield
        except UserError as error:
            if isinstance(error, NoData):
                self._no_data.append(error)
            self.add(*error.problems)

    def end(self) -> None:
        """Raise UserError with all that was found; NoData where that is all there is."""
        if len(self._no_data) == 1 and len(self.found) == len(self._no_data[0].problems):
            raise self._no_data[0]
        if self.found:
            raise UserError(list(self.found))


class Desk:
    """Read questions, base models and prompts once each, however many cells and plans have them in common."""

    def __init__(self) -> None:
        self.training: QuestionSet | None = None  # tells a classifier its classes
        self._outlines: dict[str, Outline] = {}
        self._questions: dict[tuple[str, str | None, str, str, bool], QuestionSet] = {}
        self._tokens: dict[tuple[str, str, str | None, bool], int] = {}
        self._trainable: dict[tuple[str, str], int] = {}
        self._splits: dict[tuple[str, float, int], tuple[tuple[Question, ...], tuple[Question, ...]]] = {}

    def questions(self, source: str, split: str | None, root: str, reading: DataConfig, training: bool) -> QuestionSet:
        """Read the questions of a source as a data section says."""
        reading = reading.model_copy(update={"calibration_fraction": 0.0})  # all of them
        place = root if root == "hub" else str(Path(root).resolve())
        key = (source, split, place, reading.model_dump_json(), training)
        if key not in self._questions:
            self._questions[key] = data.load(source, split=split, root=root, config=reading, training=training)
        return self._questions[key]

    def split(
        self, config: Config, training: QuestionSet, seed: int
    ) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
        """Return the questions to fit on and those kept for calibration."""
        key = (training.sha256, config.data.calibration_fraction, seed)
        if key not in self._splits:
            self._splits[key] = data.calibration_split(training, config=config.data, seed=seed)
        return self._splits[key]

    def outline(self, config: Config) -> Outline:
        """Return the base model without weights."""
        from uq4ct import backbone
        from uq4ct.sequences import classes_of

        key = config.model.model_dump_json() + json.dumps(config.data.choices)
        if key not in self._outlines:
            kind = backbone.kind(config.model, fixed_choices=config.data.choices is not None)
            classes: tuple[str, ...] = ()
            if kind == "classification":
                classes = classes_of(self.training.questions) if self.training else config.data.choices or ()
            self._outlines[key] = backbone.outline(config.model.model_copy(update={"kind": kind}), classes)
        return self._outlines[key]

    def tokens(self, config: Config, part: QuestionSet, training: bool) -> int:
        """Count the tokens of all questions. Raises UserError where one cannot be scored."""
        from uq4ct.sequences import encoder_for

        key = (config.model.model_dump_json() + config.prompt.model_dump_json(), part.path, part.split, training)
        if key not in self._tokens:
            encoder = encoder_for(self.outline(config), config.prompt)
            examples = encoder.encode_training(part.questions)[0] if training else encoder.encode_all(part.questions)
            self._tokens[key] = sum(map(tokens_of, examples))
        return self._tokens[key]

    def trainable(self, config: Config) -> int:
        """Count the numbers in one adapter of a method, 0 where it has none."""
        import peft

        key = (config.model.model_dump_json(), f"{config.method.name} {config.method.model_dump_json()}")
        if key not in self._trainable:
            model = self.outline(config).model
            try:
                adapter = config.method.adapter_config(model)
            except TypeError:
                adapter = None
            adapted = peft.get_peft_model(copy.deepcopy(model), with_head(adapter, model)) if adapter else None
            every = adapted.parameters() if adapted else ()
            self._trainable[key] = sum(each.numel() for each in every if each.requires_grad)
        return self._trainable[key]


def _evaluation_sets(
    evaluate: Sequence[Source], config: Config, desk: Desk, problems: Problems
) -> tuple[dict[Source, QuestionSet], dict[str, str]]:
    sets: dict[Source, QuestionSet] = {}
    absent: dict[str, str] = {}
    for source, split in dict.fromkeys((_place(source), split) for source, split in evaluate):
        with problems.caught():
            try:
                reading = _reading(config).for_others(desk.training.counted if desk.training else None)
                sets[source, split] = desk.questions(source, split, config.data.root, reading, False)
            except NoData as error:
                absent[source] = str(error)
    names = [part.evaluation_name for part in sets.values()]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.add(f"--eval-data: two sources are called '{name}'; rename one file or its folder")
    if not sets and not problems.found:
        problems.add(*(absent.values() or ["--eval-data: name at least one source to evaluate on"]))
    return sets, absent


def _size(cell: Cell, training: QuestionSet, sets: Sequence[QuestionSet], desk: Desk) -> Size:
    config = cell.config
    fit, calibration = desk.split(config, training, cell.seed)
    mean = desk.tokens(config, training, True) / len(training)
    trainable = desk.trainable(config)
    batch = config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps
    steps = config.train.steps(len(fit)) if trainable else 0
    answered = [*calibration, *(question for part in sets for question in part.questions)]
    base = desk.outline(config)
    return Size(
        steps=steps,
        questions=len(fit),
        question_tokens=mean,
        training_tokens=steps * batch * mean,
        answer_tokens=sum(desk.tokens(config, part, False) for part in sets) + len(calibration) * mean,
        answers=len(answered),
        choices=sum(len(question.choices) for question in answered) / len(answered),
        calibration=len(calibration),
        parameters=base.parameters,
        trainable=trainable,
        hidden=base.model.config.get_text_config().hidden_size,
    )


def _refuse_twins(cells: Sequence[Cell], problems: Problems) -> None:
    """Note methods that are written differently and mean the same."""
    first: dict[str, str] = {}
    for cell in cells:
        other = first.setdefault(cell.digest, cell.method)
        if other != cell.method:
            problems.add(f"--methods: '{other}' and '{cell.method}' are the same method; name it once")


def _trained_differently(methods: Sequence[MethodSpec], configs: Mapping[str, Config]) -> Iterator[str]:
    """Say which training options methods differ in unasked: a preset may know that some need another rate."""
    own = {spec.label: configs[spec.label].train.model_dump(mode="json") for spec in methods}
    for option in next(iter(own.values()), {}):
        unasked = [spec for spec in methods if option not in spec.layer.values.get("train", {})]
        values: dict[str, dict[str, None]] = {}
        for spec in unasked:
            names = values.setdefault(json.dumps(own[spec.label][option]), {})
            names[configs[spec.label].method.name] = None
        if len(values) > 1:
            told = "; ".join(f"{value} for {', '.join(names)}" for value, names in values.items())
            yield f"train.{option} is not the same for all methods: {told}"


def _overlaps(training: QuestionSet, sets: Any) -> Iterator[str]:
    for part in sets:
        if shared := data.overlap(training.questions, part.questions):
            yield (
                f"{len(shared):,} of the {len(part):,} questions of {part.name} also stand, with any answer, in the "
                f"training questions of {training.name}"
            )
