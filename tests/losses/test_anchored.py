"""The anchored loss against METHOD.md: float64 oracle, and what follows from the algebra."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.losses import (
    anchored_margin,
    check_betas,
    dadpo_loss,
    dpo_loss,
    implicit_reward,
    preference_loss,
)
from lightning_dadpo.types import PairLogProbs, SequenceLogProbs
from tests import oracles

BETAS = {"reference": 0.05, "teacher": 0.1, "teacher_b": 0.02}
SIZES = [0, 1, 7]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-5}


def sums(values: Tensor) -> SequenceLogProbs:
    return SequenceLogProbs(values, torch.full(values.shape, 3, dtype=torch.long))


def pairs_of(rows: list[oracles.Pair], dtype: torch.dtype = torch.float64) -> PairLogProbs:
    table = torch.tensor(rows, dtype=dtype).reshape(-1, 2)
    return PairLogProbs(sums(table[:, 0]), sums(table[:, 1]))


def random_pairs(size: int, dtype: torch.dtype, seed: int) -> PairLogProbs:
    """Sums between -60 and 0 nats, rounded to `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    table = -60 * torch.rand(size, 2, generator=generator, dtype=torch.float64)
    return PairLogProbs(sums(table[:, 0].to(dtype)), sums(table[:, 1].to(dtype)))


def rows_of(scores: PairLogProbs) -> list[oracles.Pair]:
    return list(zip(scores.chosen.total.double().tolist(), scores.rejected.total.double().tolist(), strict=True))


def oracle_margins(
    policy: PairLogProbs, anchors: Mapping[str, PairLogProbs], betas: Mapping[str, float]
) -> list[float]:
    columns = {name: rows_of(scores) for name, scores in anchors.items()}
    return [
        oracles.margin(row, {name: column[i] for name, column in columns.items()}, betas)
        for i, row in enumerate(rows_of(policy))
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_equal_the_float64_oracle(dtype: torch.dtype, size: int) -> None:
    policy = random_pairs(size, dtype, 1)
    anchors = {name: random_pairs(size, dtype, seed) for seed, name in enumerate(BETAS, 2)}
    expected = oracle_margins(policy, anchors, BETAS)
    margin = anchored_margin(policy, anchors, BETAS)
    assert margin.shape == (size,)
    assert margin.tolist() == pytest.approx(expected, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
    losses = preference_loss(margin).tolist()
    assert losses == pytest.approx(
        [oracles.preference_loss(m) for m in expected], rel=TOLERANCE[dtype], abs=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_equal_the_oracles_weight_with_a_coefficient_for_each_pair(dtype: torch.dtype, size: int) -> None:
    drawn = random_pairs(size, dtype, 1)
    chosen, rejected = (side.total.clone().requires_grad_() for side in (drawn.chosen, drawn.rejected))
    policy = PairLogProbs(sums(chosen), sums(rejected))
    anchors = {name: random_pairs(size, dtype, seed) for seed, name in enumerate(BETAS, 2)}
    coefficients = [0.3 + 0.7 * i for i in range(size)]
    loss = preference_loss(anchored_margin(policy, anchors, BETAS))
    (loss * torch.tensor(coefficients, dtype=dtype)).sum().backward()  # type: ignore[no-untyped-call]
    expected = [
        c * oracles.gap_weight(m, BETAS)
        for c, m in zip(coefficients, oracle_margins(drawn, anchors, BETAS), strict=True)
    ]
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx(expected, rel=10 * TOLERANCE[dtype])
    assert rejected.grad.tolist() == pytest.approx([-g for g in expected], rel=10 * TOLERANCE[dtype])


def test_the_two_named_losses_are_the_anchored_one() -> None:
    policy, reference, teacher = (random_pairs(7, torch.float64, seed) for seed in (1, 2, 3))
    losses = dadpo_loss(policy, reference, teacher, beta_reference=0.05, beta_teacher=0.1)
    expected = oracle_margins(policy, {"r": reference, "t": teacher}, {"r": 0.05, "t": 0.1})
    assert losses.tolist() == pytest.approx([oracles.preference_loss(m) for m in expected])
    expected = oracle_margins(policy, {"r": reference}, {"r": 0.3})
    assert dpo_loss(policy, reference, beta=0.3).tolist() == pytest.approx(
        [oracles.preference_loss(m) for m in expected]
    )
    only_teacher = dadpo_loss(policy, reference, teacher, beta_reference=0.0, beta_teacher=0.3)
    assert torch.equal(only_teacher, dpo_loss(policy, teacher, beta=0.3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_consequence_1_a_teacher_of_weight_0_is_dpo_bit_for_bit(dtype: torch.dtype) -> None:
    policy, reference, teacher = (random_pairs(7, dtype, seed) for seed in (1, 2, 3))
    losses: tuple[Callable[[PairLogProbs], Tensor], ...] = (
        lambda p: dadpo_loss(p, reference, teacher, beta_reference=0.1, beta_teacher=0.0),
        lambda p: dpo_loss(p, reference, beta=0.1),
    )
    values, gradients = [], []
    for loss in losses:
        chosen = policy.chosen.total.clone().requires_grad_()
        values.append(loss(PairLogProbs(sums(chosen), policy.rejected)))
        gradients.append(torch.autograd.grad(values[-1].sum(), chosen)[0])
    assert torch.equal(values[0], values[1])
    assert torch.equal(gradients[0], gradients[1])


def test_consequence_1_nan_in_an_anchor_of_weight_0_cannot_leak() -> None:
    policy, reference = random_pairs(4, torch.float64, 1), random_pairs(4, torch.float64, 2)
    broken = pairs_of([(math.nan, math.inf)] * 4)
    betas = {"reference": 0.1, "teacher": 0.0}
    chosen = policy.chosen.total.clone().requires_grad_()
    margin = anchored_margin(
        PairLogProbs(sums(chosen), policy.rejected), {"reference": reference, "teacher": broken}, betas
    )
    margin.sum().backward()  # type: ignore[no-untyped-call]
    assert margin.isfinite().all()
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()
    assert torch.equal(margin, anchored_margin(policy, {"reference": reference}, betas))  # nor need it be scored
    multiplied = 0.1 * (policy.gap - reference.gap) + 0.0 * (policy.gap - broken.gap)  # the defect
    assert multiplied.isnan().all()


def test_consequence_2_three_equal_models_give_ln_2_and_no_reward() -> None:
    same = random_pairs(7, torch.float32, 1)
    assert dadpo_loss(same, same, same, beta_reference=0.1, beta_teacher=0.3).tolist() == pytest.approx(
        [0.69314718056] * 7
    )
    assert anchored_margin(same, {"a": same}, {"a": 0.1}).tolist() == [0.0] * 7
    assert implicit_reward(same.chosen, {"a": same.chosen}, {"a": 0.1}).tolist() == [0.0] * 7


def step_0_oracle(start: PairLogProbs, anchors: Mapping[str, PairLogProbs]) -> list[float]:
    columns = {name: rows_of(scores) for name, scores in anchors.items()}
    return [
        oracles.softplus(math.fsum(BETAS[k] * (oracles.gap(c[i]) - oracles.gap(row)) for k, c in columns.items()))
        for i, row in enumerate(rows_of(start))
    ]  # fmt: skip


def test_consequence_3_step_0_pair_by_pair_and_what_it_notices() -> None:
    reference, *others = (random_pairs(7, torch.float64, seed) for seed in (1, 2, 3))
    anchors = dict(zip(BETAS, (reference, *others), strict=True))
    expected = step_0_oracle(reference, anchors)
    # starting at the reference, only the teachers are left
    assert expected == pytest.approx([
        oracles.softplus(0.1 * (oracles.gap(t) - oracles.gap(r)) + 0.02 * (oracles.gap(u) - oracles.gap(r)))
        for r, t, u in zip(rows_of(reference), rows_of(others[0]), rows_of(others[1]), strict=True)
    ])  # fmt: skip
    measured = preference_loss(anchored_margin(reference, anchors, BETAS))
    assert measured.tolist() == pytest.approx(expected)
    order = torch.arange(6, -1, -1)
    misplaced = PairLogProbs(reference.chosen[order], reference.rejected[order])
    wrong = preference_loss(anchored_margin(misplaced, anchors, BETAS))
    assert wrong.tolist() != pytest.approx(expected, rel=1e-3)  # a row order defect shows pair by pair
    swapped = {**anchors, "teacher": PairLogProbs(others[0].rejected, others[0].chosen)}
    both_sides = preference_loss(anchored_margin(reference, swapped, BETAS))
    assert both_sides.tolist() == pytest.approx(step_0_oracle(reference, swapped))  # it says nothing of the teacher
    assert both_sides.tolist() != pytest.approx(expected, rel=1e-3)


nats = st.floats(-800, 0, allow_nan=False)
pair = st.tuples(nats, nats)
weight = st.floats(1e-6, 10)


@settings(max_examples=60, deadline=None)
@given(policy=pair, first=pair, second=pair, betas=st.tuples(weight, weight), shift=st.floats(-1e3, 1e3))
def test_consequence_4_a_constant_on_both_responses_changes_nothing(
    policy: oracles.Pair, first: oracles.Pair, second: oracles.Pair, betas: tuple[float, float], shift: float
) -> None:
    weights = {"a": betas[0], "b": betas[1]}

    def measured(rows: list[oracles.Pair]) -> float:
        p, a, b = (pairs_of([row]) for row in rows)
        return anchored_margin(p, {"a": a, "b": b}, weights).item()

    plain = measured([policy, first, second])
    for model in range(3):
        rows = [policy, first, second]
        rows[model] = (rows[model][0] + shift, rows[model][1] + shift)
        assert measured(rows) == pytest.approx(plain, abs=1e-11 * sum(betas) * 1e3)


@settings(max_examples=60, deadline=None)
@given(policy=pair, first=pair, second=pair, betas=st.tuples(weight, weight))
def test_consequence_4_swapping_the_responses_negates_the_margin(
    policy: oracles.Pair, first: oracles.Pair, second: oracles.Pair, betas: tuple[float, float]
) -> None:
    weights = {"a": betas[0], "b": betas[1]}
    p, a, b = (pairs_of([row]) for row in (policy, first, second))
    swapped = [PairLogProbs(scores.rejected, scores.chosen) for scores in (p, a, b)]
    margin = anchored_margin(p, {"a": a, "b": b}, weights)
    assert torch.equal(anchored_margin(swapped[0], {"a": swapped[1], "b": swapped[2]}, weights), -margin)


def test_consequence_4_large_sums_cancel_within_a_model_first() -> None:
    """At 2^24 nats float32 holds whole numbers only: per-response ratios would lose the pair, gaps keep it."""
    far = float(2**24)
    policy, anchor = pairs_of([(-far, -far - 2)], torch.float32), pairs_of([(-0.25, -0.5)], torch.float32)
    assert anchored_margin(policy, {"a": anchor}, {"a": 1.0}).tolist() == [2 - 0.25]
    ratio_form = (policy.chosen.total - anchor.chosen.total) - (policy.rejected.total - anchor.rejected.total)
    assert ratio_form.tolist() != [2 - 0.25]


def test_consequence_5_implicit_rewards_equal_the_oracle_and_give_the_margin() -> None:
    policy = random_pairs(7, torch.float64, 1)
    anchors = {name: random_pairs(7, torch.float64, seed) for seed, name in enumerate(BETAS, 2)}
    rewards = []
    for side in ("chosen", "rejected"):
        reward = implicit_reward(getattr(policy, side), {k: getattr(v, side) for k, v in anchors.items()}, BETAS)
        totals = {k: getattr(v, side).total.tolist() for k, v in anchors.items()}
        assert reward.tolist() == pytest.approx([
            oracles.implicit_reward(p, {k: column[i] for k, column in totals.items()}, BETAS)
            for i, p in enumerate(getattr(policy, side).total.tolist())
        ])  # fmt: skip
        rewards.append(reward)
    assert (rewards[0] - rewards[1]).tolist() == pytest.approx(anchored_margin(policy, anchors, BETAS).tolist())


def test_the_optimum_of_the_objective_has_the_true_reward_as_its_implicit_one() -> None:
    """Theorem 1 backwards: pi* = prod pi_k^(b_k/B) exp(r/B) / Z gives r back, up to one constant."""
    anchors = {"r": [0.1, 0.2, 0.3, 0.4], "t": [0.4, 0.4, 0.1, 0.1], "u": [0.25, 0.05, 0.6, 0.1]}
    betas, reward = {"r": 0.5, "t": 0.2, "u": 0.9}, [1.0, -2.0, 0.3, 0.0]
    total = sum(betas.values())
    raw = [
        math.prod(anchors[k][y] ** (b / total) for k, b in betas.items()) * math.exp(reward[y] / total)
        for y in range(4)
    ]
    optimum = [value / sum(raw) for value in raw]

    def objective(policy: list[float]) -> float:
        kl = sum(
            b * sum(p * math.log(p / q) for p, q in zip(policy, anchors[k], strict=True)) for k, b in betas.items()
        )
        return sum(p * r for p, r in zip(policy, reward, strict=True)) - kl

    for away in ([0.01, -0.01, 0.0, 0.0], [0.0, 0.005, -0.01, 0.005]):
        assert objective([p + d for p, d in zip(optimum, away, strict=True)]) < objective(optimum)

    def logs(row: list[float]) -> SequenceLogProbs:
        return sums(torch.tensor(row, dtype=torch.float64).log())

    found = implicit_reward(logs(optimum), {k: logs(row) for k, row in anchors.items()}, betas)
    assert (found - found[3]).tolist() == pytest.approx(reward)


def test_consequence_9_one_virtual_reference_and_the_reference_form() -> None:
    policy, reference, teacher = (random_pairs(7, torch.float64, seed) for seed in (1, 2, 3))
    anchors, betas = {"r": reference, "t": teacher}, {"r": 0.05, "t": 0.15}
    margin = anchored_margin(policy, anchors, betas)
    virtual = (0.05 * reference.gap + 0.15 * teacher.gap) / 0.2
    assert margin.tolist() == pytest.approx((0.2 * (policy.gap - virtual)).tolist())
    shifted = 0.2 * (policy.gap - reference.gap) - 0.15 * (teacher.gap - reference.gap)
    assert margin.tolist() == pytest.approx(shifted.tolist())


def test_two_anchors_with_the_same_scores_are_one_with_both_weights() -> None:
    policy, anchor = random_pairs(7, torch.float64, 1), random_pairs(7, torch.float64, 2)
    both = anchored_margin(policy, {"a": anchor, "b": anchor}, {"a": 0.1, "b": 0.3})
    assert both.tolist() == pytest.approx(anchored_margin(policy, {"a": anchor}, {"a": 0.4}).tolist())


@pytest.mark.parametrize("beta", [1e-6, 1e-12])
def test_D2_small_weights_act(beta: float) -> None:
    policy, reference, teacher = (random_pairs(3, torch.float64, seed) for seed in (1, 2, 3))
    with_it = anchored_margin(policy, {"r": reference, "t": teacher}, {"r": 0.1, "t": beta})
    without = anchored_margin(policy, {"r": reference}, {"r": 0.1})
    expected = [
        beta * (oracles.gap(p) - oracles.gap(t)) for p, t in zip(rows_of(policy), rows_of(teacher), strict=True)
    ]
    assert (with_it - without).tolist() == pytest.approx(expected, rel=1e-2 if beta < 1e-9 else 1e-7)
    alone = anchored_margin(policy, {"t": teacher}, {"t": beta})
    assert alone.tolist() == pytest.approx(expected, rel=1e-12)
    assert all(abs(value) > 0 for value in expected)  # a gate at 1e-3 would leave zeros


def frozen_anchors(policy: PairLogProbs) -> tuple[dict[str, PairLogProbs], list[Tensor]]:
    leaves = [random_pairs(3, torch.float64, seed).chosen.total.clone().requires_grad_() for seed in (2, 3)]
    return {n: PairLogProbs(sums(leaf), policy.rejected) for n, leaf in zip(("r", "t"), leaves, strict=True)}, leaves


def test_D3_no_gradient_of_the_loss_flows_into_an_anchor() -> None:
    policy = random_pairs(3, torch.float64, 1)
    own = policy.chosen.total.clone().requires_grad_()
    anchors, leaves = frozen_anchors(policy)
    margin = anchored_margin(PairLogProbs(sums(own), policy.rejected), anchors, {"r": 0.1, "t": 0.2})
    preference_loss(margin).sum().backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    assert own.grad.abs().min() > 0
    assert all(leaf.grad is None for leaf in leaves)


def test_D3_no_gradient_of_the_reward_flows_into_an_anchor() -> None:
    policy = random_pairs(3, torch.float64, 1)
    own = policy.chosen.total.clone().requires_grad_()
    anchors, leaves = frozen_anchors(policy)
    reward = implicit_reward(sums(own), {name: a.chosen for name, a in anchors.items()}, {"r": 0.1, "t": 0.2})
    if reward.requires_grad:
        reward.sum().backward()  # type: ignore[no-untyped-call]
    assert all(leaf.grad is None for leaf in leaves)


def test_consequence_7_a_hundredth_of_a_nat_at_minus_500_survives() -> None:
    policy, anchor = pairs_of([(-500.0, -500.01)], torch.float32), pairs_of([(-1.0, -1.0)], torch.float32)
    assert anchored_margin(policy, {"a": anchor}, {"a": 1.0}).item() == pytest.approx(0.01, rel=5e-3)
    spacing = torch.tensor(-500.0, dtype=torch.bfloat16) - torch.tensor(-502.0, dtype=torch.bfloat16)
    assert spacing.item() == 2.0
    assert torch.tensor(-500.9, dtype=torch.bfloat16).item() == -500.0


def test_extreme_margins_keep_value_and_gradient() -> None:
    margin = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], dtype=torch.float64, requires_grad=True)
    loss = preference_loss(margin)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert loss.tolist() == pytest.approx([oracles.preference_loss(m) for m in margin.tolist()], rel=1e-12, abs=0)
    assert margin.grad is not None
    assert margin.grad.tolist() == pytest.approx([oracles.margin_weight(m) for m in margin.tolist()], rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("betas", "named"),
    [
        ({"reference": -0.1, "teacher": 0.2}, "reference"),
        ({"reference": 0.1, "teacher": math.nan}, "teacher"),
        ({"reference": 0.1, "teacher": math.inf}, "teacher"),
        ({"reference": 0.0, "teacher": 0.0}, "positive|0"),
        ({}, "positive|0|anchor"),
    ],
)
def test_weights_that_define_no_objective_are_refused(betas: dict[str, float], named: str) -> None:
    scores = random_pairs(2, torch.float64, 1)
    with pytest.raises(ConfigError, match=named) as refused:
        check_betas(betas)
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match=named):
        anchored_margin(scores, {"reference": scores, "teacher": scores}, betas)
    with pytest.raises(ConfigError, match=named):
        implicit_reward(scores.chosen, {"reference": scores.chosen, "teacher": scores.chosen}, betas)


def test_a_weighted_anchor_without_scores_is_refused_by_name() -> None:
    scores = random_pairs(2, torch.float64, 1)
    with pytest.raises(ConfigError, match="teacher"):
        anchored_margin(scores, {"reference": scores}, {"reference": 0.1, "teacher": 0.1})


@pytest.mark.parametrize("size", [1, 3])
def test_an_anchor_with_another_number_of_pairs_is_not_broadcast(size: int) -> None:
    policy, anchor = random_pairs(2, torch.float64, 1), random_pairs(size, torch.float64, 2)
    with pytest.raises(Exception, match="another number"):
        anchored_margin(policy, {"a": anchor}, {"a": 0.1})


def test_a_reward_against_an_anchor_without_scores_is_refused_by_name() -> None:
    scores = random_pairs(2, torch.float64, 1).chosen
    with pytest.raises(ConfigError, match="teacher"):
        implicit_reward(scores, {"reference": scores}, {"reference": 0.1, "teacher": 0.1})
