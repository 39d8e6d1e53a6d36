from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from lightning_dadpo.errors import DataError
from lightning_dadpo.evaluation.bootstrap import Interval
from lightning_dadpo.evaluation.judges import Preference
from lightning_dadpo.evaluation.preference_rate import (
    Verdict,
    combine,
    longer_wins,
    preference_rate,
    rate_difference,
    share,
)


def verdicts(letters: str) -> list[Verdict]:
    of: dict[str, Verdict] = {"w": "win", "t": "tie", "l": "lose"}
    return [of[letter] for letter in letters]


def quantile(values: Sequence[float], level: float) -> float:
    ordered, place = sorted(values), level * (len(values) - 1)
    below = math.floor(place)
    return ordered[below] + (place - below) * (ordered[min(below + 1, len(ordered) - 1)] - ordered[below])


@pytest.mark.parametrize(
    ("candidate_first", "candidate_second", "verdict"),
    [
        ("first", "second", "win"),
        ("second", "first", "lose"),
        ("first", "first", "tie"),
        ("second", "second", "tie"),
        ("first", "tie", "tie"),
        ("tie", "second", "tie"),
        ("second", "tie", "tie"),
        ("tie", "first", "tie"),
        ("tie", "tie", "tie"),
    ],
)
def test_E2_only_what_both_orders_agree_on_is_won_or_lost(
    candidate_first: Preference, candidate_second: Preference, verdict: Verdict
) -> None:
    assert combine(candidate_first, candidate_second) == verdict
    # swapping the sides: what was first is second, and what was asked first is asked second
    other: dict[Preference, Preference] = {"first": "second", "second": "first", "tie": "tie"}
    swapped: dict[Verdict, Verdict] = {"win": "lose", "tie": "tie", "lose": "win"}
    assert combine(other[candidate_first], other[candidate_second]) == swapped[verdict]


def test_worked_by_hand() -> None:
    # 5 wins, 2 ties, 3 losses of 10: 50 % - 30 % = 20 %; a tie counted as a win would give 40 %
    found = verdicts("wwtlwtlwlw")
    assert preference_rate(found).value == pytest.approx(0.2, rel=1e-15)
    assert [share(found, one).value for one in ("win", "tie", "lose")] == pytest.approx([0.5, 0.2, 0.3], rel=1e-15)


def test_the_interval_agrees_with_a_plain_loop_over_the_same_draws() -> None:
    found = verdicts("wwtlwtlwlwwwl")
    points = [{"win": 1, "tie": 0, "lose": -1}[verdict] for verdict in found]
    draws = np.random.default_rng(5).integers(0, len(found), size=(300, len(found)))
    rates = [sum(points[at] for at in draw) / len(found) for draw in draws]
    interval = preference_rate(found, resamples=300, seed=5)
    assert (interval.low, interval.high) == pytest.approx((quantile(rates, 0.025), quantile(rates, 0.975)), abs=1e-12)


def test_swapping_the_sides_negates_rate_and_interval() -> None:
    one, other = (preference_rate(verdicts(letters)) for letters in ("wwtlwtlwlw", "lltwltwlwl"))
    assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low), abs=1e-15)


def test_a_better_verdict_raises_the_rate_and_never_lowers_a_bound() -> None:
    worse, better = preference_rate(verdicts("wltlwtlwll")), preference_rate(verdicts("wlwlwtlwtl"))
    assert better.value == pytest.approx(worse.value + 2 / 10)
    assert better.low >= worse.low
    assert better.high >= worse.high


def test_differences_are_paired_by_prompt() -> None:
    # hard prompts are lost by both: the two differ on 1 prompt of 20, whatever prompts are drawn
    one = verdicts("wwwwwwwwwwllllllllll")
    other = verdicts("wwwwwwwwwtllllllllll")
    draws = np.random.default_rng(0).integers(0, 20, size=(2000, 20))
    by_loop = [sum(1 for at in draw if at == 9) / 20 for draw in draws]
    found = rate_difference(one, other)
    assert found.value == pytest.approx(1 / 20)
    assert (found.low, found.high) == pytest.approx((quantile(by_loop, 0.025), quantile(by_loop, 0.975)), abs=1e-12)
    # the planted defect, prompts drawn apart for each side, has an interval many times as wide
    apart = np.random.default_rng(1).integers(0, 20, size=(2000, 20))
    points = np.array([[1] * 10 + [-1] * 10, [1] * 9 + [0] + [-1] * 10])
    unpaired = points[0][draws].mean(axis=1) - points[1][apart].mean(axis=1)
    assert quantile(unpaired.tolist(), 0.975) - quantile(unpaired.tolist(), 0.025) > 5 * (found.high - found.low)


def test_equal_verdicts_differ_by_nothing() -> None:
    found = verdicts("wtlwwl")
    assert rate_difference(found, found) == Interval(0.0, 0.0, 0.0)


def test_other_numbers_of_verdicts_are_refused() -> None:
    with pytest.raises(DataError, match="2 and 1 verdicts"):
        rate_difference(verdicts("wt"), verdicts("w"))
    with pytest.raises(DataError, match="no prompts"):
        preference_rate([])


def test_longer_wins_and_equal_is_a_tie() -> None:
    assert longer_wins([5, 3, 4, 0], [4, 3, 9, 0]) == ["win", "tie", "lose", "tie"]
