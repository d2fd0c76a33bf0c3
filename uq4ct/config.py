"""The configuration of a run: YAML and flags fill the sections' models; all problems come at once, with their line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from yaml.constructor import ConstructorError

from uq4ct import methods, tasks
from uq4ct.adapting import TrainConfig
from uq4ct.backbone import ModelConfig
from uq4ct.data import DataConfig
from uq4ct.errors import UserError, did_you_mean
from uq4ct.methods.base import Method
from uq4ct.prompts import PromptConfig

MAX_BYTES = 1_000_000


class DataSection(DataConfig):
    """Which questions to train on."""

    source: str = "tiny"  # task name, file or hub id
    root: str = "hub"  # where named tasks are read: "hub", or a folder laid out as <task>/<split>.jsonl


class EvalConfig(BaseModel):
    """How predictions are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(32, ge=1)
    bins: int = Field(15, ge=1)
    resamples: int = Field(1000, ge=100)


class OutputConfig(BaseModel):
    """Where the run is written, and its seed: adapter initialisation, data order and dropout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = ""
    seed: int = Field(1, ge=0, lt=2**32)
    keep_checkpoints: bool = False


class Config(BaseModel):
    """A resolved configuration: every option of a run has its value."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    model: ModelConfig
    data: DataSection
    prompt: PromptConfig
    method: Method
    train: TrainConfig
    eval: EvalConfig
    output: OutputConfig

    def dump(self) -> dict[str, Any]:
        """Return the configuration as plain values, the method's name first in its section."""
        sections = {name: getattr(self, name).model_dump(mode="json") for name in SECTIONS if name != "method"}
        sections["method"] = {"name": self.method.label, **self.method.options()}
        return {name: sections[name] for name in SECTIONS}

    def to_yaml(self) -> str:
        """Return the configuration as YAML that ``load`` reads back to an equal one."""
        return yaml.safe_dump(self.dump(), sort_keys=False, allow_unicode=True)

    @property
    def fit_hash(self) -> str:
        """SHA-256 over everything that the fitted weights depend on; a checkpoint resumes only under the same one."""
        facts = self.dump()
        del facts["eval"], facts["output"], facts["model"]["device"]
        facts["seed"] = self.output.seed
        if Path(self.data.source).is_file():  # one file may be named in several ways
            facts["data"]["source"] = str(Path(self.data.source).resolve())
        facts["train"] = self.train.substance()
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelConfig,
    "data": DataSection,
    "prompt": PromptConfig,
    "method": Method,
    "train": TrainConfig,
    "eval": EvalConfig,
    "output": OutputConfig,
}

RECOMMENDED = "uq4ct+familiarity"  # what a run is made with where no method is named: docs/study.md says why

PRESETS: dict[str, dict[str, Any]] = {
    # What we recommend; else the defaults of the sections.
    "product": {"method": {"name": RECOMMENDED}},
    # A.4 of the paper and, where it is silent, the code base it extends: its prompts, vocabulary loss, no calibration.
    "paper": {
        "prompt": {"pack": "moe_peft"},
        "data": {"calibration_fraction": 0.0},
        "method": {"answer_loss": "vocabulary"},
    },
    # Laplace-LoRA and BLoB: rank 8, small steps, 300 tokens. Their LoRA adapts query, value and head alone.
    "bayesian-lora": {
        "prompt": {"pack": "laplace_lora", "max_length": 300},
        "data": {"calibration_fraction": 0.0},
        "method": {"rank": 8, "alpha": 16.0, "dropout": 0.1},
        "train": {
            "learning_rate": 1e-4,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.06,
            "weight_decay": 0.0,
            "adam_epsilon": 1e-6,
            "per_device_train_batch_size": 4,
            "max_steps": 5000,
        },
    },
    # An encoder has a new head to train: longer, with warm-up and decay. At 1e-3 a LoRA stays at chance (the log).
    "encoder": {
        "method": {"name": RECOMMENDED},
        "train": {
            "num_train_epochs": 3,
            "learning_rate": 3e-4,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.06,
        },
    },
}

