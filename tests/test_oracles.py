"""The oracles against numbers worked out by hand, so that they are not their own witness."""

from __future__ import annotations

import math

import pytest

from tests import oracles


def test_log_softmax_of_logarithms_is_their_share() -> None:
    assert oracles.log_softmax([math.log(1), math.log(2), math.log(5)]) == pytest.approx(
        [math.log(1 / 8), math.log(2 / 8), math.log(5 / 8)]
    )
    assert oracles.log_softmax([1000.0, 1000.0]) == pytest.approx([-math.log(2)] * 2)


def test_a_sequence_is_predicted_one_position_earlier() -> None:
    even, sure = [0.0, 0.0], [0.0, math.log(3)]
    logits = [even, sure, even, even]
    # the prompt is ids[:2]; id 1 at index 2 is predicted at index 1 with 3/4, id 0 at index 3 with 1/2
    total, count = oracles.sequence_log_prob(logits, [0, 1, 1, 0], 2, 4)
    assert total == pytest.approx(math.log(3 / 8))
    assert count == 2


def test_margin_loss_and_weight_of_a_pair_worked_by_hand() -> None:
    policy, anchors = (-10.0, -14.0), {"reference": (-12.0, -13.0), "teacher": (-8.0, -20.0)}
    betas = {"reference": 0.5, "teacher": 0.25}
    # D: policy 4, reference 1, teacher 12: 0.5 * 3 + 0.25 * -8 = -0.5
    margin = oracles.margin(policy, anchors, betas)
    assert margin == pytest.approx(-0.5)
    assert oracles.preference_loss(margin) == pytest.approx(math.log(1 + math.exp(0.5)))
    assert oracles.gap_weight(margin, betas) == pytest.approx(-0.75 / (1 + math.exp(-0.5)))
    assert oracles.implicit_reward(-10.0, {"reference": -12.0, "teacher": -8.0}, betas) == pytest.approx(0.5)


def test_extremes_neither_overflow_nor_vanish() -> None:
    assert oracles.softplus(800.0) == 800.0
    assert oracles.softplus(-40.0) == pytest.approx(math.exp(-40), rel=1e-12)
    assert oracles.sigmoid(-800.0) == 0.0


def test_kl_of_two_coins() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): 1/2 ln 2 + 1/2 ln 2/3
    value = oracles.kl_divergence([0.0, 0.0], [0.0, math.log(3)])
    assert value == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_the_hidden_gradient_agrees_with_differences() -> None:
    hidden, weight = [[0.3, -0.2], [0.1, 0.5], [0.7, 0.2]], [[0.2, 0.1], [-0.4, 0.3], [0.5, -0.6]]
    ids, prompt, length = [0, 2, 1], 1, 3

    def total(states: list[list[float]]) -> float:
        return oracles.sequence_log_prob([oracles.head_logits(s, weight) for s in states], ids, prompt, length)[0]

    by_hidden, _ = oracles.sequence_hidden_gradient(hidden, weight, ids, prompt, length, 1.5)
    for t in range(3):
        for d in range(2):
            up, down = [list(s) for s in hidden], [list(s) for s in hidden]
            up[t][d] += 1e-5
            down[t][d] -= 1e-5
            assert by_hidden[t][d] == pytest.approx(1.5 * (total(up) - total(down)) / 2e-5, abs=1e-8)
    assert by_hidden[2] == [0.0, 0.0]
