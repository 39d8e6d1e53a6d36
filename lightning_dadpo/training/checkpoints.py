"""Checkpoints: the last one, to go on from, and the best one; whole at every moment, under every strategy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dadpo.training.preemption import Preemption
from lightning_dadpo.training.sharding import writes_folders

__all__ = ["LastCheckpoint", "BestCheckpoint", "checkpoint_folder"]


class _WholeCheckpoint(ModelCheckpoint):
    """One name that always leads to a whole checkpoint.

    A file is written beside the old one and renamed by Lightning. Strategies that write a folder, a part a rank,
    write in place; here each writing has a folder of its own and the name is a link, moved when all parts are there.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Put the folder where a rerun of the same command finds it."""
        self.dirpath = self.dirpath or checkpoint_folder(trainer)
        super().setup(trainer, pl_module, stage)

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        if not writes_folders(trainer.strategy):
            super()._save_checkpoint(trainer, filepath)
            return
        link = Path(filepath)
        version = link.with_name(f".{link.stem}-{trainer.global_step}{link.suffix}")
        if trainer.is_global_zero:
            _remove_versions(link, but=link.resolve() if link.exists() else None)  # parts that a kill has left
        trainer.strategy.barrier()
        super()._save_checkpoint(trainer, str(version))
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            moved = link.with_name(f".{link.name}.new")
            moved.unlink(missing_ok=True)
            moved.symlink_to(version.name)
            os.replace(moved, link)
            _remove_versions(link, but=version)
        trainer.strategy.barrier()


def _remove_versions(link: Path, but: Path | None) -> None:
    for folder in link.parent.glob(f".{link.stem}-*{link.suffix}"):
        if but is None or folder.name != but.name:
            shutil.rmtree(folder)


class LastCheckpoint(_WholeCheckpoint):
    """`last.ckpt`: everything that a killed run needs to go on, every N steps, at the end, and when it is asked to go.

    Args:
        every_n_steps: optimizer steps between two checkpoints.
        dirpath: folder; by default `checkpoints` under `trainer.default_root_dir`.
    """

    def __init__(self, every_n_steps: int = 100, dirpath: str | None = None) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="last",
            every_n_train_steps=every_n_steps,
            save_top_k=1,
            enable_version_counter=False,
        )
        self._preemption: Preemption | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to SIGTERM from now on."""
        super().on_train_start(trainer, pl_module)
        self._preemption = Preemption(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Only behind a whole optimizer step: the gradients of half a step are not in a checkpoint.

        Without this a run that was resumed at step N saves again at its next micro-batch, which is still step N.
        """
        if trainer.fit_loop._should_accumulate():
            return
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._preemption is not None and self._preemption.asked():
            self._save_now(trainer)
            self._preemption.leave()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last step too, when it is no multiple of N."""
        self._save_now(trainer)
        super().on_train_end(trainer, pl_module)

    def _save_now(self, trainer: L.Trainer) -> None:
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


class BestCheckpoint(_WholeCheckpoint):
    """`best.ckpt`: the student's weights at the best value so far of any logged name; no optimizer, so no resuming.

    Args:
        monitor: a logged name, for example val/reverse_kl. Stop by a distance, never by the margin: at a rate that is
            too high the margin improves while the student breaks.
        mode: whether less or more of it is better.
        dirpath: folder; by default `checkpoints` under `trainer.default_root_dir`.
    """

    def __init__(
        self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min", dirpath: str | None = None
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            save_weights_only=True,
            enable_version_counter=False,
        )


def checkpoint_folder(trainer: L.Trainer) -> str:
    """Where a rerun of the same command finds the checkpoints, and `dadpo run` too."""
    return str(Path(trainer.default_root_dir) / "checkpoints")
