"""One training at a time in a folder, for as long as its process lives."""

from __future__ import annotations

import fcntl
import os
import platform
from pathlib import Path

import lightning as L

from lightning_dadpo.errors import ConfigError

__all__ = ["hold_folder"]


def hold_folder(trainer: L.Trainer, folder: str) -> int | None:
    """Lock a folder of checkpoints; all ranks must call this.

    The lock ends with the process that holds it, however it ends. It is of the kind that forked workers do not
    inherit, so none of them keeps it when the training itself was killed.

    Args:
        trainer: whose rank 0 takes the lock.
        folder: the checkpoints; the lock is a hidden file beside it.

    Returns:
        What `os.close` gives free, on rank 0.

    Raises:
        ConfigError: another process holds it, for example a training whose `dadpo run` was killed.
    """
    descriptor, owner = None, ""
    if trainer.is_global_zero:
        path = Path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.read(descriptor, 200).decode(errors="replace") or "unknown"
            os.close(descriptor)
        else:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()} on {platform.node()}".encode())
    owner = trainer.strategy.broadcast(owner)
    if owner:
        raise ConfigError(f"{folder}: another training is at work there (process {owner}); wait for it or stop it")
    return descriptor
