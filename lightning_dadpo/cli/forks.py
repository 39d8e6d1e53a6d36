"""`python -m MODULE` forked from a process that has imported what stages import, which takes longer than some stages.

That process is the standard library's fork server. It runs nothing itself, so that what it forks begins like any other
process that has just imported the same: with threads and devices of its own, and random states as after an import (but
numpy's global one, which no stage draws from, is the same in all). It ends with `dadpo run` and the last stage.
"""

from __future__ import annotations

import atexit
import gc
import logging
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import runpy
import signal
import sys
import weakref
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from typing import Any

__all__ = ["Fork", "IMPORTED"]

IMPORTED = [
    f"lightning_dadpo.{module}"
    for module in (
        "cli.reporting", "cli.training", "evaluation.evaluate", "models.export", "models.pruning", "sampling.stage",
        "sampling.transformers_sampler", "scoring.stage",
    )
]  # fmt: skip
"""What takes long to import of what stages import."""
HELD = {signal.SIGINT, signal.SIGTERM}
"""Signals that may go to all processes at once, and that the server has to outlive: it knows how a stage ended."""


class Fork:
    """A running `python -m MODULE ARGUMENTS`; what `subprocess.Popen` is to a command.

    Args:
        module: see above.
        arguments: its own.
        environment: all that it finds.
    """

    def __init__(self, module: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        multiprocessing.resource_tracker.ensure_running()  # it lets signals through that were held before
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)  # the server inherits it
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._process: ForkServerProcess = context.Process(target=_run, args=(module, list(arguments), environment))
        self._process.start()

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self._process.is_alive():
            assert self._process.pid is not None
            os.kill(self._process.pid, number)

    def wait(self) -> int:
        """Its exit status; -N where signal N ended it."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def _run(module: str, arguments: list[str], environment: dict[str, str]) -> None:
    """In the forked process: `python -m` as far as anything can see."""
    _forget_the_servers_end()
    gc.freeze()  # what was imported stays: looking for garbage there takes a sixth of a stage that makes many objects
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # before the module handles it; multiprocessing would make it a 1
        sys.exit(128 + signal.SIGINT)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def _forget_the_servers_end() -> None:
    """What is left to the end of a process is the server's own, and to be left to this one's anew."""
    atexit._clear()
    atexit.register(logging.shutdown)
    finalizers: Any = weakref.finalize  # it registers itself once a process, with the first thing to be finalized
    finalizers._registry.clear()
    finalizers._registered_with_atexit = False
