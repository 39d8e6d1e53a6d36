"""`--ckpt_path last` and `best`: files that an earlier process wrote, and what is said when there are none."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.training.checkpoints import BestCheckpoint, checkpoint_folder
from lightning_dadpo.training.resuming import check_checkpoint

__all__ = ["find_checkpoint"]


def find_checkpoint(trainer: L.Trainer, subcommand: str, asked: str | None) -> str | None:
    """The path behind `last` or `best`; anything else is given back as it is.

    A job that is put into the queue again always has the same command, so `fit --ckpt_path last` without a checkpoint
    is its first start. Lightning says so in five lines, and knows `best` only of trainings in the same process.

    Args:
        trainer: whose callbacks know where they write.
        subcommand: fit, validate, test or predict.
        asked: what the flag says.

    Raises:
        ConfigError: there is no such checkpoint to measure, another strategy wrote it, or a training would go on from
            weights alone.
    """
    named = {"last": _last, "best": _best}
    found = named[asked](trainer, subcommand) if asked in named else asked
    if found is not None:
        check_checkpoint(trainer, found)
    return found


def _last(trainer: L.Trainer, subcommand: str) -> str | None:
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    found = {Path(path) for callback in callbacks for path in callback._find_last_checkpoints(trainer)}
    if found:
        return str(max(found, key=lambda path: path.stat().st_mtime))
    if subcommand != "fit":
        raise ConfigError(f"--ckpt_path last: no last.ckpt in {checkpoint_folder(trainer)}")
    if trainer.is_global_zero:
        print(f"--ckpt_path last: no checkpoint in {checkpoint_folder(trainer)} yet, so training begins", flush=True)
    return None


def _best(trainer: L.Trainer, subcommand: str) -> str:
    if subcommand == "fit":
        raise ConfigError("--ckpt_path best: it holds weights alone; a training goes on from `last`")
    ours = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint)]
    if not ours:
        raise ConfigError("--ckpt_path best: there is no BestCheckpoint among trainer.callbacks; give the file's path")
    path = Path(str(ours[0].dirpath or checkpoint_folder(trainer))) / "best.ckpt"
    if not path.exists():
        raise ConfigError(f"--ckpt_path best: {path}: no such checkpoint")
    return str(path)
