"""How numbers stand in the tables of the pages."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def number(value: float | None, form: str = ".3f") -> str:
    """Return a number, or a dash where there is none.

    >>> number(0.5), number(None)
    ('0.500', '-')
    """
    return "-" if value is None else format(value, form)


def interval(value: float | None, ends: Sequence[float] | None, digits: int = 3) -> str:
    """Return a value and the interval that belongs to it, if any.

    >>> interval(0.5, [0.25, 0.75], 2), interval(0.5, None), interval(None, None)
    ('0.50 (0.25-0.75)', '0.500', '-')
    """
    if value is None or not ends:
        return number(value, f".{digits}f")
    return f"{value:.{digits}f} ({ends[0]:.{digits}f}-{ends[1]:.{digits}f})"


def signed(row: Mapping[str, Any], scale: float, digits: int) -> str:
    """Return a difference and its interval.

    >>> signed({"difference": 0.011, "interval": [-0.002, 0.02]}, 100, 1)
    '+1.1 (-0.2, +2.0)'
    """
    value, low, high = (f"{scale * each:+.{digits}f}" for each in (row["difference"], *row["interval"]))
    return f"{value} ({low}, {high})"


def spread(values: Sequence[float], scale: float) -> str:
    """Return mean and standard deviation over seeds; percent with one digit.

    >>> spread([0.25, 0.75], 1)
    '0.500 ± 0.354'
    """
    digits = 1 if scale == 100 else 3
    return f"{scale * statistics.mean(values):.{digits}f} ± {scale * statistics.stdev(values):.{digits}f}"


def seeds(values: Sequence[float] | None) -> str:
    """Return the mean over seeds, the least and the largest, or a dash where there are none.

    >>> seeds([0.5, 0.75]), seeds(None)
    ('0.625 (0.50-0.75)', '-')
    """
    return f"{statistics.mean(values):.3f} ({min(values):.2f}-{max(values):.2f})" if values else "-"
