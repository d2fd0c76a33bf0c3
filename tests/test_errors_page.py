"""docs/errors.md says what the command line says: every bad input is refused with code 2, its message, and no trace."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def errors() -> ModuleType:
    spec = importlib.util.spec_from_file_location("errors_page", DOCS / "errors.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def outcomes(errors: ModuleType) -> list[Any]:
    return list(errors.rows())


def test_every_bad_input_is_refused_and_leaves_no_trace(outcomes):
    for _, case, outcome in outcomes:
        assert outcome.code == 2, case.command
        assert outcome.changed == (), case.command
        assert outcome.message, case.command
        assert not any(line.startswith("Traceback") for line in outcome.message)


def test_the_page_shows_the_messages_that_users_get(errors, outcomes):
    """After a change of a message: make docs-errors."""
    assert len(outcomes) >= 40
    written = (DOCS / "errors.md").read_text(encoding="utf-8").splitlines()
    assert errors.page(outcomes).splitlines() == written


def test_no_place_of_a_machine_is_shown(outcomes):
    shown = "\n".join(line for _, _, outcome in outcomes for line in outcome.message)
    assert os.path.expanduser("~") not in shown
    assert "/tmp" not in shown
