"""`dadpo run` asked to go: its stage is asked, and says how it ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_dadpo.cli.processes import run_stage

STAGE = """
import signal, sys, time
from pathlib import Path

def finish(number, frame):
    time.sleep(0.2)  # the rest of a step
    Path(sys.argv[1], "checkpoint").write_text("whole")
    sys.exit(int(sys.argv[2]))

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, finish)
Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """What a test leaves behind would be every later test's."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # test runners have workers of theirs ignore it
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    signals = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    signal.signal(signal.SIGINT, usual)
    assert signals == before


def stage(folder: Path, status: int) -> list[str]:
    return [sys.executable, "-c", STAGE, str(folder), str(status)]


def ctrl_c(seconds: float = 0.0) -> None:
    """What a terminal sends to this process, and some seconds later to the stage."""
    (child,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(seconds)
    os.kill(int(child), signal.SIGINT)


def when_ready(folder: Path, act: Callable[[], None]) -> None:
    """Call something as soon as the stage runs."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while not (folder / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        act()

    threading.Thread(target=wait, daemon=True).start()


def test_sigterm_is_passed_on_and_the_stage_ends_as_it_would_by_itself(tmp_path: Path) -> None:
    """Planted: with `subprocess.run` this process ended at once, and the stage lived on."""
    when_ready(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run_stage(stage(tmp_path, 143)) == 143
    assert (tmp_path / "checkpoint").read_text() == "whole"


def test_ctrl_c_waits_for_the_stage_which_got_it_too(tmp_path: Path) -> None:
    """Planted: `subprocess.run` kills after a quarter of a second."""

    when_ready(tmp_path, lambda: ctrl_c(0.5))
    assert run_stage(stage(tmp_path, 130)) == 130
    assert (tmp_path / "checkpoint").read_text() == "whole"


def test_nothing_else_begins_when_the_stage_ended_well_beside_the_signal(tmp_path: Path) -> None:
    when_ready(tmp_path, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage(tmp_path, 0))


def test_the_status_is_the_stages_or_that_of_the_signal_which_ended_it() -> None:
    assert run_stage([sys.executable, "-c", "import sys; sys.exit(7)"]) == 7
    assert run_stage([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137
