"""What the module does differently where a strategy spreads weights over ranks; nothing under one process or DDP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.sharding import partitioned_while_loading, shard_layers
from lightning_dadpo.training.checkpoint_files import write_whole_files

__all__ = [
    "check_strategy", "prepare_strategy", "loading_under", "shard_under", "weights_are_spread",
    "refuse_to_spread_quantized", "writes_folders", "gradient_norm",
]  # fmt: skip


def check_strategy(strategy: Strategy) -> None:
    """Refuse what cannot work, or would leave what nobody can use.

    Raises:
        ConfigError: the strategy would lose the models or a part of them, or its checkpoints could run code.
    """
    if isinstance(strategy, FSDPStrategy):
        raise ConfigError("trainer.strategy fsdp: expected FSDP2, see configs/trainer/fsdp2.yaml")
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise ConfigError("trainer.strategy ddp_spawn: its processes do not get the models; expected ddp")
    if isinstance(strategy, ModelParallelStrategy) and strategy._save_distributed_checkpoint:
        raise ConfigError(
            "trainer.strategy.save_distributed_checkpoint true: such a checkpoint begins with a pickled index, which "
            "runs code when it is read; expected false, as in configs/trainer/fsdp2.yaml"
        )


def prepare_strategy(strategy: Strategy) -> None:
    """Refuse what cannot work, write checkpoints whole, and tell DeepSpeed what it cannot find out.

    Raises:
        ConfigError: see `check_strategy`; or ranks would share no model.
    """
    check_strategy(strategy)
    if isinstance(strategy, ModelParallelStrategy):
        _refuse_tensor_parallelism(strategy)
    write_whole_files(strategy)
    # the examples of a micro-batch, for its own log alone; ours have no fixed number
    if isinstance(strategy, DeepSpeedStrategy) and isinstance(strategy.config, dict):
        strategy.config.setdefault("train_micro_batch_size_per_gpu", 1)


def _refuse_tensor_parallelism(strategy: ModelParallelStrategy) -> None:
    """Models are spread over the mesh's data parallel ranks alone, so along the other axis each would train its own.

    Raises:
        ConfigError: saying what to write instead; Lightning's "auto" means all devices of a node.
    """
    sharing, processes = strategy.device_mesh["data_parallel"].size(), strategy.world_size
    if sharing != processes:
        apart = processes // sharing
        raise ConfigError(
            f"trainer.strategy: data_parallel_size {sharing} and tensor_parallel_size {apart}: layers are not split, "
            f"and {apart} models would be trained apart; expected data_parallel_size: {processes} and "
            "tensor_parallel_size: 1 in init_args, as in configs/trainer/fsdp2.yaml"
        )


@contextmanager
def loading_under(strategy: Strategy) -> Iterator[None]:
    """Models are loaded inside this context: under ZeRO-3 their weights are partitioned while they are read."""
    if isinstance(strategy, DeepSpeedStrategy):
        strategy._init_config_if_needed()  # Lightning itself does it later than a model is made
        if strategy.zero_stage_3:
            assert isinstance(strategy.config, dict)
            with partitioned_while_loading(strategy.config):
                yield
            return
    yield


def shard_under(strategy: Strategy, model: Any) -> None:
    """Under FSDP2 spread a loaded model, trained or frozen, over the ranks that share the data."""
    if isinstance(strategy, ModelParallelStrategy):
        shard_layers(model, strategy.device_mesh["data_parallel"])


def weights_are_spread(strategy: Strategy) -> bool:
    """Whether no rank holds a whole model, so that a model can only be asked by all ranks at once."""
    if isinstance(strategy, DeepSpeedStrategy):
        return strategy.zero_stage_3
    return isinstance(strategy, FSDPStrategy | ModelParallelStrategy)


def refuse_to_spread_quantized(strategy: Strategy, setting: str) -> None:
    """FSDP2 and ZeRO-3 know nothing of packed weights and their constants.

    Raises:
        ConfigError: naming the setting and the strategy.
    """
    if weights_are_spread(strategy):
        raise ConfigError(
            f"{setting}: {type(strategy).__name__} would spread rounded weights over ranks; expected ddp or one process"
        )


def gradient_norm(trainer: L.Trainer, model: nn.Module) -> Tensor | None:
    """The norm over all ranks' parts of the gradient, before clipping; None where DeepSpeed keeps it to itself."""
    if isinstance(trainer.strategy, DeepSpeedStrategy):
        return None
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def writes_folders(strategy: Strategy) -> bool:
    """Whether a checkpoint is a folder with a part a rank instead of one file."""
    return isinstance(strategy, DeepSpeedStrategy)