# What a preset says of one task alone: A.4 trains on the few questions of ClimateQA with larger steps and more dropout.
TASK_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {"climaqa": {"train": {"learning_rate": 5e-4}, "method": {"dropout": 0.1}}},
}


class Layer(NamedTuple):
    """One source of options: a nested mapping and, for messages, the place of each dotted key."""

    values: Mapping[str, Any]
    places: Mapping[str, str]

    @classmethod
    def of(cls, values: Mapping[str, Any], place: str) -> Layer:
        """Give every key of a mapping the same place."""
        return cls(values, dict.fromkeys(_dotted(values), place))


def preset_layers(name: str, source: str | None = None) -> list[Layer]:
    """Return a preset as layers, with what it says of the task that is trained on.

    Raises UserError with the nearest name when there is no such preset.

    >>> [layer.values["train"] for layer in preset_layers("paper", "climaqa") if "train" in layer.values]
    [{'learning_rate': 0.0005}]
    """
    if name not in PRESETS:
        near = did_you_mean(name, list(PRESETS))
        raise UserError(f"--preset: '{name}' is not one of {', '.join(PRESETS)}.{near}")
    wanted = tasks.wanted(str(source))
    values = (PRESETS[name], TASK_PRESETS.get(name, {}).get(wanted.task.name, {}) if wanted else {})
    return [Layer.of(value, f"preset {name}") for value in values]


def source_of(layers: Sequence[Layer]) -> str | None:
    """Return what layers of options say is trained on; the last one that says so wins.

    >>> source_of([Layer.of({"data": {"source": "openbookqa"}}, "--data"), read_settings(["data.source=climaqa"])])
    'climaqa'
    """
    data = [layer.values["data"] for layer in layers if isinstance(layer.values.get("data"), Mapping)]
    return next((str(options["source"]) for options in reversed(data) if "source" in options), None)


def resolve(layers: Sequence[Layer]) -> Config:
    """Merge layers of options, later ones winning, and build the configuration.

    A mapping within a section is merged like the section itself: an entry that a later layer does not name stays.
    Raises UserError with all problems of all sections, each with the place of its key.

    >>> resolve([Layer.of({"method": {"name": "uq4ct", "top_k": "2"}}, "flags")]).method.top_k
    2
    >>> resolve([Layer({"train": {"learing_rate": 1}}, {"train.learing_rate": "run.yaml:14"})])
    Traceback (most recent call last):
    uq4ct.errors.UserError: run.yaml:14: train: 'learing_rate' is not a field of transformers.TrainingArguments. \
Did you mean 'learning_rate'?
    """
    merged: dict[str, Any] = {}
    places: dict[str, str] = {}
    problems: list[str] = []
    preset = ""
    for values, where in layers:
        preset = next(
            (place.removeprefix("preset ") for place in where.values() if place.startswith("preset ")), preset
        )
        for section, options in values.items():
            if section not in SECTIONS:
                place = where.get(section, "config")
                problems.append(
                    f"{place}: '{section}' is not a section.{did_you_mean(section, list(SECTIONS))}"
                    f" Sections: {', '.join(SECTIONS)}"
                )
            elif not isinstance(options, Mapping):
                problems.append(
                    f"{where.get(section, 'config')}: section '{section}' must hold options, got {options!r}; write "
                    "one `option: value` a line below it, indented"
                )
            else:
                merged[section] = _over(merged.get(section, {}), options)
        places.update(where)
    built: dict[str, BaseModel] = {}
    for section, model in SECTIONS.items():
        options = dict(merged.get(section, {}))
        try:
            kind, suffix = (model, None) if section != "method" else methods.parse(str(options.pop("name", "uq4ct")))
        except UserError as error:
            problems.append(f"{places.get('method.name', 'config')}: {error}")
            continue
        if section == "method":
            own = dict(cast(type[Method], kind).presets.get(preset, {}))
            _train_as(own.pop("train", {}), merged, places)  # the section of training comes after this one
            options = {**own, **_without_foreign_preset_options(kind, options, places)}
            options |= {"posthoc": suffix} if suffix else {}
        try:
            built[section] = kind.model_validate(options)
        except ValidationError as error:
            problems.extend(_sentence(section, kind, detail, places) for detail in error.errors())
    if problems:
        raise UserError(problems)
    return Config(**cast(dict[str, Any], built))


