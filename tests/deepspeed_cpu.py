"""DeepSpeed's real engine on CPUs: Lightning refuses them, the engine does not."""

from __future__ import annotations

import os

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy

__all__ = ["DeepSpeedOnCpu"]


class DeepSpeedOnCpu(DeepSpeedStrategy):
    """Everything but the refusal is Lightning's and DeepSpeed's own."""

    def __init__(self, stage: int) -> None:
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or a C++ build of a minute
        super().__init__(stage=stage, process_group_backend="gloo", exclude_frozen_parameters=True)

    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank)
