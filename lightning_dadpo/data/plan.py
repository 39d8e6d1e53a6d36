"""Which rows make an optimizer step, and how a step is dealt out to ranks and micro-batches.

A step is a fixed set of rows, decided by (seed, epoch, rows a step) alone. Dealing it out changes nothing that
the loss sees: every micro-batch carries the count of its whole step, and fillers of weight 0 keep the number of
micro-batches equal on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

__all__ = ["MicroBatch", "plan_steps", "deal", "plan_epoch", "plan_evaluation"]


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass.

    Attributes:
        rows: indices into the data set.
        weights: 1 for a row that counts, 0 for a filler.
        step: every row of the optimizer step that this is a part of.
    """

    rows: tuple[int, ...]
    weights: tuple[float, ...]
    step: tuple[int, ...]


def plan_steps(num_rows: int, rows_per_step: int, seed: int, epoch: int) -> list[list[int]]:
    """The steps of one epoch: a permutation seeded by (seed, epoch), cut into pieces; the last may be short."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(num_rows, generator=generator).tolist()
    return [order[start : start + rows_per_step] for start in range(0, num_rows, rows_per_step)]


def deal(step: Sequence[int], lengths: Sequence[int], micro_batches: int, world_size: int) -> list[list[MicroBatch]]:
    """Deal a step out: [micro-batch][rank]. Rows of like length come together, so that little is padded.

    Which rows share a micro-batch depends on lengths alone; the number of rows differs by at most one.
    """
    ordered = sorted(step, key=lambda row: (lengths[row], row))
    parts = micro_batches * world_size
    bounds = [len(ordered) * part // parts for part in range(parts + 1)]
    groups = [ordered[start:end] for start, end in pairwise(bounds)]
    made = [
        MicroBatch(tuple(group), (1.0,) * len(group), tuple(step))
        if group
        else MicroBatch((ordered[0],), (0.0,), tuple(step))  # the shortest row, as a filler
        for group in groups
    ]
    return [made[start : start + world_size] for start in range(0, parts, world_size)]


def plan_epoch(
    lengths: Sequence[int], rows_per_step: int, micro_batches: int, world_size: int, rank: int, seed: int, epoch: int
) -> list[MicroBatch]:
    """What one rank runs in one epoch, in order."""
    steps = plan_steps(len(lengths), rows_per_step, seed, epoch)
    return [part[rank] for step in steps for part in deal(step, lengths, micro_batches, world_size)]


def plan_evaluation(lengths: Sequence[int], rows_per_batch: int, world_size: int, rank: int) -> list[MicroBatch]:
    """Every row once, sorted by length, batches dealt out to ranks in turn; fillers keep ranks equal in number."""
    everything = tuple(range(len(lengths)))
    ordered = sorted(everything, key=lambda row: (lengths[row], row))
    starts = range(0, len(ordered), rows_per_batch)
    groups = [tuple(ordered[start : start + rows_per_batch]) for start in starts]
    batches = [MicroBatch(group, (1.0,) * len(group), everything) for group in groups]
    while len(batches) % world_size:
        batches.append(MicroBatch((ordered[0],), (0.0,), everything))
    return batches[rank::world_size]
