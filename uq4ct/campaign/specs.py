"""How people name the methods of a comparison: ``lora,uq4ct[top_k=3;rank=8],mixlora+temperature``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from uq4ct import methods
from uq4ct.config import SECTIONS, Layer, read_settings, resolve
from uq4ct.errors import UserError, did_you_mean

ALL = "all"
# What methods of one comparison may differ in besides their own options; data are the same for all but for this share.
_OWN_SECTIONS = ("model", "prompt", "train")
_OWN_OPTIONS = ("data.calibration_fraction",)
_FLAGS = {"data.source": "--data", "data.root": "--data-root", "output.seed": "--seeds", "output.folder": "--output"}
_SPEC = re.compile(r"(?P<name>[^\[\]+]+)(\[(?P<options>.*)\])?(\+(?P<suffix>[^\[\]+]*))?", re.DOTALL)


class MethodSpec(NamedTuple):
    """A method as the user wrote it, and the options that this means."""

    label: str
    layer: Layer


def parse_methods(text: str, *, calibration: bool = True) -> list[MethodSpec]:
    """Read ``name[option=value;option=value]+suffix``, several separated by commas; ``all`` is every method as it is.

    Without a ``calibration`` split, ``all`` leaves out the methods that need one. An option is the method's own, or
    that of another section written with it, ``lora[train.learning_rate=1e-4]``, where methods may differ in it.
    Raises UserError with all mistakes of all methods at once.

    >>> [spec.label for spec in parse_methods("lora,uq4ct[top_k=3;rank=8],mixlora")]
    ['lora', 'uq4ct[top_k=3;rank=8]', 'mixlora']
    >>> parse_methods("uq4ct[top_k=3;rank=8]")[0].layer.values
    {'method': {'top_k': 3, 'rank': 8, 'name': 'uq4ct'}}
    """
    parts = [part.strip() for part in _split(text, ",")]
    every = [name for name in methods.names() if calibration or not methods.find(name)().needs_calibration]
    parts = [name for part in parts for name in (every if part == ALL else [part])]
    problems: list[str] = []
    specs: list[MethodSpec] = []
    for part in parts:
        try:
            spec = _parse(part)
            _check_options(spec)
            specs.append(spec)
        except UserError as error:
            problems += error.problems
    repeated = dict.fromkeys(part for part in parts if part and parts.count(part) > 1)
    problems += [f"--methods: '{part}' is named {parts.count(part)} times; name it once" for part in repeated]
    if problems:
        raise UserError(list(dict.fromkeys(problems)))
    return specs


def _parse(part: str) -> MethodSpec:
    """Read one method; its options are only split here."""
    if not part:
        raise UserError(f"--methods: a name is missing between two commas; methods: {', '.join(methods.names())}")
    if not (match := _SPEC.fullmatch(part)):
        raise UserError(f"--methods: '{part}': expected name[option=value;option=value]+suffix, as in uq4ct[top_k=3]")
    name, suffix, problems = match["name"].strip(), match["suffix"], []
    if name not in methods.names():
        near = did_you_mean(name, [*methods.names(), ALL])
        problems.append(
            f"--methods: '{part}': no method is called '{name}'.{near} Methods: {', '.join(methods.names())}"
        )
    if suffix is not None:
        from uq4ct.posthoc import calibrator

        try:
            calibrator(suffix)
        except UserError as error:
            problems += [f"--methods: '{part}': {problem}" for problem in error.problems]
    settings = []
    for option in filter(None, map(str.strip, _split(match["options"] or "", ";"))):
        key, equals, _ = option.partition("=")
        if not (equals and key.strip()):
            problems.append(f"--methods: '{part}': expected option=value, got '{option}'")
        else:
            inside = key.partition(".")[0] in SECTIONS and "." in key
            settings.append(option if inside else f"method.{option}")
            problems += [f"--methods: '{part}': {reason}" for reason in _refusal(settings[-1], name)]
    if problems:
        raise UserError(problems)
    values: dict[str, Any] = {section: dict(options) for section, options in read_settings(settings).values.items()}
    values.setdefault("method", {})["name"] = name
    if suffix:
        values["method"]["posthoc"] = suffix
    return MethodSpec(part, Layer.of(values, f"--methods: '{part}'"))


def _refusal(setting: str, method: str) -> list[str]:
    """Return why an option cannot be one method's alone: it would be read from what all methods have in common."""
    key, _, value = map(str.strip, setting.partition("="))
    section = key.partition(".")[0]
    if key == "method.name":
        return [f"a method has one name, '{method}'; name the other one by itself"]
    if key == "method.posthoc":
        return [f"a post-hoc calibration is written behind the method: {method}+{value}"]
    if section == "method" or section in _OWN_SECTIONS or key in _OWN_OPTIONS:
        return []
    flag = _FLAGS.get(key, f"--set {key}={value}")
    return [f"'{key}' is the same for all methods of a comparison; use {flag}"]


def _check_options(spec: MethodSpec) -> None:
    """Raise UserError for options that the method does not have or that have a wrong value."""
    resolve([spec.layer])


def _split(text: str, separator: str) -> Iterator[str]:
    """Split at separators that stand in no brackets.

    >>> list(_split("a[x=[1,2]],b", ","))
    ['a[x=[1,2]]', 'b']
    """
    depth, begin = 0, 0
    for place, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if character == separator and depth <= 0:
            yield text[begin:place]
            begin = place + 1
    yield text[begin:]
