"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

collect_ignore = ["mixlora_reference.py"]  # runs in an environment of its own


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public question files, laid out as `<task>/<split>.jsonl`; not part of the project."""
    root = Path(os.environ.get("UQ4CT_TEST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")).resolve()
    if not (root / "openbookqa").is_dir():
        pytest.skip(
            "real question files not found; set UQ4CT_TEST_DATA to a folder that holds openbookqa/, arc_easy/, ..."
        )
    return root
