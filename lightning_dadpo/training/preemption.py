"""A run that is asked to go finishes its optimizer step, writes its checkpoint and leaves.

Lightning's own handlers act in the middle of a step, where the gradients so far are in no checkpoint, and talk to the
other ranks from inside the handler, beside whatever they are exchanging. Here a signal sets a flag, and the ranks
agree on it between two steps.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException

__all__ = ["Preemption", "TERMINATED"]

TERMINATED = 128 + int(signal.SIGTERM)
"""Exit status of a process that SIGTERM ended."""

IMPATIENT_SECONDS = 2.0
"""Behind a first Ctrl-C; what comes sooner is the same one, sent by the terminal and by a launcher."""


class Preemption:
    """Listens from the start of training on: SIGTERM, Ctrl-C, and under SLURM the signal that announces a requeue.

    Args:
        trainer: whose ranks have to agree; the handlers that were there before it are put back by Lightning when the
            run ends.
        folder: where the checkpoint is, for the message.
    """

    def __init__(self, trainer: L.Trainer, folder: str) -> None:
        self.trainer, self.folder = trainer, folder
        self._asked = self._requeue = False
        self._interrupted: float | None = None
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers
        self._asked = trainer.received_sigterm  # by Lightning's handler, a moment ago
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGINT, self._interrupt)
        slurm = trainer._accelerator_connector.cluster_environment
        if isinstance(slurm, SLURMEnvironment) and slurm.auto_requeue:
            signal.signal(slurm.requeue_signal or signal.SIGUSR1, self._ask_for_requeue)

    def _terminate(self, number: int, frame: Any) -> None:
        self._asked = True

    def _interrupt(self, number: int, frame: Any) -> None:
        """Ctrl-C: the first is SIGTERM's kind, a later one ends the run at once; launchers send the first one twice."""
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            if self.trainer.is_global_zero:
                print("asked to stop behind this step; Ctrl-C again stops at once", flush=True)
        elif now - self._interrupted > IMPATIENT_SECONDS:
            raise KeyboardInterrupt
        self._asked = True

    def _ask_for_requeue(self, number: int, frame: Any) -> None:
        self._asked = self._requeue = True

    def asked(self) -> bool:
        """Whether any rank was asked to go; all ranks must call this behind the same step."""
        return self._any_rank(self._asked)

    def _any_rank(self, flag: bool) -> bool:
        if self.trainer.world_size == 1:
            return flag
        return bool(self.trainer.strategy.reduce_boolean_decision(flag, all=False))

    def leave(self) -> None:
        """End the run, its checkpoint written; under SLURM put the job into the queue again if that was the signal.

        All ranks must call this.

        Raises:
            SIGTERMException: always; it ends the process with status 143.
        """
        requeue = self._any_rank(self._requeue)
        if self.trainer.is_global_zero:
            queued = f"; {_requeue_job()}" if requeue else ""
            step = self.trainer.global_step
            print(f"asked to stop: the checkpoint of step {step} is in {self.folder}{queued}", flush=True)
        raise SIGTERMException(TERMINATED)


def _requeue_job() -> str:
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True)
    except OSError as error:
        return f"SLURM job {job} was not put into the queue again ({error})"
    if done.returncode:
        return f"SLURM job {job} was not put into the queue again ({done.stderr.strip()})"
    return f"SLURM job {job} is in the queue again"
