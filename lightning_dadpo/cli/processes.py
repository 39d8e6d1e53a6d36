"""Stages as processes: whoever asks `dadpo run` to go asks its stage, which ends in its own time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from lightning_dadpo.cli.forks import Fork

__all__ = ["run_stage"]


def run_stage(command: Sequence[str], forked: bool = False) -> int:
    """Run a stage's command to its end.

    SIGTERM is passed on to it, or to its launcher, which passes it on to its ranks: a training then finishes its step
    and writes its checkpoint. Ctrl-C the terminal sends to both; here it is left to the stage.

    Args:
        command: of which the first word is a program; for a fork, this Python, `-m` and a module.
        forked: from a process that has imported what stages import, see `Fork`.

    Returns:
        Its exit status; 128 + N where signal N ended it, as a shell says it.
    """
    process: subprocess.Popen[bytes] | Fork | None = None
    asked: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        asked.append(number)
        if process is not None and number == signal.SIGTERM:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        environment = {**os.environ, "DADPO_IN_EXPERIMENT": "1"}
        process = _fork(command, environment) if forked else subprocess.Popen(command, env=environment)
        for number in asked:  # while it was started; the terminal's Ctrl-C reaches a process, but not one to be forked
            if forked or number == signal.SIGTERM:
                process.send_signal(number)
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked and status == 0:
        signal.raise_signal(asked[0])  # it was finished anyway, and nothing else begins
    return status if status >= 0 else 128 - status


def _fork(command: Sequence[str], environment: dict[str, str]) -> Fork:
    assert list(command[:2]) == [sys.executable, "-m"]
    return Fork(command[2], command[3:], environment)