def read_yaml(path: Path) -> Layer:
    """Read a configuration file as a layer that knows the line of every key.

    Raises UserError for an unreadable file, a YAML error, duplicate keys, keys that are no text, or aliases.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file; `uq4ct init -o {path}` writes one")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes, a configuration has at most {MAX_BYTES:,}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise UserError(f"{path}: YAML aliases (*name) are not supported; write the value out")
        node = yaml.compose(text, _Loader)
        values = _Loader("").construct_document(node) if isinstance(node, yaml.MappingNode) else {}
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or error
        way_out = "check the indentation (spaces, no tabs) and the colons, here and in the lines before"
        if isinstance(error, ConstructorError):
            way_out = "if it is meant as text, put it in quotes"
        raise UserError(f"{path}{line}: not valid YAML: {reason}; {way_out}") from error
    if node is None:
        return Layer({}, {})
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else repr(node.value)
        raise UserError(f"{path}:1: expected sections ({', '.join(SECTIONS)}), each with options, got {found}")
    places: dict[str, str] = {}
    problems = list(_places(node, path, "", places))
    if problems:
        raise UserError(problems)
    return Layer(values, places)


def read_settings(settings: Sequence[str]) -> Layer:
    """Turn ``section.key=value`` flags into a layer; the value is read as YAML, as in a file, or else is text.

    Raises UserError for other forms, and for an option below what another flag makes a plain value.

    >>> read_settings(["train.learning_rate=2e-4"]).values
    {'train': {'learning_rate': 0.0002}}
    >>> read_settings(["data.columns={question: q}", "data.columns.answer=gold"]).values
    {'data': {'columns': {'question': 'q', 'answer': 'gold'}}}
    """
    values: dict[str, Any] = {}
    problems = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        *parents, last = key.split(".")
        if not (equals and parents and last and all(parents)):
            problems.append(f"--set {setting}: expected section.key=value, for example train.num_train_epochs=3")
            continue
        inside = values
        for parent in parents:
            inside = inside.setdefault(parent, {})
            if not isinstance(inside, dict):
                problems.append(f"--set {setting}: another --set makes '{parent}' {inside!r}; leave one of the two out")
                break
        else:
            inside.update(_over(inside, {last: _value(text)}))
    if problems:
        raise UserError(problems)
    return Layer.of(values, "--set")


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration file, with one alternative per method."""
    sections: dict[str, Any] = {name: model.model_json_schema() for name, model in SECTIONS.items() if name != "method"}
    kinds = []
    for name in methods.names():
        schema = methods.find(name).model_json_schema()
        schema["properties"] = {"name": {"const": name}, **schema.get("properties", {})}
        schema["required"] = ["name"]
        kinds.append(schema)
    sections["method"] = {"oneOf": kinds}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "uq4ct run",
        "type": "object",
        "additionalProperties": False,
        "properties": {name: sections[name] for name in SECTIONS},
    }


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that reads 2e-4 as a number and 2024-01-31, = and << as text, as people mean them.

    >>> yaml.load("{rate: 2e-4, revision: 2024-13-45, delimiter: =}", _Loader)
    {'rate': 0.0002, 'revision': '2024-13-45', 'delimiter': '='}
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node; raise ConstructorError, with the line, where it is none of its kind."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # 0b_, !!bool x, !!timestamp x
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"{node.value!r} is no {kind}", node.start_mark) from error


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag.rpartition(":")[2] not in ("timestamp", "value", "merge")]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _places(node: yaml.MappingNode, path: Path, prefix: str, places: dict[str, str]) -> Sequence[str]:
    problems = []
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        place = f"{path}:{key.start_mark.line + 1}"
        if key.tag != "tag:yaml.org,2002:str":
            kind = key.tag.rpartition(":")[2]
            problems.append(f"{place}: expected the name of a section or option, got a YAML {kind}; put it in quotes")
            continue
        if name in places:
            problems.append(f"{place}: '{name}' appears twice; first at {places[name]}")
        places[name] = place
        if isinstance(value, yaml.MappingNode):
            problems.extend(_places(value, path, f"{name}.", places))
    return problems


