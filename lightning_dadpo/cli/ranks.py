"""Several processes of one training, started by Lightning, that end together and speak with one voice."""

from __future__ import annotations

import os
import time

__all__ = ["end_behind_rank_zero", "STARTED_BY"]

STARTED_BY = os.getppid()
"""The process that started this one."""

PATIENCE = 20.0
"""Seconds; what rank 0 may need to close its loggers."""


def end_behind_rank_zero() -> bool:
    """Let the process that started this rank say how the training ended, with an exit status of its own.

    Lightning kills it as soon as a rank has ended before it, in the middle of what it does at its end.

    Returns:
        Whether it has said it; not if this is rank 0, nor if it goes on and only this rank has failed.
    """
    elsewhere = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ
    if elsewhere or os.environ.get("LOCAL_RANK", "0") == "0":
        return False
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if os.getppid() != STARTED_BY:
            return True
        time.sleep(0.05)
    return False
