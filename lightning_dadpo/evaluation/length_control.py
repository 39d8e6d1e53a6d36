"""The preference rate that would be left were both responses of equal length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_dadpo.errors import DataError
from lightning_dadpo.evaluation.bootstrap import Interval, draws, percentile_interval
from lightning_dadpo.evaluation.preference_rate import POINTS, Verdict

__all__ = ["length_controlled_rate", "RIDGE"]

RIDGE = 0.01
"""Penalty on half the squared slope: a normal prior with standard deviation 10, where 1 already is a strong effect of
length. It decides nothing but what has no finite solution, verdicts that follow length without exception."""

MOST_STEPS = 200
CELLS = 1 << 21
"""Resamples times prompts at a time: 16 MiB a matrix."""


def length_controlled_rate(
    verdicts: Sequence[Verdict],
    lengths: Sequence[int],
    opponent_lengths: Sequence[int],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """A logistic regression of the verdict on the difference of lengths, read where that difference is zero.

        P(win) = sigmoid(a + b z),  z = (length - opponent's length) / root mean square of these differences
        rate   = 2 sigmoid(a) - 1, on the scale of the preference rate

    a and b have the greatest likelihood less `RIDGE` b^2 / 2. A tie is half a win and half a loss. z is scaled, so that
    the ridge means the same for letters and for tokens, but not centred: zero is equal length, and swapping the sides
    negates the rate. The scale is that of all prompts also in resamples. Rules where data are too few to say:

    - all verdicts won (lost) in a resample: its rate is 1 (-1), as likelihood has it without bound;
    - all differences equal: nothing tells length from quality, and the rate is the plain preference rate (the ridge
      leaves b at 0).

    The idea is that of AlpacaEval 2 (arXiv 2404.04475), without its terms for models and prompts.

    Args:
        verdicts: one a prompt.
        lengths: of the candidate's responses; opponent_lengths: of the opponent's; see `longer_wins` for the unit.
        resamples: bootstrap draws over prompts, equal to those of `mean_interval` under the same seed.
        seed: of the draws.

    Raises:
        DataError: no verdicts, or other numbers of lengths.
    """
    if not verdicts or not len(verdicts) == len(lengths) == len(opponent_lengths):
        raise DataError(
            f"length-controlled rate: {len(verdicts)} verdicts, {len(lengths)} and {len(opponent_lengths)} lengths, "
            "expected the same number of each, at least one"
        )
    wins = (np.array([POINTS[verdict] for verdict in verdicts], dtype=np.float64) + 1) / 2
    drawn = draws(len(wins), resamples, seed)
    difference = scaled_difference(lengths, opponent_lengths)
    pieces = np.array_split(drawn, max(1, drawn.size // CELLS))
    return percentile_interval(np.concatenate([_rates(piece, wins, difference) for piece in pieces]))


def scaled_difference(lengths: Sequence[int], opponent_lengths: Sequence[int]) -> np.ndarray:
    """The regression's z [prompts]; zeros where all lengths are equal."""
    difference = np.asarray(lengths, dtype=np.float64) - np.asarray(opponent_lengths, dtype=np.float64)
    scale = float(np.sqrt(np.mean(difference**2)))
    return difference / scale if scale else difference


def _rates(drawn: np.ndarray, wins: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """The rate of each row of drawn places [rows, prompts]."""
    prompts = len(wins)
    counts = np.stack([np.bincount(row, minlength=prompts) for row in drawn]).astype(np.float64)
    won = counts @ wins
    rates = np.where(won == 0, -1.0, 1.0)
    open_ = (won > 0) & (won < prompts)
    if open_.any():
        intercepts = _fit(counts[open_], wins, difference)[:, 0]
        rates[open_] = np.tanh(intercepts / 2)  # 2 sigmoid(a) - 1
    return rates


def _fit(counts: np.ndarray, wins: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Newton's method with halved steps for all rows at once; [rows, 2] intercepts and slopes.

    The loss is strictly convex and finite at its only minimum as long as not all verdicts of a row are won or lost.

    Args:
        counts: how often each prompt is in each row [rows, prompts]. wins: 0, 1/2 or 1. difference: z.
    """
    found = np.zeros((len(counts), 2))
    busy = np.arange(len(counts))
    for _ in range(MOST_STEPS):
        step, decrement = _newton_step(counts[busy], wins, difference, found[busy])
        busy, step = busy[decrement > 1e-20], step[decrement > 1e-20]
        if not busy.size:
            return found
        found[busy] += _damped(counts[busy], wins, difference, found[busy], step)
    raise ArithmeticError(f"length control: {busy.size} regressions did not converge in {MOST_STEPS} steps")


def _newton_step(
    counts: np.ndarray, wins: np.ndarray, difference: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The step [rows, 2] and Newton's decrement, gradient times step [rows]."""
    chance = 1 / (1 + np.exp(-(at[:, :1] + at[:, 1:] * difference)))
    residual = counts * (wins - chance)
    gradient = np.stack([residual.sum(axis=1), residual @ difference - RIDGE * at[:, 1]], axis=1)
    curvature = counts * chance * (1 - chance)
    of_a, of_both = curvature.sum(axis=1), curvature @ difference
    of_b = curvature @ difference**2 + RIDGE
    determinant = of_a * of_b - of_both**2
    step = np.stack(
        [of_b * gradient[:, 0] - of_both * gradient[:, 1], of_a * gradient[:, 1] - of_both * gradient[:, 0]], axis=1
    )
    step /= determinant[:, None]
    return step, (gradient * step).sum(axis=1)


def _damped(
    counts: np.ndarray, wins: np.ndarray, difference: np.ndarray, at: np.ndarray, step: np.ndarray
) -> np.ndarray:
    """Each step, halved until it does not raise its row's loss."""
    before = _loss(counts, wins, difference, at)
    for _ in range(60):
        worse = _loss(counts, wins, difference, at + step) > before * (1 + 1e-14)
        if not worse.any():
            break
        step = np.where(worse[:, None], step / 2, step)
    return step


def _loss(counts: np.ndarray, wins: np.ndarray, difference: np.ndarray, at: np.ndarray) -> np.ndarray:
    logit = at[:, :1] + at[:, 1:] * difference
    losses: np.ndarray = (counts * (np.logaddexp(0, logit) - wins * logit)).sum(axis=1) + RIDGE / 2 * at[:, 1] ** 2
    return losses
