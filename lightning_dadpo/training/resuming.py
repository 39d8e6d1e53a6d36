"""A training that goes on obeys the flags it was started with: a checkpoint brings back states, not settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks.early_stopping import EarlyStopping, EarlyStoppingReason
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch.optim.lr_scheduler import LambdaLR

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.consolidate import TAG
from lightning_dadpo.training.sharding import writes_folders

__all__ = ["ObeyFlags", "check_checkpoint", "has_more_patience"]


class ObeyFlags(L.Callback):
    """Puts back what restoring has overruled: the optimizer's settings, its learning rates, an early stop's patience.

    torch and Lightning keep those beside the moments and the counts, and bring both back together. Where no flag has
    changed, what is put back is what was restored, bit by bit.
    """

    def __init__(self) -> None:
        self._settings: list[dict[str, Any]] = []
        self._patience: dict[EarlyStopping, int] = {}
        self._optimizer_before: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Note the patience, which Lightning restores next."""
        self._patience = {callback: callback.patience for callback in _early_stops(trainer)}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the optimizer's settings: it has been made, and nothing was restored into it."""
        groups = _scheduler(trainer).optimizer.param_groups
        self._settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's kind: its moments mean nothing to another one."""
        return {"optimizer": self._optimizer_before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self._optimizer_before = state_dict["optimizer"]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse what Lightning would refuse later.

        Raises:
            ConfigError: more was trained already than was asked for.
        """
        most = trainer.max_epochs
        if trainer.state.fn != "fit" or most in (None, -1):
            return
        done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        if done > most:
            raise ConfigError(f"cannot resume: {done} epochs are behind it, and trainer.max_epochs is {most}")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the settings back, with the learning rate that they mean at this step; say what has changed.

        Raises:
            ConfigError: the optimizer is of another kind.
        """
        scheduler = _scheduler(trainer)
        kind = type(scheduler.optimizer).__name__
        if self._optimizer_before not in (None, kind):
            raise ConfigError(f"cannot resume: the optimizer was {self._optimizer_before} and is {kind} now")
        self._optimizer_before = kind
        changed: dict[str, str] = {}
        for group, settings in zip(scheduler.optimizer.param_groups, self._settings, strict=True):
            for name, value in settings.items():
                if name != "lr" and group[name] != value:
                    changed.setdefault(name.removeprefix("initial_"), f"{value} (was {group[name]})")
            group.update(settings)
        scheduler.base_lrs = [settings["initial_lr"] for settings in self._settings]
        rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        scheduler._last_lr = [base * factor(scheduler.last_epoch) for base, factor in rates]
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate
        for callback, patience in self._patience.items():
            callback.patience = patience
        if changed and trainer.is_global_zero:
            print(f"the training goes on with {', '.join(f'{name} {said}' for name, said in changed.items())}")


def _early_stops(trainer: L.Trainer) -> list[EarlyStopping]:
    return [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]  # type: ignore[attr-defined]


def _scheduler(trainer: L.Trainer) -> LambdaLR:
    """Ours; it knows torch's own optimizer, also where DeepSpeed has put another one around it."""
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert isinstance(scheduler, LambdaLR)
    return scheduler


def has_more_patience(trainer: L.Trainer) -> bool:
    """Whether a run that had lost its patience was given more."""
    exhausted = EarlyStoppingReason.PATIENCE_EXHAUSTED
    return any(stop.stopping_reason is exhausted and stop.wait_count < stop.patience for stop in _early_stops(trainer))


def check_checkpoint(trainer: L.Trainer, checkpoint: str) -> None:
    """Hold a checkpoint to the strategy that is to read it, before the strategy tries.

    Raises:
        ConfigError: it is a folder where a file is read, or the other way round; or DeepSpeed wrote it on another
            number of processes.
    """
    path, strategy = Path(checkpoint), trainer.strategy
    kind = type(strategy).__name__
    if path.is_dir() != writes_folders(strategy) and path.exists():
        wrote, reads = ("a folder", "one file") if path.is_dir() else ("one file", "a folder")
        raise ConfigError(
            f"--ckpt_path {path}: is {wrote}, and {kind} reads {reads}; expected the same trainer.strategy"
        )
    if isinstance(strategy, DeepSpeedStrategy) and path.is_dir():
        was, now = len(list((path / TAG).glob("*_optim_states.pt"))), trainer.world_size
        if was != now:
            raise ConfigError(f"cannot resume: world_size was {was} and is {now} now (--ckpt_path {path})")
