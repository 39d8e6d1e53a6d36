"""Steps, and how they are dealt out to micro-batches and ranks within a budget of tokens."""

from __future__ import annotations

from itertools import chain, combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dadpo.data.plan import MicroBatch, Plan, budgeted_batches, cut, plan_evaluation

COSTS = [5, 3, 9, 3, 7, 1, 8, 2, 6, 4, 11]


def plan(costs: list[int] = COSTS, rows_per_step: int = 4, seed: int = 0, world_size: int = 1) -> Plan:
    """Counts that no row shares with another, so that a sum over the wrong rows shows."""
    counts = [2**row for row in range(len(costs))]
    return Plan(np.array(costs), np.array(counts), rows_per_step, seed, world_size)


def real(parts: list[MicroBatch]) -> list[int]:
    return [row for part in parts for row, weight in zip(part.rows, part.weights, strict=True) if weight]


def fewest_parts(costs: list[int], budget: int) -> int:
    """Oracle: every way to cut ascending costs, by brute force."""
    costs = sorted(costs)
    for inner in range(len(costs)):
        for places in combinations(range(1, len(costs)), inner):
            parts = [costs[start:end] for start, end in pairwise([0, *places, len(costs)])]
            if all(len(part) == 1 or sum(part) <= budget for part in parts):
                return len(parts)
    raise AssertionError("rows alone always fit")


def test_every_row_is_in_exactly_one_step_and_only_the_last_step_is_short() -> None:
    steps = plan().steps(0)
    assert [len(step) for step in steps] == [4, 4, 3]
    assert plan().steps_per_epoch == 3
    assert sorted(chain(*(step.tolist() for step in steps))) == list(range(11))
    assert all((np.diff(np.array(COSTS)[step]) >= 0).all() for step in steps)


