"""Steps, and how they are dealt out to micro-batches and ranks."""

from __future__ import annotations

from itertools import chain

import pytest

from lightning_dadpo.data.plan import deal, plan_epoch, plan_evaluation, plan_steps

LENGTHS = [5, 3, 9, 3, 7, 1, 8, 2, 6, 4, 11]


def test_every_row_is_in_exactly_one_step_and_only_the_last_step_is_short() -> None:
    steps = plan_steps(num_rows=11, rows_per_step=4, seed=0, epoch=0)
    assert [len(step) for step in steps] == [4, 4, 3]
    assert sorted(chain(*steps)) == list(range(11))


def test_D4_order_depends_on_seed_and_epoch_alone() -> None:
    again = [plan_steps(50, 8, seed, epoch) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert again[0] == again[1]
    assert again[0] != again[2]
    assert again[0] != again[3]
    assert again[2] != again[3]


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_D1_dealing_a_step_out_changes_nothing_that_the_loss_sees(micro_batches: int, world_size: int) -> None:
    step = [10, 3, 0, 7, 5]
    dealt = deal(step, LENGTHS, micro_batches, world_size)
    assert len(dealt) == micro_batches
    assert all(len(ranks) == world_size for ranks in dealt)
    parts = list(chain(*dealt))
    real = [row for part in parts for row, weight in zip(part.rows, part.weights, strict=True) if weight]
    assert sorted(real) == sorted(step)
    assert all(part.step == tuple(step) for part in parts)
    assert all(part.rows and len(part.rows) == len(part.weights) for part in parts)
    assert sum(map(sum, (part.weights for part in parts))) == len(step)
    sizes = [sum(part.weights) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_rows_of_like_length_come_together_and_a_filler_is_the_shortest_row() -> None:
    assert [part.rows for (part,) in deal([0, 1, 2, 3, 4, 5], LENGTHS, 3, 1)] == [(5, 1), (3, 0), (4, 2)]
    fillers = [part for (part,) in deal([2, 4], LENGTHS, 4, 1) if not sum(part.weights)]
    assert [part.rows for part in fillers] == [(4,), (4,)]


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_an_epoch_is_its_steps_in_order_and_ranks_together_hold_all_of_it(micro_batches: int) -> None:
    steps = plan_steps(11, 4, seed=3, epoch=2)
    ranks = [plan_epoch(LENGTHS, 4, micro_batches, 2, rank, seed=3, epoch=2) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == micro_batches * len(steps)
    for number, step in enumerate(steps):
        parts = [part for rank in ranks for part in rank[number * micro_batches : (number + 1) * micro_batches]]
        found = [row for part in parts for row, weight in zip(part.rows, part.weights, strict=True) if weight]
        assert sorted(found) == sorted(step)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_row_once_and_ranks_run_equally_often(world_size: int) -> None:
    ranks = [plan_evaluation(LENGTHS, 3, world_size, rank) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    parts = list(chain(*ranks))
    real = [row for part in parts for row, weight in zip(part.rows, part.weights, strict=True) if weight]
    assert sorted(real) == list(range(11))
