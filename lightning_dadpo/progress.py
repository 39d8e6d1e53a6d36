"""Progress of long work: a bar with the time left on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["Progress", "progress"]

SECONDS_BETWEEN_LINES = 20.0


class Progress(Protocol):
    """What work reports to."""

    def advance(self, amount: int) -> None:
        """So many more units are done."""


class _Bar:
    def __init__(self, what: str, total: int, done: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = RichProgress(*columns, TextColumn("left"), TimeRemainingColumn())
        self.task = self.bar.add_task(what, total=total, completed=done)
        self.bar.start()

    def advance(self, amount: int) -> None:
        self.bar.advance(self.task, amount)

    def close(self) -> None:
        self.bar.stop()


class _Lines:
    def __init__(self, what: str, total: int, done: int) -> None:
        self.what, self.total, self.done, self.begun_at = what, total, done, done
        self.start = self.said = time.monotonic()

    def advance(self, amount: int) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.said >= SECONDS_BETWEEN_LINES or self.done >= self.total:
            self.said = now
            left = (now - self.start) / max(1, self.done - self.begun_at) * (self.total - self.done)
            print(
                f"{self.what}: {self.done}/{self.total}, {now - self.start:.0f} s, about {left:.0f} s left", flush=True
            )

    def close(self) -> None:
        pass


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Progress]:
    """A bar on a terminal, lines elsewhere.

    Args:
        what: the work and its unit, for example "sampling (responses)".
        total: units in all; done: units that an earlier, killed run has finished already.
    """
    shown = (_Bar if sys.stdout.isatty() else _Lines)(what, total, done)
    try:
        yield shown
    finally:
        shown.close()
