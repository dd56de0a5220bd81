"""One line of progress at a time: it rewrites itself on a terminal, plain lines elsewhere, with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

Item = TypeVar("Item")

TERMINAL_INTERVAL_SECONDS = 0.2
PLAIN_INTERVAL_SECONDS = 10.0


def format_seconds(seconds: float) -> str:
    """Format a duration for people.

    >>> format_seconds(7.2), format_seconds(95), format_seconds(3725)
    ('7s', '1m35s', '1h02m')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """Report how far a long step is and how long the rest will take.

    Use as a context manager; call :meth:`advance` after each unit of work.

    Parameters
    ----------
    label, total
        What is done, and how many units there are.
    stream
        Where lines go; standard output by default.
    parallel
        How many units are done at a time by processes that are started first. The first ``parallel`` units to finish
        carry the start-up: the time left is reckoned from the rate of those after them, once there are as many. 0: from
        all units, start to now.
    """

    def __init__(self, label: str, total: int, stream: TextIO | None = None, *, parallel: int = 0) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self.note = ""
        self._stream = stream if stream is not None else sys.stdout
        self._terminal = self._stream.isatty()
        self._interval = TERMINAL_INTERVAL_SECONDS if self._terminal else PLAIN_INTERVAL_SECONDS
        self._start = time.monotonic()
        self._last = self._start
        self._parallel = parallel
        self._steady_from = (0, self._start)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, exception_type: object, exception: object, traceback: object) -> None:
        self._print(final=exception_type is None)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Record ``count`` finished units; ``note`` (a loss, a rate) is shown at the end of the line."""
        self.done += count
        self.note = note
        if self.done - count < self._parallel <= self.done:
            self._steady_from = (self.done, time.monotonic())
        if time.monotonic() - self._last >= self._interval and self.done < self.total:
            self._print(final=False)

    def _seconds_left(self, now: float) -> float | None:
        """None while too little was done to tell."""
        first, since = self._steady_from
        counted = self.done - first
        if counted < max(1, self._parallel) or self.done < self._parallel:
            return None
        return (now - since) / counted * (self.total - self.done)

    def _print(self, *, final: bool) -> None:
        now = time.monotonic()
        elapsed = now - self._start
        self._last = now
        line = f"{self.label}: {self.done}/{self.total}"
        if final:
            line += f" in {format_seconds(elapsed)}"
        elif (seconds := self._seconds_left(now)) is not None:
            line += f", {format_seconds(seconds)} left"
        if self.note:
            line += f"  {self.note}"
        if self._terminal:
            self._stream.write(f"\r\x1b[2K{line}" + ("\n" if final else ""))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def track(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """Yield ``items`` while a :class:`Progress` reports on them."""
    with Progress(label, total) as progress:
        for item in items:
            yield item
            progress.advance()
