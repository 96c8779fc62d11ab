"""Ctrl-C and SIGTERM as a wish to stop at the next good moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While this context lasts, SIGINT and SIGTERM are only noted; at its end they go to the handler before it.

    So `fit` can write a checkpoint, and the process then ends as it would have. A second Ctrl-C a second or more after
    the first stops at once (launchers pass on a signal that the terminal has sent already). Signals that are ignored
    stay ignored, and in other threads than the main one, where Python allows no handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._noted = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                previous = signal.getsignal(number)
                if previous not in (None, signal.SIG_IGN):
                    self._previous[number] = previous
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        if self.signal is not None and kind is None:
            signal.raise_signal(self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._noted = number, now
            if number == signal.SIGINT:
                # No logging: what the signal interrupted may be writing itself.
                with suppress(OSError):
                    os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C again stops at once.\n")
        elif number == signal.SIGINT and now - self._noted > 1:
            raise KeyboardInterrupt


def ignore_signals(worker: int) -> None:
    """For processes that load data: those that a terminal or scheduler signals too would tear the run down."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
