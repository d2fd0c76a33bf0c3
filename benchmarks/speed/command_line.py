"""The time until ``uq4ct --help`` has answered."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks.speed.settings import Settings


def run(settings: Settings) -> dict[str, Any]:
    """Return the median and the slowest of ten calls, in seconds."""
    took = []
    for _ in range(10):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "uq4ct", "--help"], check=True, capture_output=True)
        took.append(time.perf_counter() - started)
    return {"seconds": round(float(np.median(took)), 3), "slowest": round(max(took), 3), "calls": len(took)}