def _value(text: str) -> Any:
    """Return the value of a flag: a number, true, null, a list, a mapping or a quoted text as in YAML, else the text.

    >>> [_value(text) for text in ("2e-4", "null", "[a, b]", "'7'", "|", "#", "question #1")]
    [0.0002, None, ['a', 'b'], '7', '|', '#', 'question #1']
    """
    if text and not _MORE_THAN_SIGNS.search(text):  # to YAML | is an empty block of text, - a list and # a comment
        return text
    try:
        value = yaml.load(text, _Loader)  # a SafeLoader: plain values only
    except yaml.YAMLError:
        return text
    return text.strip() if isinstance(value, str) and not text.strip().startswith(("'", '"')) else value


_MORE_THAN_SIGNS = re.compile(r"""[\w"'~{}\[\]]""")


def _dotted(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in values.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, Mapping):
            keys.extend(_dotted(value, f"{prefix}{name}."))
    return keys


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of two mappings; those of the second win, and mappings that both have are merged likewise.

    >>> _over({"columns": {"answer": "gold"}, "limit": 9}, {"columns": {"context": "passage"}})
    {'columns': {'answer': 'gold', 'context': 'passage'}, 'limit': 9}
    """
    merged = dict(below)
    for name, value in above.items():
        known = merged.get(name)
        merged[name] = _over(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def _train_as(own: Mapping[str, Any], merged: dict[str, Any], places: Mapping[str, str]) -> None:
    """Give a method its own training options of a preset, in place of those for all, never of a user's."""
    train = merged.setdefault("train", {})
    train |= {
        name: value
        for name, value in own.items()
        if name not in train or places.get(f"train.{name}", "").startswith("preset ")
    }


def _without_foreign_preset_options(kind: Any, options: dict[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """A preset speaks to all methods; one without an option of it (zero_shot has no rank) leaves that aside."""
    return {
        name: value
        for name, value in options.items()
        if name in kind.model_fields or not places.get(f"method.{name}", "").startswith("preset ")
    }


def _sentence(section: str, model: type[BaseModel], detail: Mapping[str, Any], places: Mapping[str, str]) -> str:
    path = [str(part) for part in detail["loc"]]
    dotted = ".".join([section, *path])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        owner = f"method {model.name}" if issubclass(model, Method) else section
        message = f"'{path[-1]}' is not an option of {owner}.{did_you_mean(path[-1], list(model.model_fields))}"
        message += "" if "mean" in message else f" Options: {', '.join(model.model_fields)}"
        return f"{_place(dotted, places)}: {section}: {message}"
    if not path:  # a validator of the whole section: find the key it talks about
        named = [key for key in places if key.startswith(f"{section}.") and f"'{key.split('.')[-1]}'" in message]
        return f"{places[named[0]] if named else places.get(section, 'config')}: {section}: {message}"
    if f"got {detail['input']!r}" in message:
        return f"{_place(dotted, places)}: {dotted}: {message}"
    for wordy, plain in _PLAIN.items():
        message = re.sub(wordy, plain, message)
    return f"{_place(dotted, places)}: {dotted}: {message}, got {detail['input']!r}"


# pydantic's sentences, in the words of our own.
_PLAIN = {
    "^Input should be ": "expected ",
    ", (unable to parse|got a number with) .*": "",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    r"a valid dictionary( or instance of \w+)?": "a mapping",
}


def _place(dotted: str, places: Mapping[str, str]) -> str:
    while dotted and dotted not in places:
        dotted = dotted.rpartition(".")[0]
    return places.get(dotted, "config")
