"""Planned loaders: which rows come when, and how an epoch goes on in its middle."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from lightning_dadpo.data.plan import MicroBatch, Plan, plan_evaluation
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.training.loader import PlannedLoader, evaluation_loader

COSTS = [5, 3, 9, 3, 7, 1, 8, 2, 6, 4, 11]


def pieces(rows: list[int], part: MicroBatch) -> tuple[list[int], MicroBatch]:
    return rows, part


def loader(costs: list[int] = COSTS, micro_batches: int = 2, rank: int = 0, **changes: int) -> PlannedLoader:
    settings = {"rows_per_step": 4, "world_size": 1, "seed": 0} | changes
    plan = Plan(np.array(costs), np.ones(len(costs), dtype=np.int64), **settings)
    return PlannedLoader(list(range(100, 100 + len(costs))), plan, pieces, micro_batches, rank)


def rows_of(batches: Any) -> list[list[int]]:
    return [rows for rows, *_ in batches]


def test_batches_hold_the_rows_of_their_part_and_the_count_of_their_whole_step() -> None:
    batches = list(loader())
    assert len(batches) == len(loader()) == 6
    for rows, part in batches:
        assert rows == [100 + row for row in part.rows]
    assert [part.in_step for _, part in batches] == [4, 4, 4, 4, 3, 3]
    assert sorted(row for rows, _ in batches for row in rows) == list(range(100, 111))


def test_epochs_differ_and_come_back() -> None:
    ours = loader()
    first = rows_of(ours)
    ours.order.set_epoch(1)
    second = rows_of(ours)
    ours.order.set_epoch(0)
    assert first != second
    assert rows_of(ours) == first


@pytest.mark.parametrize("taken", [1, 2, 5])
def test_D4_a_loader_goes_on_behind_what_was_handed_out(taken: int) -> None:
    ours = loader()
    ours.order.set_epoch(3)
    whole, batches = rows_of(ours), iter(ours)
    list(islice(batches, taken))
    resumed = loader()
    resumed.load_state_dict(ours.state_dict())
    iterator = iter(resumed)  # before the epoch is named, as Lightning does it
    resumed.order.set_epoch(3)
    assert rows_of(iterator) == whole[taken:]
    resumed.order.set_epoch(4)
    ours.order.set_epoch(4)
    assert rows_of(resumed) == rows_of(ours)
    assert len(rows_of(resumed)) == 6


def test_D4_a_state_saved_twice_counts_from_the_start_of_the_epoch() -> None:
    ours = loader()
    whole = rows_of(ours)
    list(islice(iter(ours), 2))
    second = loader()
    second.load_state_dict(ours.state_dict())
    second.order.set_epoch(0)
    list(islice(iter(second), 2))
    third = loader()
    third.load_state_dict(second.state_dict())
    third.order.set_epoch(0)
    assert rows_of(third) == whole[4:]


def test_D4_the_last_batch_of_an_epoch_leaves_nothing_to_skip_in_the_next() -> None:
    ours = loader()
    list(islice(iter(ours), 6))
    resumed = loader()
    resumed.load_state_dict(ours.state_dict())
    resumed.order.set_epoch(1)
    ours.order.set_epoch(1)
    assert rows_of(resumed) == rows_of(ours)


def test_D4_an_epoch_that_was_left_early_skips_nothing_in_the_next() -> None:
    ours = loader()
    list(islice(iter(ours), 3))  # trainer.limit_train_batches: 3
    resumed = loader()
    resumed.load_state_dict(ours.state_dict())
    resumed.order.set_epoch(1)
    ours.order.set_epoch(1)
    assert rows_of(resumed) == rows_of(ours)


@pytest.mark.parametrize(
    ("name", "there", "now"),
    [("rows_per_step", 4, 5), ("seed", 0, 1), ("micro_batches", 2, 4), ("world_size", 1, 2)],
)
def test_D4_another_plan_is_refused_with_both_values(name: str, there: int, now: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot resume: {name} was {there} and is {now} now"):
        loader(**{name: now}).load_state_dict(loader().state_dict())


def test_D4_another_number_of_rows_and_other_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="rows was 11 and is 9 now"):
        loader(COSTS[:9]).load_state_dict(loader().state_dict())
    with pytest.raises(ConfigError, match="cannot resume: digest_of_costs was"):
        loader(COSTS[::-1]).load_state_dict(loader().state_dict())


def test_C4_iterating_does_not_touch_the_global_random_state() -> None:
    before = torch.get_rng_state()
    list(loader())
    list(evaluation_loader(list(range(11)), plan_evaluation(COSTS, [1] * 11, 15, 1, 0), pieces))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_of_no_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="rows per optimizer step 0: expected at least 1"):
        loader(rows_per_step=0)


def test_evaluation_hands_out_every_row_once() -> None:
    ours = evaluation_loader(list(range(100, 111)), plan_evaluation(COSTS, [1] * 11, 15, 1, 0), pieces)
    assert len(ours) == 5
    assert sorted(row for rows, _ in ours for row in rows) == list(range(100, 111))
