"""Percentile bootstrap over prompts: how far an estimate would move had other prompts been drawn.

Prompts are resampled whole, since the tokens of one answer are not independent of one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_dadpo.errors import DataError

__all__ = ["Interval", "ratio_interval", "mean_interval"]


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its interval, all three in the estimate's unit."""

    value: float
    low: float
    high: float


def ratio_interval(
    numerators: Sequence[float | int],
    denominators: Sequence[float | int],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The ratio of sums, sum(numerators) / sum(denominators), and its percentile bootstrap interval over prompts.

    It is not the mean of ratios: a long answer weighs as much as it has tokens. Equal seeds draw equal prompts, so
    two models measured on the same prompts are resampled together. 0 of 0 is 0, as for n-grams of short answers.

    Args:
        numerators: one sum a prompt, for example nats or repeated n-grams.
        denominators: one count a prompt, >= 0, for example tokens; ones give the mean of the numerators.
        resamples: number of bootstrap draws of as many prompts as there are.
        seed: of the draws; the same inputs give the same interval.
        level: probability mass between the bounds.

    Raises:
        DataError: no prompts, unequal lengths, a number that is not finite, a negative denominator, or a numerator
            other than 0 over a denominator of 0.

    Example:
        >>> ratio_interval([1.0, 9.0], [1, 3]).value
        2.5
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    _check(top, bottom)
    prompts = len(top)
    drawn = np.random.default_rng(seed).integers(0, prompts, size=(resamples, prompts))
    drawn = np.concatenate([np.arange(prompts)[None, :], drawn])  # the prompts as they are come first
    below = bottom[drawn].sum(axis=1)
    ratios = top[drawn].sum(axis=1) / np.where(below == 0, 1.0, below)
    low, high = np.quantile(ratios[1:], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(ratios[0]), float(low), float(high))


def mean_interval(
    values: Sequence[float | int], *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The mean over prompts with its interval: `ratio_interval` over ones."""
    return ratio_interval(values, [1.0] * len(values), resamples=resamples, seed=seed, level=level)


def _check(top: np.ndarray, bottom: np.ndarray) -> None:
    if len(top) != len(bottom):
        raise DataError(f"bootstrap: {len(top)} numerators but {len(bottom)} denominators, expected one each a prompt")
    if len(top) == 0:
        raise DataError("bootstrap: no prompts, expected at least one")
    if not (np.isfinite(top).all() and np.isfinite(bottom).all()):
        raise DataError("bootstrap: a numerator or denominator is not finite")
    wrong = np.flatnonzero((bottom < 0) | ((bottom == 0) & (top != 0)))
    if wrong.size:
        first = int(wrong[0])
        raise DataError(f"bootstrap: prompt {first} has {top[first]} over {bottom[first]}, expected a count > 0 below")
