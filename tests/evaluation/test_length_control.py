from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from lightning_dadpo.errors import DataError
from lightning_dadpo.evaluation.bootstrap import Interval
from lightning_dadpo.evaluation.length_control import RIDGE, length_controlled_rate
from lightning_dadpo.evaluation.preference_rate import Verdict, preference_rate


def zero_of(falling: Callable[[float], float]) -> float:
    low, high = -60.0, 60.0
    for _ in range(55):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def by_bisection(wins: Sequence[float], z: Sequence[float], repeats: Sequence[int]) -> float:
    """2 sigmoid(a) - 1 where the gradient of the penalised likelihood vanishes, by two nested bisections."""

    def residuals(a: float, b: float) -> list[float]:
        return [
            count * (win - 1 / (1 + math.exp(-(a + b * one)))) for count, win, one in zip(repeats, wins, z, strict=True)
        ]

    def slope(a: float) -> float:
        return zero_of(lambda b: sum(r * one for r, one in zip(residuals(a, b), z, strict=True)) - RIDGE * b)

    return 2 / (1 + math.exp(-zero_of(lambda a: sum(residuals(a, slope(a)))))) - 1


def example(prompts: int, seed: int = 0) -> tuple[list[Verdict], list[int], list[int]]:
    """A judge that likes length, and a candidate that is worse at equal length."""
    random = np.random.default_rng(seed)
    own, other = (random.integers(10, 400, prompts).tolist() for _ in range(2))
    names: tuple[Verdict, ...] = ("lose", "win")
    found: list[Verdict] = []
    for one, two in zip(own, other, strict=True):
        won = random.random() < 1 / (1 + math.exp(0.5 - (one - two) / 100))
        found.append("tie" if random.random() < 0.2 else names[won])
    return found, own, other


def scaled(own: Sequence[int], other: Sequence[int]) -> list[float]:
    differences = [one - two for one, two in zip(own, other, strict=True)]
    scale = math.sqrt(sum(one * one for one in differences) / len(differences))
    return [one / scale for one in differences]


def wins_of(verdicts: Sequence[Verdict]) -> list[float]:
    return [{"win": 1.0, "tie": 0.5, "lose": 0.0}[verdict] for verdict in verdicts]


def test_agrees_with_nested_bisections() -> None:
    for seed in range(3):
        verdicts, own, other = example(24, seed)
        expected = by_bisection(wins_of(verdicts), scaled(own, other), [1] * 24)
        assert length_controlled_rate(verdicts, own, other, resamples=2).value == pytest.approx(expected, abs=1e-9)


def test_the_interval_holds_the_same_prompts_as_the_rate_s() -> None:
    verdicts, own, other = example(12)
    wins, z = wins_of(verdicts), scaled(own, other)
    rates = []
    for draw in np.random.default_rng(3).integers(0, 12, size=(7, 12)):
        repeats = np.bincount(draw, minlength=12).tolist()
        drawn = [wins[at] for at in draw]
        constant = 1.0 if min(drawn) == 1 else -1.0
        rates.append(constant if min(drawn) == max(drawn) != 0.5 else by_bisection(wins, z, repeats))
    found = length_controlled_rate(verdicts, own, other, resamples=7, seed=3)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(rates, [0.025, 0.975])), abs=1e-9)


def test_worked_by_hand() -> None:
    # longer by 10: 90 of 100 won; shorter by 10: 50 of 100. a + b = ln 9, a - b = 0, so a = ln 3 and
    # sigmoid(a) = 3/4: 50 points at equal length, where the plain rate is 0.7 - 0.3 = 40
    verdicts: list[Verdict] = ["win"] * 90 + ["lose"] * 10 + ["win"] * 50 + ["lose"] * 50
    own = [20] * 100 + [10] * 100
    other = [10] * 100 + [20] * 100
    assert preference_rate(verdicts).value == pytest.approx(0.4)
    assert length_controlled_rate(verdicts, own, other, resamples=2).value == pytest.approx(0.5, abs=2e-4)


