"""The one place that undoes what the frameworks divide a loss by.

Our losses are sums over a micro-batch divided by the global count of the optimizer step, so micro-batches and
ranks should simply add up. Lightning divides every loss by `accumulate_grad_batches`, DeepSpeed divides it by the same
number once more, and DDP, FSDP and DeepSpeed average gradients over ranks; all of it is multiplied back here. AdamW
would hide a wrong factor, and clipping would not. Every step has all of its micro-batches (`data.plan`), so a short
last window does not exist.
"""

from __future__ import annotations

import lightning as L
from lightning.pytorch.strategies import DeepSpeedStrategy

__all__ = ["framework_divisor"]


def framework_divisor(trainer: L.Trainer) -> int:
    """What the gradient of one micro-batch's loss will be divided by before it reaches the optimizer."""
    micro_batches = trainer.accumulate_grad_batches
    if isinstance(trainer.strategy, DeepSpeedStrategy):
        micro_batches *= trainer.accumulate_grad_batches
    return micro_batches * trainer.world_size
