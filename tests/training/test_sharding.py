"""What is refused of a strategy that spreads weights, when its processes have found each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import pytest
import torch.distributed
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.training.sharding import prepare_strategy


@contextmanager
def two_processes(data_parallel: Any, tensor_parallel: Any) -> Iterator[ModelParallelStrategy]:
    """Lightning's own mesh over two ranks, of which only this one exists."""
    strategy = ModelParallelStrategy(data_parallel, tensor_parallel, save_distributed_checkpoint=False)
    L.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False)
    strategy._lightning_module = L.LightningModule()
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)  # type: ignore[no-untyped-call]
    try:
        strategy.setup_environment()
        yield strategy
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("sizes", [("auto", "auto"), (1, 2)])
def test_D1_two_ranks_that_would_each_train_a_model_of_their_own_are_refused(sizes: tuple[Any, Any]) -> None:
    """Planted: without the check each rank steps on its own half, along a gradient of twice its size."""
    with two_processes(*sizes) as strategy, pytest.raises(ConfigError) as refused:
        prepare_strategy(strategy)
    assert str(refused.value) == (
        "trainer.strategy: data_parallel_size 1 and tensor_parallel_size 2: layers are not split, and 2 models would "
        "be trained apart; expected data_parallel_size: 2 and tensor_parallel_size: 1 in init_args, as in "
        "configs/trainer/fsdp2.yaml"
    )


def test_all_ranks_sharing_one_model_are_taken() -> None:
    with two_processes(2, 1) as strategy:
        prepare_strategy(strategy)
        assert strategy.device_mesh["data_parallel"].size() == strategy.world_size == 2