def test_a_tie_is_half_a_win() -> None:
    lengths = ([20, 20, 10, 10, 5, 9], [10, 10, 20, 20, 7, 1])
    tied: list[Verdict] = ["win", "tie", "tie", "lose", "win", "lose"]
    split: list[Verdict] = ["win", "win", "win", "lose", "lose", "win", "lose", "lose", "win", "win", "lose", "lose"]
    twice = [[one for one in side for _ in range(2)] for side in lengths]
    # every verdict twice halves the ridge's share: the same optimum only if it is small against the data
    assert length_controlled_rate(tied, *lengths, resamples=2).value == pytest.approx(
        length_controlled_rate(split, *twice, resamples=2).value, abs=0.01
    )


def test_what_follows_length_alone_is_no_preference() -> None:
    random = np.random.default_rng(4)
    difference = random.integers(-100, 200, 1500)
    own, other = (300 + difference).tolist(), [300] * 1500
    won = random.random(1500) < 1 / (1 + np.exp(-difference / 60))
    verdicts: list[Verdict] = ["win" if one else "lose" for one in won]
    assert preference_rate(verdicts).value > 0.2
    found = length_controlled_rate(verdicts, own, other, resamples=100)
    assert found.low < 0 < found.high
    assert found.high - found.low < 0.25


def test_swapping_the_sides_negates_rate_and_interval() -> None:
    verdicts, own, other = example(30)
    swapped: dict[Verdict, Verdict] = {"win": "lose", "tie": "tie", "lose": "win"}
    one = length_controlled_rate(verdicts, own, other, resamples=200)
    two = length_controlled_rate([swapped[verdict] for verdict in verdicts], other, own, resamples=200)
    assert (two.value, two.low, two.high) == pytest.approx((-one.value, -one.high, -one.low), abs=1e-9)


def test_the_unit_of_length_does_not_matter() -> None:
    verdicts, own, other = example(30)
    one = length_controlled_rate(verdicts, own, other, resamples=100)
    four = length_controlled_rate(verdicts, [4 * n for n in own], [4 * n for n in other], resamples=100)
    assert (four.value, four.low, four.high) == pytest.approx((one.value, one.low, one.high), abs=1e-9)


def test_a_better_verdict_does_not_lower_the_rate() -> None:
    verdicts, own, other = example(20)
    before = length_controlled_rate(verdicts, own, other, resamples=2).value
    equal = min(range(20), key=lambda at: abs(own[at] - other[at]))
    better = [*verdicts]
    for at in {equal}:
        better[at] = "lose"
    worse = [*better]
    better[equal] = "win"
    low = length_controlled_rate(worse, own, other, resamples=2).value
    high = length_controlled_rate(better, own, other, resamples=2).value
    assert low <= before <= high
    assert low < high


def test_rules_where_nothing_can_be_told() -> None:
    lengths = ([30, 20, 10, 5], [10, 25, 5, 50])
    assert length_controlled_rate(["win"] * 4, *lengths) == Interval(1.0, 1.0, 1.0)
    assert length_controlled_rate(["lose"] * 4, *lengths) == Interval(-1.0, -1.0, -1.0)
    assert length_controlled_rate(["tie"] * 4, *lengths) == Interval(0.0, 0.0, 0.0)
    mixed: list[Verdict] = ["win", "win", "tie", "lose"]
    for other in ([7] * 4, [5] * 4):  # all differences equal: the plain rate
        assert length_controlled_rate(mixed, [7] * 4, other, resamples=2).value == pytest.approx(0.25, abs=1e-9)


def test_verdicts_that_follow_length_without_exception_have_an_answer() -> None:
    # no finite slope fits best; by symmetry the ridge's answer lies at no preference
    verdicts: list[Verdict] = ["win"] * 10 + ["lose"] * 10
    own = [20 + at for at in range(10)] + [10] * 10
    other = [10] * 10 + [20 + at for at in range(10)]
    found = length_controlled_rate(verdicts, own, other)
    assert found.value == pytest.approx(0.0, abs=1e-9)
    assert -1 <= found.low < 0 < found.high <= 1


def test_other_numbers_of_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="2 verdicts, 2 and 1 lengths"):
        length_controlled_rate(["win", "lose"], [1, 2], [1])
    with pytest.raises(DataError, match="at least one"):
        length_controlled_rate([], [], [])