def test_D4_which_rows_make_a_step_depends_on_seed_and_epoch_alone() -> None:
    costs = list(range(1, 51))
    there = [
        [set(step.tolist()) for step in plan(costs, 8, seed).steps(epoch)] for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    again = [set(step.tolist()) for step in plan(costs[::-1], 8, world_size=3).steps(0)]
    assert there[0] == again
    assert there[0] != there[1]
    assert there[0] != there[2]
    assert there[1] != there[2]


rows_of_costs = st.lists(st.integers(1, 12), min_size=1, max_size=10)


@given(rows_of_costs, st.integers(1, 7), st.integers(1, 30), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_D1_the_plan_against_brute_force(
    costs: list[int], rows_per_step: int, budget: int, world_size: int, epochs: int
) -> None:
    ours = plan(costs, rows_per_step, seed=3, world_size=world_size)
    micro_batches = ours.micro_batches(budget, epochs)
    all_steps = [step.tolist() for epoch in range(epochs) for step in ours.steps(epoch)]
    most = max(fewest_parts([costs[row] for row in step], budget) for step in all_steps)
    assert micro_batches == -(-most // world_size)  # the smallest number with which all of it fits
    for epoch in range(epochs):
        ranks = [list(ours.epoch(epoch, micro_batches, rank)) for rank in range(world_size)]
        assert sorted(real(list(chain(*ranks)))) == list(range(len(costs)))  # every row once
        steps = ours.steps(epoch)
        assert {len(rank) for rank in ranks} == {micro_batches * len(steps)}
        for number, step in enumerate(steps):
            here = slice(number * micro_batches, (number + 1) * micro_batches)
            parts = [part for rank in ranks for part in rank[here]]
            assert sorted(real(parts)) == sorted(step.tolist())
            assert {part.in_step for part in parts} == {sum(2**row for row in step.tolist())}
            assert {part.rows_in_step for part in parts} == {len(step)}
            assert all(len(part.rows) == 1 or sum(costs[row] for row in part.rows) <= budget for part in parts)
            empty = [part for part in parts if not sum(part.weights)]
            assert len(empty) == max(0, len(parts) - len(step))  # a filler only where rows run out
            assert all(part.rows == (step[0],) and part.weights == (0.0,) for part in empty)


@given(rows_of_costs, st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_a_cut_leaves_no_part_of_several_rows_dearer_than_it_must(costs: list[int], parts: int) -> None:
    costs = sorted(costs)
    bounds = cut(costs, parts)
    assert len(bounds) == parts + 1
    assert (bounds[0], bounds[-1]) == (0, len(costs))
    assert bounds == sorted(bounds)
    dearest = max((sum(costs[a:b]) for a, b in pairwise(bounds) if b - a > 1), default=0)
    cheapest = next(budget for budget in range(sum(costs) + 1) if fewest_parts(costs, budget) <= parts)
    assert dearest <= cheapest
    assert sum(a < b for a, b in pairwise(bounds)) == min(parts, len(costs))


def test_parts_are_balanced_by_tokens_and_not_by_rows() -> None:
    assert cut([1, 1, 1, 1, 1, 1, 2, 8], 2) == [0, 7, 8]
    assert cut([2] * 12, 4) == [0, 3, 6, 9, 12]
    assert cut([1, 1, 1, 1, 90], 3) == [0, 2, 4, 5]  # one row too dear does not let the others pile up
    assert cut([4, 6], 4) == [0, 1, 2, 2, 2]


def test_the_last_step_counts_only_as_far_as_the_run_goes() -> None:
    costs = [1] * 8 + [9] * 8
    ours = plan(costs, 4)
    needed = [fewest_parts([costs[row] for row in step.tolist()], 10) for step in ours.steps(0)]
    assert len(set(needed)) > 1
    for steps in range(1, 5):
        assert ours.micro_batches(10, 1, steps) == max(needed[:steps])
    assert ours.micro_batches(10, 1, 99) == max(needed)
    assert ours.micro_batches(10, 0) == 1


def test_the_dearest_step_of_any_epoch_counts() -> None:
    costs = [1] * 14 + [9] * 2
    ours = plan(costs, 4, seed=1)
    needed = [
        max(fewest_parts([costs[row] for row in step.tolist()], 10) for step in ours.steps(epoch))
        for epoch in range(12)
    ]
    assert max(needed) > needed[0]
    for epochs in range(1, 13):
        assert ours.micro_batches(10, epochs) == max(needed[:epochs])


def test_the_order_of_an_epoch_goes_through_its_steps() -> None:
    ours = plan(world_size=2)
    parts = list(ours.epoch(2, 3, rank=1))
    for number, step in enumerate(ours.steps(2)):
        assert set(real(parts[3 * number : 3 * number + 3])) <= set(step.tolist())


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 10, 1000])
def test_evaluation_sees_every_row_once_within_the_budget_and_ranks_run_equally_often(
    world_size: int, budget: int
) -> None:
    ranks = [plan_evaluation(COSTS, [1] * 11, budget, world_size, rank) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    parts = list(chain(*ranks))
    assert sorted(real(parts)) == list(range(11))
    assert all(len(part.rows) == 1 or sum(COSTS[row] for row in part.rows) <= budget for part in parts)


def test_batches_hold_rows_of_like_cost_and_as_many_as_the_budget_allows() -> None:
    assert budgeted_batches(COSTS, 10) == [(5, 7, 1, 3), (9, 0), (8,), (4,), (6,), (2,), (10,)]
    assert budgeted_batches(COSTS, 59) == [(5, 7, 1, 3, 9, 0, 8, 4, 6, 2, 10)]


def test_a_hundred_thousand_rows_are_planned_in_one_go() -> None:
    """Not timed: a plan that looked at pairs of rows, or walked over parts of all steps one by one, would not end."""
    rows = np.random.default_rng(0).lognormal(5, 0.6, 100_000).astype(np.int64) + 1
    for rows_per_step in (1, 16, 100_000):
        ours = Plan(rows, np.ones_like(rows), rows_per_step, 0, 2)
        micro_batches = ours.micro_batches(1024, epochs=2)
        first = next(ours.epoch(0, micro_batches, rank=0))
        assert len(first.rows) == 1 or rows[list(first.rows)].sum() <= 1024
