"""Public data sets by name, and the column layouts that are recognised in anyone's file.

The folder is the registry: every ``Task`` and ``Schema`` that a file of this folder defines is found by listing it, so
adding a data set is adding one file.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any, NamedTuple

from uq4ct.errors import UserError, did_you_mean
from uq4ct.tasks.base import Part, Row, Schema, Task

__all__ = ["Part", "Row", "Schema", "Task", "Wanted", "get", "list_tasks", "names", "schemas", "wanted"]


@cache
def _registry() -> tuple[dict[str, Task], tuple[Schema, ...]]:
    tasks: dict[str, Task] = {}
    found: dict[str, Schema] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, Task):
                tasks[value.name] = value
            elif isinstance(value, Schema):
                found[value.name] = value
    return tasks, tuple(sorted(found.values(), key=lambda schema: (-len(schema.required), schema.name)))


def names() -> tuple[str, ...]:
    """List the names of all tasks.

    >>> "openbookqa" in names() and "tiny" in names()
    True
    """
    return tuple(sorted(_registry()[0]))


def schemas() -> tuple[Schema, ...]:
    """List the known column layouts, those that ask for the most columns first."""
    return _registry()[1]


def get(name: str) -> Task:
    """Return a task by name; raise UserError with the nearest name when there is none.

    >>> get("mmlu-law").summary
    'MMLU, three law subjects (larger shift in Table 2)'
    """
    tasks = _registry()[0]
    if name not in tasks:
        near = did_you_mean(name, list(tasks))
        raise UserError(f"no task is called '{name}'.{near} Tasks: {', '.join(sorted(tasks))}")
    return tasks[name]


class Wanted(NamedTuple):
    """What a source that names a task asks for: ``TASK``, ``TASK:SPLIT``, ``TASK@REVISION`` or all three."""

    task: Task
    split: str | None
    revision: str | None


def wanted(source: str) -> Wanted | None:
    """Read a source that names a task; None for a file, a folder or a hub id.

    Raises UserError where a split or revision is announced and not named.

    >>> asked = wanted("arc_easy:validation")
    >>> asked.task.name, asked.split, asked.revision
    ('arc_easy', 'validation', None)
    >>> wanted("owner/name:subset") is None
    True
    """
    plain, at, revision = source.partition("@")
    name, colon, split = plain.partition(":")
    task = _registry()[0].get(name)
    if task is None:
        return None
    if (colon and not split) or (at and not revision):
        raise UserError(f"'{source}': a part is empty; a task is named as TASK, TASK:SPLIT or TASK@REVISION")
    return Wanted(task, split or None, revision or None)


def list_tasks() -> list[dict[str, Any]]:
    """Describe every task in plain values, for ``uq4ct ls tasks``.

    >>> [row["evaluation_split"] for row in list_tasks() if row["name"] == "boolq"]
    ['validation']
    """
    return [_registry()[0][name].describe() for name in names()]
