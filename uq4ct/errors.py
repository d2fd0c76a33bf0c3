"""The one exception that means 'the user can fix this': the command line prints it and exits with code 2.

A `Note` is what a user should know and need not act on: the command line prints it as a line of its own.
"""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Report mistakes in a file, a configuration, a model folder or a flag, all of them at once.

    Each problem is one sentence that names the place, what was expected, what was found and what to do.

    >>> str(UserError(["questions.jsonl:17: answerKey 'E' is not one of the labels A, B, C, D"]))
    "questions.jsonl:17: answerKey 'E' is not one of the labels A, B, C, D"
    """

    def __init__(self, problems: str | Sequence[str]):
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class Note(UserWarning):
    """Say something by ``warnings.warn`` that the command line shows as a note."""


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known word, or an empty string.

    >>> did_you_mean("learing_rate", ["learning_rate", "seed"])
    " Did you mean 'learning_rate'?"
    """
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""
