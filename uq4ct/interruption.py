"""Stop on SIGTERM or SIGINT at a point of our choosing: what was begun is finished and saved first."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any


class Interrupted(SystemExit):
    """A signal ended training after a whole update was saved; leaves with 128 + signal (130, 143) unless caught."""

    def __init__(self, signum: int, checkpoint: Path):
        self.signal, self.checkpoint = signum, checkpoint
        super().__init__(128 + signum)


class StopSignal:
    """Remember SIGTERM or SIGINT while the context is open; a second one ends the process at once.

    One that comes within a second is the same one: Ctrl-C reaches a process directly and once more through torchrun.
    Only the main thread may do so; in any other one the context changes nothing.

    >>> with StopSignal() as stop:
    ...     stop.received
    0
    """

    def __init__(self) -> None:
        self.received = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        self.received = 0
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received and time.monotonic() - self._since < 1.0:
            return
        if self.received:
            os._exit(128 + number)
        self.received, self._since = number, time.monotonic()
        os.write(2, b"\nstopping: an update that has begun is finished and saved first; signal again to stop at once\n")
