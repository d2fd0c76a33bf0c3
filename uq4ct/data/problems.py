"""Bad rows, and how they are listed: with their places, the first twenty in full, control characters written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SHOWN = 20


@dataclass(frozen=True)
class Rejected:
    """A bad row: where it is, everything that is wrong with it, and its text."""

    place: str
    reasons: tuple[str, ...]
    text: str = ""


def printable(text: str) -> str:
    r"""Return a text with control characters, half surrogates and the like written out.

    >>> printable("a\x1b[31m")
    'a\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def listing(rejected: Sequence[Rejected], total: int, source: str) -> list[str]:
    """Return one sentence per problem, the first twenty, and a last one that counts the rows."""
    lines = [f"{row.place}: {reason}" for row in rejected for reason in row.reasons]
    more = [f"... and {len(lines) - _SHOWN} more problems"] if len(lines) > _SHOWN else []
    return [
        *lines[:_SHOWN],
        *more,
        f"{source}: {len(rejected)} bad row{'s' * (len(rejected) != 1)} of {total}, so nothing was read; correct the "
        "file (in training, --skip-bad-rows sets bad rows aside)",
    ]


def rows_counted(count: int) -> str:
    """Return a number of rows in words."""
    return f"{count} row{'s' * (count != 1)}"
