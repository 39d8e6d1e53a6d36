"""Ranks of one launch as processes of a test: what torchrun starts, without the time to import everything again."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning_dadpo.data.artifacts import RANKS, partial_of

__all__ = ["Rank", "start_ranks", "await_rank", "ended"]


@dataclass
class Rank:
    """A process that was forked from the test's.

    Attributes:
        process: its number. log: what it prints, errors too.
    """

    process: int
    log: Path

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self.log.read_text("utf-8")

    def kill(self) -> None:
        """As `kill -9`."""
        os.kill(self.process, signal.SIGKILL)

    def status(self, seconds: float = 60.0) -> int:
        """Its exit status, or minus the signal that ended it; the test fails when it does not end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found, status = os.waitpid(self.process, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        self.kill()
        os.waitpid(self.process, 0)
        raise AssertionError(f"still running after {seconds} s:\n{self.said}")


def start_ranks(folder: Path, size: int, run: Callable[[int], int], only: tuple[int, ...] = ()) -> list[Rank]:
    """Fork `size` processes that call `run(rank)` under torchrun's variables; or only some of them."""
    return [_start(folder, rank, size, run) for rank in only or range(size)]


def _start(folder: Path, rank: int, size: int, run: Callable[[int], int]) -> Rank:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"rank-{rank}.log"
    log.write_text("", "utf-8")
    process = os.fork()
    if process:
        return Rank(process, log)
    status = 70
    try:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "x"}
        sys.stdout = sys.stderr = log.open("a", encoding="utf-8")
        status = run(rank)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def await_rank(folder: Path, rank: int) -> None:
    """Come back when this rank has joined the work on an artefact: one that dies before that is not seen to die."""
    place, deadline = partial_of(folder) / RANKS / str(rank), time.monotonic() + 30
    while not (place.is_file() and place.stat().st_size):
        assert time.monotonic() < deadline, f"{place}: rank {rank} has not come"
        time.sleep(0.01)


def ended(ranks: list[Rank]) -> list[int]:
    """The exit statuses of all, in their order."""
    return [rank.status() for rank in ranks]
