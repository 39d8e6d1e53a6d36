"""What Lightning divides by is multiplied back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lightning_dadpo.training.normalisation import framework_divisor


@pytest.mark.parametrize(("accumulate", "world", "expected"), [(1, 1, 1), (4, 1, 4), (1, 2, 2), (4, 2, 8)])
def test_the_divisor_is_micro_batches_times_ranks(accumulate: int, world: int, expected: int) -> None:
    trainer: Any = SimpleNamespace(accumulate_grad_batches=accumulate, world_size=world)
    assert framework_divisor(trainer) == expected
