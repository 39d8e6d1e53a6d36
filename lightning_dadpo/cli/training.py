"""`dadpo fit | validate | test | predict`: LightningCLI with our defaults and clean errors."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import yaml
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import DeepSpeedStrategy

from lightning_dadpo.cli.checkpoints import find_checkpoint
from lightning_dadpo.cli.command_parser import check_files, one_line
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.losses import (
    DPO,
    IPO,
    AnchoredPreference,
    ConservativeDPO,
    DaDPO,
    ForwardKL,
    HingePreference,
    JensenShannon,
    ResponseNLL,
    ReverseKL,
    RobustDPO,
    SimPO,
    SkewForwardKL,
    SkewReverseKL,
)
from lightning_dadpo.models.numerics import describe, training_precision
from lightning_dadpo.training.callbacks import RecordPairs, StepProgress, Throughput
from lightning_dadpo.training.checkpoints import BestCheckpoint, LastCheckpoint
from lightning_dadpo.training.checks import CheckScores
from lightning_dadpo.training.datamodule import PreferenceData, SupervisedData
from lightning_dadpo.training.distillation import DistillationModule
from lightning_dadpo.training.loggers import ExperimentLogger
from lightning_dadpo.training.preference import PreferenceModule
from lightning_dadpo.training.sharding import check_strategy
from lightning_dadpo.training.supervised import SupervisedModule
from lightning_dadpo.training.watch import WatchDistances

__all__ = ["run_lightning", "NAMED_IN_YAML"]

NAMED_IN_YAML = (
    AnchoredPreference, DaDPO, DPO, IPO, RobustDPO, ConservativeDPO, HingePreference, SimPO,
    ResponseNLL, ForwardKL, ReverseKL, JensenShannon, SkewForwardKL, SkewReverseKL,
    PreferenceModule, SupervisedModule, DistillationModule, PreferenceData, SupervisedData,
    LastCheckpoint, BestCheckpoint, RecordPairs, StepProgress, Throughput, CheckScores, ExperimentLogger,
    WatchDistances,
)  # fmt: skip
"""Imported so that a YAML can name them without their module."""

DEFAULTS = {
    "default_root_dir": "runs/fit",
    "use_distributed_sampler": False,  # our loaders know their rank (data.plan)
    "enable_model_summary": False,
    "enable_progress_bar": False,  # StepProgress shows optimizer steps and the time left
    "num_sanity_val_steps": 0,
}


class _Parser(LightningArgumentParser):  # type: ignore[misc]
    """Mistakes as one line and a hint, with exit status 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print(f"error: {one_line(message)}", file=sys.stderr)
        print("hint: --help lists every option, --print_config shows what the files come to", file=sys.stderr)
        sys.exit(2)


class _CLI(LightningCLI):  # type: ignore[misc]
    """LightningCLI whose flags are obeyed, also beside `--ckpt_path`."""

    def _parse_ckpt_path(self) -> None:
        """Lightning would replace `--model.*` by what the checkpoint was made with; here flags say what they mean."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.config.subcommand]
        path = config.get("ckpt_path")
        if path not in (None, "best", "last", "hpc", "registry") and not Path(path).exists():
            raise ConfigError(f"--ckpt_path {path}: no such checkpoint")
        if "DADPO_IN_EXPERIMENT" not in os.environ:  # `dadpo run` has said it once for all stages
            print(describe())

    def before_fit(self) -> None:
        """Scores are checked before every preference training, also where no YAML names the callback."""
        callbacks: list[L.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        named = any(isinstance(callback, CheckScores) for callback in callbacks)
        if isinstance(self.model, PreferenceModule) and isinstance(self.datamodule, PreferenceData) and not named:
            callbacks.insert(0, CheckScores(chosen_from_teacher=False))

    def before_validate(self) -> None:
        self._needs("validation")

    def before_test(self) -> None:
        self._needs("test")

    def before_predict(self) -> None:
        if not isinstance(self.model, PreferenceModule):
            raise ConfigError(
                f"predict: writes a row a pair, and model {type(self.model).__name__} trains on responses; "
                "expected PreferenceModule, or `dadpo test`"
            )
        self._needs("test")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Lightning is given paths alone."""
        given: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        return given | {"ckpt_path": find_checkpoint(self.trainer, subcommand, given["ckpt_path"])}

    def instantiate_trainer(self, **arguments: Any) -> L.Trainer:
        """Lightning would refuse with a traceback, when everything has been read."""
        trainer: L.Trainer = super().instantiate_trainer(**arguments)
        check_strategy(trainer.strategy)
        if type(trainer.strategy) is DeepSpeedStrategy and not isinstance(trainer.accelerator, CUDAAccelerator):
            kind = type(trainer.accelerator).__name__.removesuffix("Accelerator")
            raise ConfigError(f"trainer.strategy: DeepSpeed needs CUDA GPUs, this is {kind}; expected ddp or fsdp2")
        return trainer

    def _needs(self, split: str) -> None:
        """Lightning would say nothing, do nothing and call it a success."""
        sources = getattr(self.datamodule, "sources", {split: True})
        if sources[split] is None:
            raise ConfigError(
                f"data.{split}: nothing to {self.config.subcommand} on; give it a folder "
                f"(--data.init_args.{split}.folder FOLDER)"
            )


class _SaveConfig(SaveConfigCallback):  # type: ignore[misc]
    """The resolved configuration beside the curves, and in the tracked run."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        resolved = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        for logger in trainer.loggers:
            if isinstance(logger, ExperimentLogger):
                logger.log_hyperparams(resolved)


def run_lightning(arguments: list[str]) -> None:
    """Parse and run one of Lightning's subcommands."""
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero.*")  # no validation
    warnings.filterwarnings("ignore", message=".*module.* in eval mode at the start of training.*")  # frozen ones are
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # our means are all ranks' already
    warnings.filterwarnings("ignore", message=".*`logger=True` will use `CSVLogger`.*")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    check_files(arguments)
    _CLI(
        L.LightningModule,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=_Parser,
        auto_configure_optimizers=False,
        trainer_defaults=DEFAULTS | {"precision": training_precision()},
        save_config_callback=_SaveConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        args=None if arguments == sys.argv[1:] else arguments,
    )
