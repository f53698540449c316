"""Ctrl-C and the end that a batch system sets, held back until a loop can stop without losing its work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether and by what a loop was asked to stop.

    Attributes:
        signal: the signal that came; None as long as none did.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def error(self) -> BaseException:
        """What the signal means to the callers: KeyboardInterrupt for Ctrl-C, else an exit with code 128 + signal."""
        if self.signal in (None, signal.SIGINT):
            return KeyboardInterrupt()
        return SystemExit(128 + self.signal)


@contextmanager
def deferred_interrupt() -> Iterator[Stop]:
    """Turn the first Ctrl-C or SIGTERM into a note, so that a loop can stop between iterations; the second one acts.

    Signals reach the main thread only: in another one, such as a notebook's, nothing is held back.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise stop.error()
        stop.signal = number

    previous = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, old in previous.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)  # None: not set by Python
