"""Checkpoints: the last one, to go on from, and the best one; whole at every moment, under every strategy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.training.checkpoint_files import free_version, lead_to
from lightning_dadpo.training.lock import hold_folder
from lightning_dadpo.training.preemption import Preemption
from lightning_dadpo.training.resuming import has_more_patience
from lightning_dadpo.training.sharding import writes_folders
from lightning_dadpo.training.student import StudentModule

__all__ = ["LastCheckpoint", "BestCheckpoint", "checkpoint_folder"]


class _WholeCheckpoint(ModelCheckpoint):
    """One name that always leads to a whole checkpoint.

    A file is written beside the old one and renamed (`WholeFiles`). Strategies that write a folder, a part a rank,
    write in place; here each writing has a folder of its own and the name is a link, moved when all parts are there.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Put the folder where a rerun of the same command finds it."""
        self.dirpath = self.dirpath or checkpoint_folder(trainer)
        super().setup(trainer, pl_module, stage)

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        """What `ckpt_path="last"` finds; Lightning asks before `setup`, and would look into the logger's folder."""
        self.dirpath = self.dirpath or checkpoint_folder(trainer)
        return super()._find_last_checkpoints(trainer)

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        if not writes_folders(trainer.strategy):
            super()._save_checkpoint(trainer, filepath)
            return
        link = Path(filepath)
        version = Path(trainer.strategy.broadcast(str(free_version(link)) if trainer.is_global_zero else ""))
        super()._save_checkpoint(trainer, str(version))
        self._last_checkpoint_saved = filepath
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            lead_to(link, version)
        trainer.strategy.barrier()


class LastCheckpoint(_WholeCheckpoint):
    """`last.ckpt`: everything that a killed run needs to go on, every N steps, at the end, and when it is asked to go.

    It is written when all that belongs to a step is done: after a validation that is due behind it, and after other
    callbacks. So nothing of a step is left out or done twice by the run that goes on.

    Other checkpoint callbacks may stand beside it. What they write between the micro-batches of a step (by the clock,
    on an exception) is whole and can be exported, but a training does not go on from it.

    Args:
        every_n_steps: optimizer steps between two checkpoints.
        dirpath: folder; by default `checkpoints` under `trainer.default_root_dir`.
    """

    def __init__(self, every_n_steps: int = 100, dirpath: str | None = None) -> None:
        if every_n_steps < 1:
            raise ConfigError(f"LastCheckpoint.every_n_steps {every_n_steps}: expected at least 1")
        super().__init__(
            dirpath=dirpath,
            filename="last",
            every_n_train_steps=every_n_steps,
            save_top_k=1,
            enable_version_counter=False,
        )
        self._preemption: Preemption | None = None
        self._lock: int | None = None
        self._stopped = False
        self._beside: list[ModelCheckpoint] = []
        self._means: list[dict[str, Tensor]] = []
        self._written, self._leaves = True, False
        self._steps_saved_beside: dict[str, int] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Become the last of all callbacks; where something is trained, make sure that nobody else trains there.

        Raises:
            ConfigError: another process does.
        """
        super().setup(trainer, pl_module, stage)
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]
        self._beside = [callback for callback in others if isinstance(callback, ModelCheckpoint)]
        if stage == "fit":
            self._lock = hold_folder(trainer, str(self.dirpath))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let others train there."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """As `teardown`, which Lightning leaves out then."""
        self.teardown(trainer, pl_module, "fit")

    @property
    def state_key(self) -> str:
        """The same, however often it saves: Lightning's own would lose the state where that flag has changed."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """See Lightning; and what it forgets: that the run was to stop early, and when others have saved last."""
        saved = {callback.state_key: callback._last_global_step_saved for callback in self._beside}
        return super().state_dict() | {"stopped": self._stopped, "steps_saved_beside": saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        super().load_state_dict(state_dict)
        self._stopped, self._steps_saved_beside = state_dict["stopped"], state_dict["steps_saved_beside"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Every rank's share of the means that are logged next, where not every step is logged."""
        if isinstance(pl_module, StudentModule):
            means = [pl_module.training_means.so_far()]
            if trainer.world_size > 1:
                means *= trainer.world_size
                torch.distributed.all_gather_object(means, means[0])
            checkpoint["training_means"] = means

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """See `on_save_checkpoint`."""
        self._means = checkpoint.get("training_means", [])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to SIGTERM from now on; go on where the checkpoint left others, too.

        Lightning's would save again at the first micro-batch of a run that goes on, in the middle of a step.
        """
        super().on_train_start(trainer, pl_module)
        self._preemption = Preemption(trainer, str(self.dirpath))
        self._last_global_step_saved = trainer.global_step
        for callback in self._beside:
            by_steps = callback._every_n_train_steps >= 1
            saved = self._steps_saved_beside.get(callback.state_key, callback._last_global_step_saved)
            callback._last_global_step_saved = trainer.global_step if by_steps else saved
        trainer.should_stop |= self._stopped and not has_more_patience(trainer)
        if self._means and isinstance(pl_module, StudentModule):
            pl_module.training_means.go_on_from(self._means[trainer.global_rank])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write the logs of every step that is in the checkpoint; then leave, if the run was asked to.

        Both wait until here because Lightning logs a step behind the last of its hooks.

        Raises:
            SIGTERMException: the run was asked to go.
        """
        if not self._written:
            _write_logs(trainer)
            self._written = True
        if self._leaves and self._preemption is not None:
            self._preemption.leave()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Behind a whole optimizer step, and not yet if more belongs to it.

        The gradients of half a step are in no checkpoint.
        """
        if not (trainer.fit_loop._should_accumulate() or _ends_the_epoch(trainer) or _is_validated_next(trainer)):
            self._end_step(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Behind the validation of a step."""
        in_training = trainer.state.fn == "fit" and not trainer.sanity_checking
        if in_training and not trainer.fit_loop._should_accumulate() and not _ends_the_epoch(trainer):
            self._end_step(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Behind the last step of an epoch, its validation and what others do at its end."""
        self._end_step(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last step too, when it is no multiple of N."""
        self._save_now(trainer)

    def _end_step(self, trainer: L.Trainer) -> None:
        asked = self._preemption is not None and self._preemption.asked()
        if asked or trainer.global_step % self._every_n_train_steps == 0:
            self._save_now(trainer)
        self._leaves = asked

    def _save_now(self, trainer: L.Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._stopped = bool(trainer.should_stop)
            _write_logs(trainer)  # all but this step's: Lightning logs it behind this hook
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            self._written = False


def _write_logs(trainer: L.Trainer) -> None:
    for logger in trainer.loggers:
        logger.save()


def _ends_the_epoch(trainer: L.Trainer) -> bool:
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def _is_validated_next(trainer: L.Trainer) -> bool:
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    return fetcher is not None and not loop.val_loop.skip and loop._should_check_val_fx(fetcher)


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
