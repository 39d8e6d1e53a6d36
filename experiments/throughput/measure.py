"""Timing two or more sides against each other, and what is said of the times. No side is named here."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Ratio", "synchronise", "seconds", "interleaved", "ratio_of", "composed", "geometric_mean", "best_of"]

Times = dict[str, list[float]]
Action = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """A median with the smallest and the largest of the blocks that it is the median of.

    With five blocks the range holds the true median in 94 % of cases (1 - 2 x 0.5**5), whatever the distribution.
    """

    ratio: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Ratio:
        """Of one value a block."""
        return Ratio(statistics.median(values), min(values), max(values))


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(action: Action) -> float:
    """Wall-clock time of one call."""
    synchronise()
    start = time.perf_counter()
    action()
    synchronise()
    return time.perf_counter() - start


def interleaved(
    sides: Mapping[str, Action], blocks: int, say: Callable[[str], None] = print, warmup: bool = True
) -> Times:
    """Seconds of each side in each block; every block runs every side once, in turn.

    Args:
        sides: what to time, by name.
        blocks: measured rounds.
        say: where progress goes.
        warmup: run every side once before, unmeasured.
    """
    if warmup:
        for action in sides.values():
            action()
    times: Times = {name: [] for name in sides}
    for block in range(blocks):
        for name, action in sides.items():
            times[name].append(seconds(action))
        say(f"block {block + 1}/{blocks}: " + ", ".join(f"{name} {times[name][-1]:.2f} s" for name in sides))
    return times


def ratio_of(times: Times, over: str, under: str) -> Ratio:
    """Seconds of one side by seconds of another, block by block: above 1 where `under` is faster."""
    return Ratio.of([above / below for above, below in zip(times[over], times[under], strict=True)])


def composed(parts: Sequence[Sequence[float]], formula: Callable[..., float]) -> Ratio:
    """A formula of several measured quantities, block by block; shorter lists end it."""
    return Ratio.of([formula(*values) for values in zip(*parts, strict=False)])


def geometric_mean(ratios: Sequence[Ratio]) -> Ratio:
    """Of medians, of lows and of highs: the interval is no narrower than that of the mean."""

    def mean(values: Sequence[float]) -> float:
        return math.exp(sum(map(math.log, values)) / len(values))

    return Ratio(*(mean([getattr(ratio, end) for ratio in ratios]) for end in ("ratio", "low", "high")))


def best_of(sizes: Sequence[int], unit: Callable[[int], float], worse: float = 1.05) -> tuple[int, dict[int, float]]:
    """The size whose unit takes least, trying upwards until one is clearly slower than the best before it.

    Args:
        sizes: rising.
        unit: seconds of the same work at a size.
        worse: how much slower ends the search.

    Returns:
        The best size, and seconds by size tried.
    """
    tried: dict[int, float] = {}
    for size in sizes:
        tried[size] = unit(size)
        if tried[size] > worse * min(tried.values()):
            break
    return min(tried, key=lambda size: tried[size]), tried
