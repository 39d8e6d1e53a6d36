"""Stages as processes: whoever asks `dadpo run` to go asks its stage, which ends in its own time."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

__all__ = ["run_stage"]


def run_stage(command: Sequence[str]) -> int:
    """Run a stage's command to its end.

    SIGTERM is passed on to it, or to its launcher, which passes it on to its ranks: a training then finishes its step
    and writes its checkpoint. Ctrl-C the terminal sends to both; here it is left to the stage.

    Returns:
        Its exit status; 128 + N where signal N ended it, as a shell says it.
    """
    process: subprocess.Popen[bytes] | None = None
    asked: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        asked.append(number)
        if process is not None and number == signal.SIGTERM:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        process = subprocess.Popen(command, env={**os.environ, "DADPO_IN_EXPERIMENT": "1"})
        if signal.SIGTERM in asked:  # while it was started
            process.terminate()
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked and status == 0:
        signal.raise_signal(asked[0])  # it was finished anyway, and nothing else begins
    return status if status >= 0 else 128 - status
