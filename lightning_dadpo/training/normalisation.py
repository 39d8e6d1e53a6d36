"""The one place that undoes what the frameworks divide a loss by.

Our losses are sums over a micro-batch divided by the global count of the optimizer step, so micro-batches and
ranks should simply add up. Lightning divides every loss by `accumulate_grad_batches`, and DDP and FSDP average
gradients over ranks; both are multiplied back here. Every step has all of its micro-batches (`data.plan`), so a
short last window does not exist.
"""

from __future__ import annotations

import lightning as L

__all__ = ["framework_divisor"]


def framework_divisor(trainer: L.Trainer) -> int:
    """What the gradient of one micro-batch's loss will be divided by before it reaches the optimizer."""
    return trainer.accumulate_grad_batches * trainer.world_size
