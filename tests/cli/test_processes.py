"""`dadpo run` asked to go: its stage is asked, and says how it ended."""

from __future__ import annotations

import json
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.cli import forks
from lightning_dadpo.cli.processes import run_stage

KINDS = pytest.mark.parametrize("forked", [False, True])
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """What a test leaves behind would be every later test's."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # test runners have workers of theirs ignore it
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signals = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    signal.signal(signal.SIGINT, usual)
    assert signals == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == masked


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    """One of its own, that imports nothing: these stages need nothing, and it is sent signals."""
    server = multiprocessing.forkserver._forkserver
    server._stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forks, "IMPORTED", ["json"])
        yield
    server._stop()


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def stage(folder: Path, status: int) -> list[str]:
    return [sys.executable, "-m", "tests.cli.waiting_stage", str(folder), str(status)]


def seen(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "ready").read_text("utf-8"))
    return found


def children() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text("utf-8").split()))


def ctrl_c(folder: Path, seconds: float = 0.0) -> None:
    """What a terminal sends to this process, and some seconds later to the stage and to what forked it."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(seconds)
    for process in children() | {seen(folder)["process"]}:
        os.kill(process, signal.SIGINT)


def when_ready(folder: Path, act: Callable[[], None]) -> None:
    """Call something as soon as the stage runs."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while not (folder / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        act()

    threading.Thread(target=wait, daemon=True).start()


@KINDS
def test_sigterm_is_passed_on_and_the_stage_ends_as_it_would_by_itself(tmp_path: Path, forked: bool) -> None:
    """Planted: with `subprocess.run` this process ended at once, and the stage lived on."""
    when_ready(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run_stage(stage(tmp_path, 143), forked) == 143
    assert (tmp_path / "checkpoint").read_text() == "whole"


def test_sigterm_to_everything_leaves_what_knows_how_a_forked_stage_ended(tmp_path: Path) -> None:
    """Planted: a fork server that does not hold SIGTERM back is gone before its stage, whose status is then 255."""

    def everything() -> None:
        for process in children() | {seen(tmp_path)["process"], os.getpid()}:
            os.kill(process, signal.SIGTERM)

    when_ready(tmp_path, everything)
    assert run_stage(stage(tmp_path, 143), forked=True) == 143
    assert (tmp_path / "checkpoint").read_text() == "whole"


@KINDS
def test_ctrl_c_waits_for_the_stage_which_got_it_too(tmp_path: Path, forked: bool) -> None:
    """Planted: `subprocess.run` kills after a quarter of a second."""
    when_ready(tmp_path, lambda: ctrl_c(tmp_path, 0.5))
    assert run_stage(stage(tmp_path, 130), forked) == 130
    assert (tmp_path / "checkpoint").read_text() == "whole"


@KINDS
def test_nothing_else_begins_when_the_stage_ended_well_beside_the_signal(tmp_path: Path, forked: bool) -> None:
    when_ready(tmp_path, lambda: ctrl_c(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage(tmp_path, 0), forked)


def test_ctrl_c_before_there_is_a_fork_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports take seconds, in which the terminal finds nobody but this process.

    Planted: where multiprocessing is left to say what became of it, the status is 1.
    """
    start = forks.ForkServerProcess.start

    def asked_before(process: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        start(process)

    monkeypatch.setattr(forks.ForkServerProcess, "start", asked_before)
    assert run_stage(stage(tmp_path, 7), forked=True) == 130
    assert not (tmp_path / "checkpoint").exists()


@KINDS
def test_the_status_is_the_stages_or_that_of_the_signal_which_ended_it(tmp_path: Path, forked: bool) -> None:
    assert run_stage([sys.executable, "-m", "lightning_dadpo", "no-such-command"], forked) == 2
    when_ready(tmp_path, lambda: os.kill(seen(tmp_path)["process"], signal.SIGKILL))
    assert run_stage(stage(tmp_path, 0), forked) == 137


@KINDS
def test_ctrl_c_that_a_stage_does_not_handle_yet_has_one_status(
    tmp_path: Path, forked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it imports, say."""
    (tmp_path / "importing.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run_stage([sys.executable, "-m", "importing"], forked) == 130


@KINDS
def test_what_is_left_to_the_end_of_a_stage_is_done_then(
    tmp_path: Path, forked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: with `atexit._clear` alone the folder stays, since its hook went with the server's, and so does the row.

    `prepared` stands for what the server has imported: it has left something to its own end, which has not come.
    """
    (tmp_path / "prepared.py").write_text(
        "import os, pathlib, weakref\n"
        "class Held: pass\n"
        "held = Held()\n"
        "weakref.finalize(held, pathlib.Path(f'{__file__}.{os.getpid()}').touch)\n",
        "utf-8",
    )
    (tmp_path / "leaving.py").write_text(
        "import logging.handlers, sys, tempfile\n"
        "tempfile.held = tempfile.TemporaryDirectory(dir='.', prefix='left-')\n"
        "rows = logging.handlers.MemoryHandler(9, target=logging.FileHandler('rows'))\n"
        "rows.emit(logging.makeLogRecord({'msg': 'one', 'levelno': 20}))\n"
        "sys.exit(3)\n",
        "utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    multiprocessing.forkserver._forkserver._stop()
    monkeypatch.setattr(forks, "IMPORTED", ["prepared"])
    assert run_stage([sys.executable, "-m", "leaving"], forked) == 3
    assert (tmp_path / "rows").read_text("utf-8") == "one\n"
    assert not list(tmp_path.glob("left-*"))
    assert not list(tmp_path.glob("prepared.py.*"))
    multiprocessing.forkserver._forkserver._stop()


def test_a_stage_looks_for_no_garbage_in_what_was_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: without the freeze the collector goes through everything that stages import, each time."""
    (tmp_path / "kept.py").write_text("held = []\n", "utf-8")
    (tmp_path / "looking.py").write_text(
        "import gc, sys, kept\n"
        "new = []\n"
        "looked_at = [any(one is held for held in gc.get_objects()) for one in (kept.held, new)]\n"
        "sys.exit(0 if looked_at == [False, True] else 1)\n",
        "utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    multiprocessing.forkserver._forkserver._stop()
    monkeypatch.setattr(forks, "IMPORTED", ["kept"])
    assert run_stage([sys.executable, "-m", "looking"], forked=True) == 0
    multiprocessing.forkserver._forkserver._stop()


@KINDS
def test_a_stage_finds_what_python_m_gives_it(tmp_path: Path, forked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning starts further ranks by the module and the arguments; paths are meant from here."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    when_ready(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run_stage(stage(tmp_path, 7), forked) == 7
    found = seen(tmp_path)
    assert found.pop("process") not in children() | {os.getpid()}
    expected = {"argv": [str(tmp_path), "7"], "module": "tests.cli.waiting_stage"}
    assert found == expected | {"cwd": str(tmp_path), "environment": "1"}
