"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_dadpo.errors import ConfigError

__all__ = ["Schedule", "parameter_groups", "warmup_then_cosine"]


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine down to a floor.

    Attributes:
        warmup_share: share of all optimizer steps during which the rate rises, in [0, 1).
        final_share: the rate at the end, as a share of its peak, in [0, 1].
    """

    warmup_share: float = 0.1
    final_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_share < 1:
            raise ConfigError(f"schedule.warmup_share {self.warmup_share}: expected a number in [0, 1)")
        if not 0 <= self.final_share <= 1:
            raise ConfigError(f"schedule.final_share {self.final_share}: expected a number in [0, 1]")


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices, and vectors (norms, biases) that are never decayed.

    Raises:
        ConfigError: nothing is trainable.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError("the student has no trainable parameter")
    # under ZeRO-3 a weight is empty between its uses, and only `ds_shape` tells what it is
    shapes = [getattr(parameter, "ds_shape", parameter.shape) for parameter in trainable]
    matrices = [parameter for parameter, shape in zip(trainable, shapes, strict=True) if len(shape) >= 2]
    vectors = [parameter for parameter, shape in zip(trainable, shapes, strict=True) if len(shape) < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}] if matrices else []
    return groups + ([{"params": vectors, "weight_decay": 0.0}] if vectors else [])


def warmup_then_cosine(optimizer: Optimizer, schedule: Schedule, total_steps: int) -> LambdaLR:
    """The factor on the peak rate at each optimizer step; the first step is already above zero."""
    warmup = math.ceil(schedule.warmup_share * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return schedule.final_share + (1 - schedule.final_share) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)
