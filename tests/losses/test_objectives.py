"""The objectives as training calls them: anchors by name, one outcome a pair."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.losses import (
    DPO,
    IPO,
    AnchoredPreference,
    ConservativeDPO,
    DaDPO,
    HingePreference,
    PreferenceObjective,
    RobustDPO,
    SimPO,
    anchored_margin,
    dadpo_loss,
    dpo_loss,
    implicit_reward,
)
from lightning_dadpo.types import PairLogProbs, SequenceLogProbs
from tests import oracles


def scores(*rows: oracles.Pair) -> PairLogProbs:
    table, tokens = torch.tensor(rows, dtype=torch.float64), torch.full((len(rows),), 5)
    return PairLogProbs(SequenceLogProbs(table[:, 0], tokens), SequenceLogProbs(table[:, 1], tokens))


POLICY = scores((-10.0, -14.0), (-9.0, -3.0), (-30.0, -30.0))
REFERENCE = scores((-12.0, -13.0), (-9.0, -4.0), (-30.0, -30.0))
TEACHER = scores((-8.0, -20.0), (-6.0, -7.5), (-20.0, -20.0))
ANCHORS = {"reference": REFERENCE, "teacher": TEACHER}


def test_dadpo_by_hand() -> None:
    outcome = DaDPO(beta_reference=0.5, beta_teacher=0.25)(POLICY, ANCHORS)
    # D: policy 4, -6, 0; reference 1, -5, 0; teacher 12, 1.5, 0
    margins = [0.5 * 3 + 0.25 * -8, 0.5 * -1 + 0.25 * -7.5, 0.0]
    assert outcome.margin.tolist() == pytest.approx(margins)
    assert outcome.loss.tolist() == pytest.approx([math.log(1 + math.exp(-m)) for m in margins])
    assert outcome.chosen_reward.tolist() == pytest.approx([0.5 * 2 + 0.25 * -2, 0.25 * -3, 0.25 * -10])
    assert outcome.rejected_reward.tolist() == pytest.approx([0.5 * -1 + 0.25 * 6, 0.5 * 1 + 0.25 * 4.5, 0.25 * -10])


def test_the_class_keeps_state_and_calls_the_pure_functions() -> None:
    outcome = DaDPO(beta_reference=0.05, beta_teacher=0.1)(POLICY, ANCHORS)
    assert torch.equal(outcome.loss, dadpo_loss(POLICY, REFERENCE, TEACHER, beta_reference=0.05, beta_teacher=0.1))
    betas = {"reference": 0.05, "teacher": 0.1}
    assert torch.equal(outcome.margin, anchored_margin(POLICY, ANCHORS, betas))
    chosen = {name: anchor.chosen for name, anchor in ANCHORS.items()}
    assert torch.equal(outcome.chosen_reward, implicit_reward(POLICY.chosen, chosen, betas))
    assert torch.equal(DPO(beta=0.1)(POLICY, ANCHORS).loss, dpo_loss(POLICY, REFERENCE, beta=0.1))


def test_consequence_1_dadpo_without_a_teacher_is_dpo_bit_for_bit_and_asks_for_no_teacher() -> None:
    dadpo, dpo = DaDPO(beta_reference=0.1, beta_teacher=0.0), DPO(beta=0.1)
    assert set(dadpo.anchors) == set(dpo.anchors) == {"reference"}
    one, other = dadpo(POLICY, {"reference": REFERENCE}), dpo(POLICY, {"reference": REFERENCE})
    for part in ("loss", "margin", "chosen_reward", "rejected_reward"):
        assert torch.equal(getattr(one, part), getattr(other, part))
    broken = scores(*[(math.nan, math.nan)] * 3)
    assert torch.equal(dadpo(POLICY, {"reference": REFERENCE, "teacher": broken}).chosen_reward, one.chosen_reward)


def test_consequence_5_the_rewards_differ_by_the_margin_with_several_teachers() -> None:
    objective = AnchoredPreference(betas={"reference": 0.05, "teacher": 0.02, "second": 1e-6, "unused": 0.0})
    assert set(objective.anchors) == {"reference", "teacher", "second"}
    outcome = objective(POLICY, {**ANCHORS, "second": scores((-1.0, -9.0), (-2.0, -2.5), (-7.0, -8.0))})
    assert (outcome.chosen_reward - outcome.rejected_reward).tolist() == pytest.approx(outcome.margin.tolist())


def test_the_loss_carries_the_oracles_gradient_into_the_policy() -> None:
    totals = POLICY.chosen.total.clone().requires_grad_()
    policy = PairLogProbs(SequenceLogProbs(totals, POLICY.chosen.num_tokens), POLICY.rejected)
    outcome = DaDPO(beta_reference=0.5, beta_teacher=0.25)(policy, ANCHORS)
    outcome.loss.sum().backward()  # type: ignore[no-untyped-call]
    assert totals.grad is not None
    betas = {"reference": 0.5, "teacher": 0.25}
    assert totals.grad.tolist() == pytest.approx([oracles.gap_weight(m, betas) for m in outcome.margin.tolist()])


NOISE = [-0.1, 0.5, 0.9, math.nan]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DaDPO(beta_reference=-0.1, beta_teacher=0.1), "beta of anchor 'reference' is -0.1"),
        (lambda: DaDPO(beta_reference=0.0, beta_teacher=0.0), "at least one must be > 0"),
        (lambda: DaDPO(beta_reference=0.1, beta_teacher=math.nan), "beta of anchor 'teacher' is nan"),
        (lambda: DPO(beta=0.0), "at least one must be > 0"),
        (lambda: DPO(beta=math.inf), "is inf: expected a finite number >= 0"),
        (lambda: AnchoredPreference(betas={}), "at least one must be > 0"),
        (lambda: IPO(betas={}), "at least one must be > 0"),
        (lambda: HingePreference(betas={"reference": -1.0}), "beta of anchor 'reference' is -1.0"),
        (lambda: RobustDPO({"reference": 0.0}, 0.1), "at least one must be > 0"),
        (lambda: SimPO(beta=0.0, gamma=0.5), r"beta 0.0: expected a finite number > 0"),
        (lambda: SimPO(beta=math.nan, gamma=0.5), r"beta nan: expected"),
        (lambda: SimPO(beta=2.0, gamma=-0.5), r"gamma -0.5: expected a finite number >= 0"),
        (lambda: SimPO(beta=2.0, gamma=math.inf), r"gamma inf: expected"),
        *(
            (lambda noise=noise: RobustDPO({"a": 1.0}, noise), rf"flip_probability {noise}: .*0, 0.5\)")
            for noise in NOISE
        ),
        *(
            (lambda noise=noise: ConservativeDPO({"a": 1.0}, noise), rf"label_smoothing {noise}: .*0.5")
            for noise in NOISE
        ),
    ],
)
def test_contradictions_are_refused_at_construction(make: Callable[[], PreferenceObjective], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_a_needed_anchor_without_scores_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="teacher"):
        DaDPO(beta_reference=0.1, beta_teacher=0.1)(POLICY, {"reference": REFERENCE})


EVERY: list[tuple[PreferenceObjective, tuple[str, ...], dict[str, object]]] = [
    (DPO(0.1), ("reference",), {"betas": {"reference": 0.1}}),
    (DaDPO(0.1, 0.2), ("reference", "teacher"), {"betas": {"reference": 0.1, "teacher": 0.2}}),
    (AnchoredPreference({"teacher": 1.0, "b": 0.0}), ("teacher",), {"betas": {"teacher": 1.0}}),
    (IPO({"teacher": 0.1}), ("teacher",), {"betas": {"teacher": 0.1}}),
    (HingePreference({"reference": 0.1}), ("reference",), {"betas": {"reference": 0.1}}),
    (RobustDPO({"teacher": 0.1}, 0.2), ("teacher",), {"betas": {"teacher": 0.1}, "flip_probability": 0.2}),
    (ConservativeDPO({"teacher": 0.1}, 0.2), ("teacher",), {"betas": {"teacher": 0.1}, "label_smoothing": 0.2}),
    (SimPO(2.0, 0.5), (), {"beta": 2.0, "gamma": 0.5}),
]


@pytest.mark.parametrize(("objective", "anchors", "settings"), EVERY)
def test_each_says_what_it_needs_and_what_it_is_set_to_and_asks_no_other_anchor(
    objective: PreferenceObjective, anchors: tuple[str, ...], settings: dict[str, object]
) -> None:
    assert objective.anchors == anchors
    assert objective.settings == settings
    asked = {name: ANCHORS[name] for name in anchors}
    broken = scores(*[(math.nan, math.nan)] * 3)
    one = objective(POLICY, asked)
    other = objective(POLICY, asked | {name: broken for name in ("reference", "teacher", "b") if name not in anchors})
    assert torch.equal(one.loss, other.loss)
    assert torch.equal(one.chosen_reward, other.chosen_reward)
