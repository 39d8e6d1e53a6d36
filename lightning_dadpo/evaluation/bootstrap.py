"""Percentile bootstrap over prompts: how far an estimate would move had other prompts been drawn.

Prompts are resampled whole, since the tokens of one answer are not independent of one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_dadpo.errors import DataError

__all__ = ["Interval", "ratio_interval", "ratio_difference", "mean_interval", "draws", "percentile_interval"]


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
    return percentile_interval(_ratios(top, bottom, draws(len(top), resamples, seed)), level)


def ratio_difference(
    numerators: Sequence[float | int],
    denominators: Sequence[float | int],
    other_numerators: Sequence[float | int],
    other_denominators: Sequence[float | int],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """One model's ratio of sums less another's on the same prompts, with its interval; each draw is of whole prompts.

    What makes a prompt hard for both models leaves the difference alone, so its interval is narrower than the two
    models' own would suggest.

    Args:
        numerators: one sum a prompt, of the model.
        denominators: one count a prompt.
        other_numerators: of the model that it is compared with, prompt by prompt in the same order.
        other_denominators: the same.
        resamples: number of bootstrap draws.
        seed: of the draws.
        level: probability mass between the bounds.

    Raises:
        DataError: as `ratio_interval`, or unequal numbers of prompts.

    Example:
        >>> ratio_difference([1.0, 9.0], [1, 3], [2.0, 4.0], [2, 2]).value
        1.0
    """
    top, bottom, other_top, other_bottom = (
        np.asarray(values, dtype=np.float64)
        for values in (numerators, denominators, other_numerators, other_denominators)
    )
    _check(top, bottom)
    _check(other_top, other_bottom)
    if len(top) != len(other_top):
        raise DataError(f"bootstrap: {len(top)} prompts against {len(other_top)}, expected the same ones")
    drawn = draws(len(top), resamples, seed)
    return percentile_interval(_ratios(top, bottom, drawn) - _ratios(other_top, other_bottom, drawn), level)


def mean_interval(
    values: Sequence[float | int], *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The mean over prompts with its interval: `ratio_interval` over ones."""
    return ratio_interval(values, [1.0] * len(values), resamples=resamples, seed=seed, level=level)


def draws(prompts: int, resamples: int, seed: int) -> np.ndarray:
    """[resamples + 1, prompts] places of prompts: as they are in the first row, drawn with replacement in the others.

    Equal seeds draw equal prompts, whatever is then estimated from them.
    """
    drawn = np.random.default_rng(seed).integers(0, prompts, size=(resamples, prompts))
    return np.concatenate([np.arange(prompts)[None, :], drawn])


def percentile_interval(estimates: np.ndarray, level: float = 0.95) -> Interval:
    """The estimate of the first row of `draws` between percentiles of the others' [resamples + 1]."""
    low, high = np.quantile(estimates[1:], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimates[0]), float(low), float(high))


def _ratios(top: np.ndarray, bottom: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """[resamples + 1] ratios of sums; 0 over 0 is 0."""
    below = bottom[drawn].sum(axis=1)
    ratios: np.ndarray = top[drawn].sum(axis=1) / np.where(below == 0, 1.0, below)
    return ratios


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
