"""What ends a run before its total: Ctrl-C, a signal, a time limit, a fault.

`hpo stop` is not here: it asks through the database (`hpo.sweep.study_row`).
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from enum import IntEnum
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
logger = logging.getLogger(__name__)


class StopLevel(IntEnum):
    """How urgently workers are to leave. No level loses anything but time."""

    NONE = 0
    GRACEFUL = 1  # checkpoint, release, leave
    IMMEDIATE = 2  # the trials go on from their last checkpoint


class Stop:
    """A request to stop, whose level rises.

    Args:
        timeout_s: time after which workers leave at their next evaluation.
    """

    def __init__(self, timeout_s: float | None = None) -> None:
        self.reason = ""
        self._level = StopLevel.NONE
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def level(self) -> StopLevel:
        """The level now; a time limit that has passed counts as the first."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.request_stop(StopLevel.GRACEFUL, "the time limit is over")
        return self._level

    def request_stop(self, level: StopLevel, reason: str) -> None:
        """Raise the level; the first reason stands, and a level never falls."""
        if level > self._level:
            self._level = level
            self.reason = self.reason or reason

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take Ctrl-C, SIGTERM and a closed terminal as requests to stop: the first graceful, the second immediate."""

        def handle(number: int, frame: FrameType | None) -> None:
            del frame
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            if self._level is StopLevel.NONE:
                logger.info(
                    "%s: workers leave at their next evaluation; once more to leave now. Nothing is lost.", name
                )
            self.request_stop(StopLevel(min(self._level + 1, StopLevel.IMMEDIATE)), name)

        before = {number: signal.signal(number, handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
