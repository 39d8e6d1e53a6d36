"""Which rows make an optimizer step, and how a step is dealt out to ranks and micro-batches.

A step is a fixed set of rows, decided by (seed, epoch, rows a step) alone. Dealing it out changes nothing that
the loss sees: every micro-batch carries the count of its whole step, and fillers of weight 0 keep the number of
micro-batches equal on every rank. How many micro-batches a step takes follows from a budget of tokens.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_dadpo.errors import ConfigError

__all__ = ["MicroBatch", "Plan", "cut", "budgeted_batches", "plan_evaluation"]

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass.

    Attributes:
        rows: indices into the data set.
        weights: 1 for a row that counts, 0 for a filler; all of them are the same.
        in_step: what the loss is divided by: rows, or response tokens, of the optimizer step that this is a part of.
        rows_in_step: rows of that step.
    """

    rows: tuple[int, ...]
    weights: tuple[float, ...]
    in_step: int
    rows_in_step: int


@dataclass(frozen=True)
class Plan:
    """The steps of every epoch, and each step dealt out by cost.

    Attributes:
        costs: tokens of each row.
        counts: what each row adds to the divisor of its step's loss: 1, or its response tokens.
        rows_per_step: rows of one optimizer step over all ranks; the last step of an epoch may have fewer.
        seed: decides the order of rows, with the epoch.
        world_size: ranks.
    """

    costs: Integers
    counts: Integers
    rows_per_step: int
    seed: int
    world_size: int

    def __post_init__(self) -> None:
        if self.rows_per_step < 1:
            raise ConfigError(f"rows per optimizer step {self.rows_per_step}: expected at least 1")

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return -(-len(self.costs) // self.rows_per_step)

    def steps(self, epoch: int) -> list[Integers]:
        """The steps of one epoch, each ordered by cost: a permutation seeded by (seed, epoch), cut into pieces."""
        rows = self._ordered(epoch)
        return [rows[start : start + self.rows_per_step] for start in range(0, len(rows), self.rows_per_step)]

    def micro_batches(self, budget: int, epochs: int, max_steps: int | None = None) -> int:
        """The fewest micro-batches a step and rank with which no part of any step costs more than `budget` tokens.

        A row that costs more by itself stands alone in its part.

        Args:
            budget: tokens of one micro-batch on one rank.
            epochs: how many are looked at.
            max_steps: or fewer, where the run ends after so many steps.
        """
        steps = self.steps_per_epoch * epochs if max_steps is None else min(max_steps, self.steps_per_epoch * epochs)
        parts = 1
        for epoch in range(-(-steps // self.steps_per_epoch)):
            rows = self._ordered(epoch)[: (steps - epoch * self.steps_per_epoch) * self.rows_per_step]
            parts = max(parts, _most_parts(self.costs[rows], self.rows_per_step, budget))
        return -(-parts // self.world_size)

    def epoch(self, epoch: int, micro_batches: int, rank: int) -> Iterator[MicroBatch]:
        """What one rank runs in one epoch, in order: `micro_batches` parts of each step.

        Parts hold rows of like cost; part number p of a step is micro-batch p // ranks of rank p % ranks.
        """
        for step in self.steps(epoch):
            in_step = int(self.counts[step].sum())
            bounds = cut(self.costs[step].tolist(), micro_batches * self.world_size)
            for part in range(rank, micro_batches * self.world_size, self.world_size):
                rows = tuple(step[bounds[part] : bounds[part + 1]].tolist())
                if rows:
                    yield MicroBatch(rows, (1.0,) * len(rows), in_step, len(step))
                else:  # more parts than rows: the cheapest row of the step, as a filler
                    yield MicroBatch((int(step[0]),), (0.0,), in_step, len(step))

    def _ordered(self, epoch: int) -> Integers:
        """All rows, step after step, those of a step ordered by (cost, row)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.costs), generator=generator).numpy()
        step = np.arange(len(order)) // self.rows_per_step
        ordered: Integers = order[np.lexsort((order, self.costs[order], step))]
        return ordered


def _most_parts(costs: Integers, rows_per_step: int, budget: int) -> int:
    """Over steps laid end to end, each of ascending costs: the most parts within `budget` that one of them takes.

    Filling each part as far as it goes takes the fewest parts; all steps are filled side by side.
    """
    spent = np.concatenate([[0], np.cumsum(costs)])
    starts = np.arange(0, len(costs), rows_per_step)
    ends = np.minimum(starts + rows_per_step, len(costs))
    parts = 0
    while len(starts):
        parts += 1
        reach = np.searchsorted(spent, spent[starts] + budget, side="right") - 1
        starts = np.minimum(np.maximum(reach, starts + 1), ends)
        going_on = starts < ends
        starts, ends = starts[going_on], ends[going_on]
    return parts


def cut(costs: Sequence[int], parts: int) -> list[int]:
    """Bounds of `parts` contiguous parts of nearly the same cost.

    No part of several rows costs more than it must with so many parts, so a budget that can be kept is kept.

    Args:
        costs: of each row.
        parts: how many; where there are fewer rows, the last parts are empty.

    Returns:
        parts + 1 indices, from 0 to the number of rows.
    """
    rows = len(costs)
    if rows <= parts:
        return [*range(rows), *[rows] * (parts + 1 - rows)]
    spent = [0, *accumulate(costs)]
    cap = bisect_left(range(spent[-1]), True, key=lambda budget: len(_fill(spent, budget)) <= parts)
    # backwards: the first row from which on the rest still fits into the parts that are left
    first = [rows]
    for _ in range(parts - 1):
        first.append(max(0, min(bisect_left(spent, spent[first[-1]] - cap), first[-1] - 1)))
    bounds = [0]
    for left in range(parts - 1, 0, -1):
        start = bounds[-1]
        even = spent[start] + (spent[rows] - spent[start]) / (left + 1)
        bound = bisect_left(spent, even)
        bound -= even - spent[bound - 1] < spent[bound] - even
        most = min(bisect_right(spent, spent[start] + cap) - 1, rows - left)
        bounds.append(max(start + 1, first[left], min(bound, most)))
    return [*bounds, rows]


def _fill(spent: Sequence[int], budget: int) -> list[int]:
    """Where parts end that each take what `budget` allows, one row at least.

    Args:
        spent: cost of all rows before each row, and of all.
        budget: of one part.
    """
    ends = [0]
    while ends[-1] < len(spent) - 1:
        ends.append(max(bisect_right(spent, spent[ends[-1]] + budget) - 1, ends[-1] + 1))
    return ends[1:]


def budgeted_batches(costs: Sequence[int], budget: int) -> list[tuple[int, ...]]:
    """Every row once, rows of like cost together, as many in a batch as `budget` tokens allow, one at least."""
    prices = np.asarray(costs, dtype=np.int64)
    rows = np.argsort(prices, kind="stable")
    ends = _fill([0, *accumulate(prices[rows].tolist())], budget)
    return [tuple(rows[start:end].tolist()) for start, end in pairwise([0, *ends])]


def plan_evaluation(
    costs: Sequence[int], counts: Sequence[int], budget: int, world_size: int, rank: int
) -> list[MicroBatch]:
    """One rank's share of every row once: batches in turn, and fillers that keep ranks equal in number."""
    groups = budgeted_batches(costs, budget)
    total = sum(counts)
    made = [MicroBatch(rows, (1.0,) * len(rows), total, len(costs)) for rows in groups]
    made += [MicroBatch(groups[0][:1], (0.0,), total, len(costs))] * (-len(groups) % world_size)
    return made[rank::world_size]
