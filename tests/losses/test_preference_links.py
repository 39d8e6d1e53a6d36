"""Hinge, IPO, robust, conservative and SimPO: worked numbers, float64 oracles, what the algebra says, defects."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_dadpo.losses import (
    DPO,
    IPO,
    AnchoredPreference,
    ConservativeDPO,
    HingePreference,
    PreferenceObjective,
    RobustDPO,
    SimPO,
    anchored,
    anchored_margin,
    conservative_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    preference_links,
    preference_loss,
    robust_loss,
    simpo_loss,
)
from lightning_dadpo.types import PairLogProbs, SequenceLogProbs
from tests import oracles, preference_oracles

BETAS = {"reference": 0.05, "teacher": 0.1, "teacher_b": 0.02}
ONE = {"reference": 0.1}
NOISE, BETA, GAMMA = 0.2, 2.0, 0.7
DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}
"""IPO divides differences of sums near -60 nats by small weights and squares them."""

Oracle = Callable[[oracles.Pair, Mapping[str, oracles.Pair], tuple[int, int]], float]


def objectives(betas: dict[str, float]) -> dict[str, tuple[PreferenceObjective, Oracle]]:
    """Each objective with what it must say of one pair."""
    return {
        "ipo": (IPO(betas), lambda p, a, n: preference_oracles.ipo(p, a, betas)),
        "hinge": (HingePreference(betas), lambda p, a, n: preference_oracles.hinge(p, a, betas)),
        "robust": (RobustDPO(betas, NOISE), lambda p, a, n: preference_oracles.robust(p, a, betas, NOISE)),
        "conservative": (
            ConservativeDPO(betas, NOISE),
            lambda p, a, n: preference_oracles.conservative(p, a, betas, NOISE),
        ),
        "simpo": (SimPO(BETA, GAMMA), lambda p, a, n: preference_oracles.simpo(p, n, BETA, GAMMA)),
    }


NAMES = list(objectives(ONE))


def pairs(rows: list[oracles.Pair], lengths: list[tuple[int, int]], dtype: torch.dtype = torch.float64) -> PairLogProbs:
    table, counts = (
        torch.tensor(rows, dtype=dtype).reshape(-1, 2),
        torch.tensor(lengths, dtype=torch.long).reshape(-1, 2),
    )
    return PairLogProbs(SequenceLogProbs(table[:, 0], counts[:, 0]), SequenceLogProbs(table[:, 1], counts[:, 1]))


def random_pairs(size: int, dtype: torch.dtype, seed: int) -> PairLogProbs:
    """Sums between -60 and 0 nats and lengths between 1 and 40 tokens; only the seed decides the sums."""
    generator = torch.Generator().manual_seed(seed)
    sums = (-60 * torch.rand(size, 2, generator=generator, dtype=torch.float64)).tolist()
    lengths = torch.randint(1, 41, (size, 2), generator=torch.Generator().manual_seed(0)).tolist()
    return pairs([tuple(row) for row in sums], [tuple(row) for row in lengths], dtype)


def rows_of(scores: PairLogProbs) -> list[oracles.Pair]:
    return list(zip(scores.chosen.total.double().tolist(), scores.rejected.total.double().tolist(), strict=True))


def lengths_of(scores: PairLogProbs) -> list[tuple[int, int]]:
    return list(zip(scores.chosen.num_tokens.tolist(), scores.rejected.num_tokens.tolist(), strict=True))


def of_each(policy: PairLogProbs, anchors: Mapping[str, PairLogProbs], oracle: Oracle) -> list[float]:
    columns = {name: rows_of(scores) for name, scores in anchors.items()}
    return [
        oracle(row, {name: column[i] for name, column in columns.items()}, lengths)
        for i, (row, lengths) in enumerate(zip(rows_of(policy), lengths_of(policy), strict=True))
    ]


def test_ipo_by_hand() -> None:
    """D: policy 4, reference 1, teacher 12. tau 0.1: h = 3, target 5. Two anchors: B = 0.2, Dbar = 6.5, target 2.5."""
    policy, reference, teacher = (pairs([row], [(3, 5)]) for row in ((-10.0, -14.0), (-12.0, -13.0), (-8.0, -20.0)))
    one = IPO({"reference": 0.1})(policy, {"reference": reference})
    assert one.loss.tolist() == pytest.approx([(3 - 5) ** 2])
    assert one.margin.tolist() == pytest.approx([0.3])
    assert one.weight.tolist() == pytest.approx([-2 * (3 - 5) / 0.1])  # d h / d margin = 1 / tau
    two = IPO({"reference": 0.1, "teacher": 0.1})(policy, {"reference": reference, "teacher": teacher})
    assert two.loss.tolist() == pytest.approx([(4 - 6.5 - 2.5) ** 2])


def test_hinge_robust_and_conservative_by_hand() -> None:
    margin = torch.tensor([-2.0, 0.0, 0.75, 1.0, 3.0], dtype=torch.float64)
    assert hinge_loss(margin).tolist() == [3.0, 1.0, 0.25, 0.0, 0.0]
    up, down = math.log(1 + math.exp(-3)), math.log(1 + math.exp(3))  # of margin 3, and of the labels flipped
    assert robust_loss(margin, flip_probability=0.1)[4].item() == pytest.approx((0.9 * up - 0.1 * down) / 0.8)
    assert conservative_loss(margin, label_smoothing=0.1)[4].item() == pytest.approx(0.9 * up + 0.1 * down)
    for loss in (robust_loss(margin, flip_probability=0.3), conservative_loss(margin, label_smoothing=0.3)):
        assert loss[1].item() == pytest.approx(math.log(2))


def test_simpo_by_hand() -> None:
    """-2 nats a token against -2.5; beta 2, gamma 0.4: rewards -4 and -5, 0.6 above the target."""
    policy = pairs([(-8.0, -5.0)], [(4, 2)])
    outcome = SimPO(beta=2.0, gamma=0.4)(policy, {})
    assert outcome.chosen_reward.tolist() == [-4.0]
    assert outcome.rejected_reward.tolist() == [-5.0]
    assert outcome.margin.tolist() == [1.0]  # what accuracy asks about: gamma is not in it
    assert outcome.loss.tolist() == pytest.approx([math.log(1 + math.exp(-0.6))])
    assert outcome.weight.tolist() == pytest.approx([1 / (1 + math.exp(0.6))])
    assert torch.equal(outcome.loss, simpo_loss(policy, beta=2.0, gamma=0.4))


@pytest.mark.parametrize("betas", [ONE, BETAS], ids=["one anchor", "three anchors"])
@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_values_equal_the_float64_oracle(name: str, dtype: torch.dtype, size: int, betas: dict[str, float]) -> None:
    objective, oracle = objectives(betas)[name]
    policy = random_pairs(size, dtype, 1)
    anchors = {anchor: random_pairs(size, dtype, seed) for seed, anchor in enumerate(betas, 2)}
    outcome = objective(policy, anchors)
    assert outcome.loss.shape == outcome.weight.shape == (size,)
    close = {"rel": TOLERANCE[dtype], "abs": TOLERANCE[dtype]}
    assert outcome.loss.tolist() == pytest.approx(of_each(policy, anchors, oracle), **close)
    assert (outcome.chosen_reward - outcome.rejected_reward).tolist() == pytest.approx(outcome.margin.tolist(), **close)


@pytest.mark.parametrize("betas", [ONE, BETAS], ids=["one anchor", "three anchors"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_B9_gradients_equal_the_oracles_with_a_coefficient_for_each_pair(
    name: str, dtype: torch.dtype, betas: dict[str, float]
) -> None:
    objective, oracle = objectives(betas)[name]
    drawn = random_pairs(7, dtype, 1)
    chosen, rejected = (side.total.clone().requires_grad_() for side in (drawn.chosen, drawn.rejected))
    policy = PairLogProbs(
        SequenceLogProbs(chosen, drawn.chosen.num_tokens), SequenceLogProbs(rejected, drawn.rejected.num_tokens)
    )
    anchors = {anchor: random_pairs(7, dtype, seed) for seed, anchor in enumerate(betas, 2)}
    coefficients = [0.3 + 0.7 * i for i in range(7)]
    (objective(policy, anchors).loss * torch.tensor(coefficients, dtype=dtype)).sum().backward()  # type: ignore[no-untyped-call]
    columns = {anchor: rows_of(scores) for anchor, scores in anchors.items()}
    assert chosen.grad is not None
    assert rejected.grad is not None
    for i, (row, lengths) in enumerate(zip(rows_of(drawn), lengths_of(drawn), strict=True)):
        scores = {anchor: column[i] for anchor, column in columns.items()}
        expected = preference_oracles.slopes(lambda p, a=scores, n=lengths: oracle(p, a, n), row)  # type: ignore[misc]
        found = (chosen.grad[i].item(), rejected.grad[i].item())
        close = {"rel": max(1e-6, TOLERANCE[dtype]), "abs": max(1e-7, TOLERANCE[dtype])}
        assert found == pytest.approx(tuple(coefficients[i] * slope for slope in expected), **close)


def differentiated(objective: PreferenceObjective, margin: Tensor) -> Tensor:
    at = margin.clone().requires_grad_()
    return -torch.autograd.grad(objective.link(at).sum(), at)[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_pairs_weight_is_the_links_slope_also_in_inference_mode(name: str) -> None:
    objective, _ = objectives(BETAS)[name]
    policy = random_pairs(7, torch.float64, 1)
    anchors = {anchor: random_pairs(7, torch.float64, seed) for seed, anchor in enumerate(BETAS, 2)}
    outcome = objective(policy, anchors)
    assert torch.equal(outcome.weight, differentiated(objective, outcome.margin))
    assert not outcome.weight.requires_grad
    with torch.inference_mode():
        again = objective(random_pairs(7, torch.float64, 1), anchors)
    assert torch.equal(again.weight, outcome.weight)


def test_the_weights_of_the_links_by_hand() -> None:
    """At margin 0: sigmoid(0) = 1/2, plus e / (1 - 2e) in robust, minus e in conservative."""
    zero = torch.zeros(1, dtype=torch.float64)
    assert differentiated(DPO(0.1), zero).item() == 0.5
    assert differentiated(RobustDPO(ONE, 0.2), zero).item() == pytest.approx(0.5 + 0.2 / 0.6)
    assert differentiated(ConservativeDPO(ONE, 0.2), zero).item() == pytest.approx(0.5 - 0.2)
    assert differentiated(HingePreference(ONE), zero + 0.99).item() == 1
    assert differentiated(HingePreference(ONE), zero + 1.01).item() == 0
    assert differentiated(IPO({"a": 0.25, "b": 0.25}), zero).item() == pytest.approx(1 / 0.5**2)
    assert differentiated(SimPO(2.0, 1.5), zero + 1.5).item() == 0.5


@pytest.mark.parametrize("make", [RobustDPO, ConservativeDPO])
def test_no_noise_is_dpo_bit_for_bit(make: Callable[..., PreferenceObjective]) -> None:
    policy, reference = random_pairs(7, torch.float32, 1), random_pairs(7, torch.float32, 2)
    outcome = make(ONE, 0.0)(policy, {"reference": reference})
    assert torch.equal(outcome.loss, dpo_loss(policy, reference, beta=0.1))
    assert torch.equal(outcome.weight, DPO(0.1)(policy, {"reference": reference}).weight)


def test_robust_is_unbiased_and_conservative_is_not_and_each_has_its_closed_form() -> None:
    margin = torch.linspace(-6, 6, 25, dtype=torch.float64)
    clean = preference_loss(margin)
    robust = {sign: robust_loss(sign * margin, flip_probability=0.3) for sign in (1, -1)}
    conservative = {sign: conservative_loss(sign * margin, label_smoothing=0.3) for sign in (1, -1)}
    assert torch.allclose(0.7 * robust[1] + 0.3 * robust[-1], clean, rtol=1e-12)
    assert not torch.allclose(0.7 * conservative[1] + 0.3 * conservative[-1], clean, rtol=1e-2)
    assert torch.allclose(robust[1], clean - margin * 0.3 / 0.4, rtol=1e-12)
    assert torch.allclose(conservative[1], clean + margin * 0.3, rtol=1e-12)


def test_conservative_is_least_where_the_label_is_as_sure_as_it_says() -> None:
    least = torch.tensor([math.log(0.9 / 0.1)], dtype=torch.float64, requires_grad=True)
    conservative_loss(least, label_smoothing=0.1).sum().backward()  # type: ignore[no-untyped-call]
    assert least.grad is not None
    assert least.grad.item() == pytest.approx(0, abs=1e-12)


def test_ipo_is_least_at_a_gap_of_one_over_two_tau_above_the_virtual_reference() -> None:
    anchors = {"a": pairs([(-10.0, -13.0)], [(2, 2)]), "b": pairs([(-10.0, -17.0)], [(2, 2)])}  # D 3 and 7
    policy = pairs([(-10.0, -10.0 - (0.25 * 3 + 0.75 * 7) - 1 / (2 * 0.4))], [(2, 2)])
    assert IPO({"a": 0.1, "b": 0.3})(policy, anchors).loss.item() == pytest.approx(0, abs=1e-20)


def test_a_teacher_alone_is_dpo_with_the_teacher_for_a_reference() -> None:
    policy, teacher = random_pairs(7, torch.float64, 1), random_pairs(7, torch.float64, 2)
    found = AnchoredPreference({"teacher": 0.1})(policy, {"teacher": teacher})
    assert torch.equal(found.loss, dpo_loss(policy, teacher, beta=0.1))


nats = st.floats(-200, 0, allow_nan=False)
pair = st.tuples(nats, nats)
lengths = st.tuples(st.integers(1, 50), st.integers(1, 50))


@settings(max_examples=30, deadline=None)
@given(policy=pair, first=pair, second=pair, shift=st.floats(-500, 500), name=st.sampled_from(NAMES[:-1]))
def test_consequence_4_a_constant_on_both_responses_changes_nothing(
    policy: oracles.Pair, first: oracles.Pair, second: oracles.Pair, shift: float, name: str
) -> None:
    objective, _ = objectives({"a": 0.3, "b": 0.4})[name]
    rows = [policy, first, second]
    plain = objective(pairs([policy], [(3, 9)]), {"a": pairs([first], [(3, 9)]), "b": pairs([second], [(3, 9)])})
    for model in range(3):
        moved = [(w + shift, r + shift) if i == model else (w, r) for i, (w, r) in enumerate(rows)]
        p, a, b = (pairs([row], [(3, 9)]) for row in moved)
        assert objective(p, {"a": a, "b": b}).loss.item() == pytest.approx(plain.loss.item(), rel=1e-8, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(policy=pair, tokens=lengths, shift=st.floats(-5, 5))
def test_simpo_is_indifferent_to_a_constant_on_every_token_not_on_both_responses(
    policy: oracles.Pair, tokens: tuple[int, int], shift: float
) -> None:
    plain = SimPO(BETA, GAMMA)(pairs([policy], [tokens]), {}).margin.item()
    each = (policy[0] + shift * tokens[0], policy[1] + shift * tokens[1])
    assert SimPO(BETA, GAMMA)(pairs([each], [tokens]), {}).margin.item() == pytest.approx(plain, abs=1e-9)
    both = SimPO(BETA, GAMMA)(pairs([(policy[0] + 10, policy[1] + 10)], [tokens]), {}).margin.item()
    assert both == pytest.approx(plain + BETA * 10 * (1 / tokens[0] - 1 / tokens[1]), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(policy=pair, anchor=pair, tokens=lengths, name=st.sampled_from(NAMES))
def test_consequence_4_swapping_the_responses_negates_margin_and_swaps_rewards(
    policy: oracles.Pair, anchor: oracles.Pair, tokens: tuple[int, int], name: str
) -> None:
    objective, _ = objectives(ONE)[name]
    one = objective(pairs([policy], [tokens]), {"reference": pairs([anchor], [tokens])})
    turned = tokens[::-1]
    other = objective(pairs([policy[::-1]], [turned]), {"reference": pairs([anchor[::-1]], [turned])})
    assert torch.equal(other.margin, -one.margin)
    assert torch.equal(other.chosen_reward, one.rejected_reward)


@settings(max_examples=30, deadline=None)
@given(value=st.floats(-50, 50))
def test_what_a_swap_does_to_each_loss(value: float) -> None:
    """loss(m) - loss(-m): linear in the margin, each with its own factor."""
    margin = torch.tensor([value], dtype=torch.float64)
    links: dict[float, Callable[[Tensor], Tensor]] = {
        -1.0: preference_loss,
        -1 / 0.6: lambda m: robust_loss(m, flip_probability=0.2),
        -0.6: lambda m: conservative_loss(m, label_smoothing=0.2),
        -2 / 0.3**2: lambda m: ipo_loss(m, total_beta=0.3),
    }
    for factor, link in links.items():
        assert (link(margin) - link(-margin)).item() == pytest.approx(factor * value, rel=1e-9, abs=1e-9)
    if abs(value) <= 1:
        assert (hinge_loss(margin) - hinge_loss(-margin)).item() == pytest.approx(-2 * value, abs=1e-12)


def defects(policy: PairLogProbs, margin: Tensor) -> dict[str, tuple[str, Tensor]]:
    """What is easily written instead: the objective that it was meant to be, and the loss that comes of it."""
    total = sum(BETAS.values())
    up, down = preference_loss(margin), preference_loss(-margin)
    mean = policy.chosen.mean - policy.rejected.mean
    return {
        "ipo, target added": ("ipo", (margin / total + 1 / (2 * total)) ** 2),
        "ipo, target 1 / tau": ("ipo", (margin / total - 1 / total) ** 2),
        "ipo, margin not divided": ("ipo", (margin - 1 / (2 * total)) ** 2),
        "ipo, target not divided": ("ipo", (margin / total - 0.5) ** 2),
        "ipo, divided by the number of anchors": ("ipo", (margin / 3 - 1 / (2 * total)) ** 2),
        "hinge, sign": ("hinge", torch.relu(1 + margin)),
        "hinge, no target": ("hinge", torch.relu(-margin)),
        "robust, 1 - 2e missing": ("robust", (1 - NOISE) * up - NOISE * down),
        "robust, sign": ("robust", ((1 - NOISE) * up + NOISE * down) / (1 - 2 * NOISE)),
        "robust, labels the wrong way round": ("robust", ((1 - NOISE) * down - NOISE * up) / (1 - 2 * NOISE)),
        "robust is conservative": ("robust", (1 - NOISE) * up + NOISE * down),
        "conservative is robust": ("conservative", ((1 - NOISE) * up - NOISE * down) / (1 - 2 * NOISE)),
        "conservative, half the smoothing": ("conservative", (1 - NOISE / 2) * up + NOISE / 2 * down),
        "simpo, sums": ("simpo", preference_loss(BETA * policy.gap - GAMMA)),
        "simpo, gamma times beta": ("simpo", preference_loss(BETA * (mean - GAMMA))),
        "simpo, gamma over beta": ("simpo", preference_loss(BETA * mean - GAMMA / BETA)),
        "simpo, gamma added": ("simpo", preference_loss(BETA * mean + GAMMA)),
        "simpo, one length for both": (
            "simpo",
            preference_loss(BETA * policy.gap / policy.chosen.num_tokens - GAMMA),
        ),
    }


def test_the_oracles_notice_planted_defects_pair_by_pair() -> None:
    policy = random_pairs(7, torch.float64, 1)
    anchors = {anchor: random_pairs(7, torch.float64, seed) for seed, anchor in enumerate(BETAS, 2)}
    for defect, (name, wrong) in defects(policy, anchored_margin(policy, anchors, BETAS)).items():
        expected = of_each(policy, anchors, objectives(BETAS)[name][1])
        same = [abs(a - b) < 1e-3 * max(1, abs(b)) for a, b in zip(wrong.tolist(), expected, strict=True)]
        assert sum(same) <= 2, defect  # a hinge may be 0 either way


@pytest.mark.parametrize("module", [anchored, preference_links])
def test_the_examples_in_the_docstrings_are_true(module: object) -> None:
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert found.attempted >= 1
    assert found.failed == 0
