from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_dadpo.errors import DataError
from lightning_dadpo.evaluation.bootstrap import Interval, mean_interval, ratio_difference, ratio_interval


def test_E3_the_value_is_the_ratio_of_sums_not_the_mean_of_ratios() -> None:
    # 1 nat over 1 token, 9 nats over 3 tokens: 10 / 4, where averaging per prompt would say (1 + 3) / 2 = 2
    assert ratio_interval([1.0, 9.0], [1, 3]).value == 2.5


def test_two_prompts_have_three_possible_draws() -> None:
    # each draw of two prompts is (a, a), (a, b) or (b, b): ratios 1, 2.5, 3 with probability 1/4, 1/2, 1/4
    interval = ratio_interval([1.0, 9.0], [1, 3], resamples=4000)
    assert interval == Interval(2.5, 1.0, 3.0)
    # a level of 0.4 keeps quantiles 0.3 to 0.7, which all lie inside the middle half
    assert ratio_interval([1.0, 9.0], [1, 3], resamples=4000, level=0.4) == Interval(2.5, 2.5, 2.5)


def test_agrees_with_a_plain_loop_over_the_same_draws() -> None:
    tops, bottoms = [3.0, 0.5, 8.0, 2.0, 7.0], [2, 1, 9, 1, 4]
    ratios = []
    for draw in np.random.default_rng(7).integers(0, 5, size=(50, 5)):
        ratios.append(sum(tops[at] for at in draw) / sum(bottoms[at] for at in draw))
    ordered = sorted(ratios)

    def quantile(share: float) -> float:
        place = share * 49
        below = math.floor(place)
        return ordered[below] + (place - below) * (ordered[min(below + 1, 49)] - ordered[below])

    interval = ratio_interval(tops, bottoms, resamples=50, seed=7, level=0.9)
    assert interval.value == pytest.approx(20.5 / 17, rel=1e-15)
    assert (interval.low, interval.high) == pytest.approx((quantile(0.05), quantile(0.95)), rel=1e-12)


def test_one_prompt_has_no_spread() -> None:
    assert ratio_interval([0.3], [7]) == Interval(0.3 / 7, 0.3 / 7, 0.3 / 7)


def test_the_mean_is_the_ratio_over_ones() -> None:
    values = [True, False, True, True]
    assert mean_interval(values).value == 0.75
    assert mean_interval(values, seed=3) == ratio_interval([1.0, 0.0, 1.0, 1.0], [1, 1, 1, 1], seed=3)


def test_same_seed_same_interval_other_seed_other_interval() -> None:
    tops, bottoms = list(np.random.default_rng(0).gamma(2.0, size=20)), [1 + at % 5 for at in range(20)]
    assert ratio_interval(tops, bottoms, seed=1) == ratio_interval(tops, bottoms, seed=1)
    assert ratio_interval(tops, bottoms, seed=1).low != ratio_interval(tops, bottoms, seed=2).low


def test_covers_the_truth_about_as_often_as_it_says() -> None:
    # token counts and nats drawn together, true ratio 1.5; 40 prompts a data set, 300 data sets
    random, hits = np.random.default_rng(12), 0
    for _ in range(300):
        tokens = random.integers(5, 50, size=40)
        nats = tokens * random.gamma(3.0, 0.5, size=40)
        interval = ratio_interval(nats.tolist(), tokens.tolist(), resamples=400)
        hits += interval.low <= 1.5 <= interval.high
    assert 0.88 <= hits / 300 <= 0.98


def test_nothing_of_nothing_is_nothing() -> None:
    assert ratio_interval([0, 0], [0, 0]) == Interval(0.0, 0.0, 0.0)
    assert ratio_interval([0, 1], [0, 4]).value == 0.25


@pytest.mark.parametrize(
    ("numerators", "denominators", "said"),
    [
        ([], [], "no prompts"),
        ([1.0], [1, 2], "1 numerators but 2 denominators"),
        ([math.nan], [1], "not finite"),
        ([1.0], [math.inf], "not finite"),
        ([1.0, 2.0], [1, 0], "prompt 1 has 2.0 over 0.0"),
        ([1.0], [-1], "prompt 0 has 1.0 over -1.0"),
    ],
)
def test_refuses_what_has_no_ratio(numerators: list[float], denominators: list[float], said: str) -> None:
    with pytest.raises(DataError, match=said):
        ratio_interval(numerators, denominators)


def test_a_difference_is_paired_by_prompt() -> None:
    # the other model needs 1 nat more for each token of every prompt: the difference is 1 in every draw, though each
    # model's own interval is wide (planted: draws of two seeds give an interval of some nats)
    tops, bottoms = [1.0, 9.0, 40.0, 2.0], [1, 3, 5, 4]
    more = [top + bottom for top, bottom in zip(tops, bottoms, strict=True)]
    found = ratio_difference(more, bottoms, tops, bottoms)
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0), abs=1e-12)
    alone = ratio_interval(tops, bottoms)
    assert alone.high - alone.low > 2


def test_a_difference_agrees_with_a_plain_loop_over_the_same_draws() -> None:
    mine, theirs = ([3.0, 0.5, 8.0], [2, 1, 9]), ([1.0, 0.0, 4.0], [3, 0, 2])  # 0 of 0, as n-grams of a short answer
    found = []
    for draw in np.random.default_rng(7).integers(0, 3, size=(40, 3)):
        below = sum(theirs[1][at] for at in draw)
        other = sum(theirs[0][at] for at in draw) / below if below else 0.0
        found.append(sum(mine[0][at] for at in draw) / sum(mine[1][at] for at in draw) - other)
    interval = ratio_difference(*mine, *theirs, resamples=40, seed=7)
    assert interval.value == pytest.approx(11.5 / 12 - 1.0, abs=1e-12)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(found, [0.025, 0.975])), abs=1e-12)
    with pytest.raises(DataError, match="3 prompts against 2, expected the same ones"):
        ratio_difference(*mine, [1.0, 2.0], [1, 1])
