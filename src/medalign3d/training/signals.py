"""A request to stop (SIGTERM, Ctrl-C) that training answers between two steps: it first writes a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Within the ``with`` block SIGTERM and SIGINT are noted instead of ending the process; a second one ends it.

    ``number`` is the signal, 0 while none came. Outside the main thread nothing is installed.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.number = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                current = signal.getsignal(number)
                # A worker process ignores Ctrl-C: its parent gets it too and stops the workers with SIGTERM.
                if current != signal.SIG_IGN:
                    self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise SystemExit(128 + number)
        self.number = number
