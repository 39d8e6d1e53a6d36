"""What Lightning divides by is multiplied back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy

from lightning_dadpo.training.normalisation import framework_divisor


@pytest.mark.parametrize(
    ("strategy", "accumulate", "world", "expected"),
    [
        (DDPStrategy, 1, 1, 1),
        (DDPStrategy, 4, 1, 4),
        (DDPStrategy, 1, 2, 2),
        (DDPStrategy, 4, 2, 8),
        (DeepSpeedStrategy, 1, 2, 2),
        (DeepSpeedStrategy, 4, 2, 32),  # Lightning and DeepSpeed both divide by the micro-batches
    ],
)
def test_the_divisor_is_what_all_frameworks_divide_by(
    strategy: Any, accumulate: int, world: int, expected: int
) -> None:
    trainer: Any = SimpleNamespace(
        accumulate_grad_batches=accumulate, world_size=world, strategy=strategy.__new__(strategy)
    )
    assert framework_divisor(trainer) == expected
