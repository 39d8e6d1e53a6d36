"""Parameter groups, and the learning rate step by step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.loading import load_model
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.training.optimization import Schedule, parameter_groups, warmup_then_cosine


def rates(schedule: Schedule, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = warmup_then_cosine(optimizer, schedule, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_warm_up_and_cosine_by_hand() -> None:
    # 8 steps, 3 of them rising to a quarter, two quarters, three quarters of 2.0; then five down from the peak
    expected = [0.5, 1.0, 1.5] + [1 + math.cos(math.pi * step / 5) for step in range(5)]
    assert rates(Schedule(warmup_share=0.3), 8) == pytest.approx(expected)


def test_the_floor_is_a_share_of_the_peak() -> None:
    found = rates(Schedule(warmup_share=0.0, final_share=0.5), 4)
    assert found == pytest.approx([1.0 + 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)])
    assert rates(Schedule(warmup_share=0.0, final_share=1.0), 3) == [2.0] * 3


def test_no_step_has_rate_zero_and_one_step_is_enough() -> None:
    assert all(rate > 0 for rate in rates(Schedule(), 30))
    assert rates(Schedule(), 1) == [1.0]  # the only step is the warm-up's, half way up


@pytest.mark.parametrize(("name", "value"), [("warmup_share", 1.0), ("warmup_share", -0.1), ("final_share", 1.1)])
def test_a_share_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"schedule.{name} {value}: expected"):
        Schedule(**{name: value})


def test_norms_and_biases_are_never_decayed_and_every_trainable_parameter_is_in_one_group(tiny_folder: Path) -> None:
    model = load_model(ModelSpec(str(tiny_folder)))
    groups = parameter_groups(model)
    assert "weight_decay" not in groups[0]
    assert groups[1]["weight_decay"] == 0.0
    assert all(parameter.ndim >= 2 for parameter in groups[0]["params"])
    assert all(parameter.ndim < 2 for parameter in groups[1]["params"])
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted({id(parameter) for parameter in model.parameters()})  # tied weights once
    optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_D3_what_needs_no_gradient_stays_out_and_nothing_to_train_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert [tuple(p.shape) for group in parameter_groups(model) for p in group["params"]] == [(2, 2), (2,)]
    with pytest.raises(ConfigError, match="no trainable parameter"):
        parameter_groups(model.requires_grad_(False))
