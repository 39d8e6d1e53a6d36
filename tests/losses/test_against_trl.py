"""The preference losses against TRL's own trainers: their collators, forward passes and losses, run as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from lightning_dadpo.losses import (
    DPO,
    IPO,
    ConservativeDPO,
    DaDPO,
    HingePreference,
    PreferenceObjective,
    PreferenceOutcome,
    RobustDPO,
    SimPO,
)
from lightning_dadpo.models.log_probs import model_log_probs
from lightning_dadpo.types import PackedBatch, PairLogProbs, SequenceLogProbs
from tests.trl_runs import BETA, cpo_trainer, in_trees, pairs_of_trl, trees_of_rows, two_model_dpo_trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and its dependencies' own warnings are not ours to mend

REFERENCE = {"reference": BETA}
NOISE, GAMMA = 0.2, 0.7


@dataclass
class Run:
    """One loss and its gradients by TRL."""

    loss: float
    gradients: dict[str, torch.Tensor]
    metrics: dict[str, float]


@dataclass
class Runs:
    """What a trainer gave for each of its losses, the batch it was made from, and the models that made it."""

    by_loss: dict[str, Run]
    batch: PackedBatch
    policy: Any
    reference: Any = None


def step(model: Any, compute: Callable[[], tuple[torch.Tensor, dict[str, float]]]) -> Run:
    model.train()
    model.zero_grad()
    loss, metrics = compute()
    loss.backward()  # type: ignore[no-untyped-call]
    return Run(loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}, metrics)


@pytest.fixture(scope="module")
def dpo(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The DPOTrainer's losses on one batch; it reads which one from its own attributes at each step."""
    trainer = two_model_dpo_trainer(tmp_path_factory.mktemp("dpo"))
    inputs = next(iter(trainer.get_train_dataloader()))

    def compute() -> tuple[torch.Tensor, dict[str, float]]:
        loss = trainer.compute_loss(trainer.model, inputs)
        return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}

    runs = {}
    for name, noise in (("sigmoid", 0.0), ("ipo", 0.0), ("robust", NOISE), ("hinge", 0.0)):
        trainer.loss_types, trainer.label_smoothing = [name], noise
        runs[name] = step(trainer.model, compute)
    models = [in_trees(trainer.accelerator.unwrap_model(model)) for model in (trainer.model, trainer.ref_model)]
    return Runs(runs, pairs_of_trl(inputs), *models)


@pytest.fixture(scope="module")
def cpo(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The CPOTrainer's: SimPO, and the sigmoid loss with smoothed labels."""
    trainer = cpo_trainer(tmp_path_factory.mktemp("cpo"), loss_type="simpo", simpo_gamma=GAMMA)
    inputs = next(iter(trainer.get_train_dataloader()))
    runs = {}
    for name, noise in (("simpo", 0.0), ("sigmoid", NOISE)):
        trainer.loss_type, trainer.label_smoothing = name, noise
        runs[name] = step(trainer.model, lambda: trainer.get_batch_loss_metrics(trainer.model, inputs))
    rows = trainer.concatenated_inputs(inputs, padding_value=trainer.pad_token_id)
    ids, attended, labels = (rows[f"concatenated_{name}"] for name in ("input_ids", "attention_mask", "labels"))
    batch = trees_of_rows(ids, attended, labels != -100)
    return Runs(runs, batch, in_trees(trainer.accelerator.unwrap_model(trainer.model)))


def scored(runs: Runs) -> tuple[PairLogProbs, dict[str, PairLogProbs]]:
    """Policy with gradients, and the reference; the CPOTrainer has none, so one to whom all responses are alike."""
    runs.policy.zero_grad()
    policy = PairLogProbs.split(model_log_probs(runs.policy, runs.batch))
    if runs.reference is None:
        alike = SequenceLogProbs(torch.zeros_like(policy.chosen.total), policy.chosen.num_tokens)
        return policy, {"reference": PairLogProbs(alike, alike)}
    with torch.no_grad():
        return policy, {"reference": PairLogProbs.split(model_log_probs(runs.reference, runs.batch))}


def per_token(scores: PairLogProbs) -> PairLogProbs:
    """Nats per token where sums are expected: what TRL's IPO is given."""
    one = torch.ones_like(scores.chosen.num_tokens)
    return PairLogProbs(SequenceLogProbs(scores.chosen.mean, one), SequenceLogProbs(scores.rejected.mean, one))


def assert_same(runs: Runs, name: str, objective: PreferenceObjective, averaged: bool = False) -> PreferenceOutcome:
    """Value, rewards and every parameter's gradient."""
    policy, anchors = scored(runs)
    given = (per_token(policy), {"reference": per_token(anchors["reference"])}) if averaged else (policy, anchors)
    outcome, theirs = objective(*given), runs.by_loss[name]
    outcome.loss.mean().backward()  # type: ignore[no-untyped-call]
    largest = outcome.loss.abs().max().item()  # pairs' losses of robust DPO cancel in their mean
    assert outcome.loss.mean().item() == pytest.approx(theirs.loss, abs=1e-5 * largest)
    if not averaged:  # TRL logs rewards of sums whatever the loss was given
        for ours, logged in (("chosen_reward", "chosen"), ("rejected_reward", "rejected"), ("margin", "margins")):
            assert getattr(outcome, ours).mean().item() == pytest.approx(theirs.metrics[f"rewards/{logged}"], rel=1e-4)
    for parameter_name, parameter in runs.policy.named_parameters():
        expected = theirs.gradients[parameter_name]
        scale = expected.abs().max().item()
        assert scale > 0
        assert torch.allclose(parameter.grad, expected, rtol=1e-3, atol=1e-4 * scale), parameter_name
    return outcome


def test_consequence_1_dpo_equals_trl_in_value_rewards_and_gradients(dpo: Runs) -> None:
    tokens = dpo.batch.num_response_tokens
    assert tokens.tolist() != [tokens[0].item()] * 6  # ragged, or it shows little
    assert_same(dpo, "sigmoid", DaDPO(beta_reference=BETA, beta_teacher=0.0))
    assert abs(dpo.by_loss["sigmoid"].loss - math.log(2)) > 0.05  # the two models differ, so the number says something
    policy, _ = scored(dpo)
    metrics = dpo.by_loss["sigmoid"].metrics
    assert policy.chosen.total.mean().item() == pytest.approx(metrics["logps/chosen"], rel=1e-5)
    assert policy.rejected.total.mean().item() == pytest.approx(metrics["logps/rejected"], rel=1e-5)


def test_ipo_equals_trl_where_both_are_given_nats_per_token_and_not_where_ours_has_sums(dpo: Runs) -> None:
    assert_same(dpo, "ipo", IPO(REFERENCE), averaged=True)
    sums = IPO(REFERENCE)(*scored(dpo)).loss.mean().item()
    assert sums != pytest.approx(dpo.by_loss["ipo"].loss, rel=0.1)


def test_robust_equals_trl(dpo: Runs) -> None:
    assert_same(dpo, "robust", RobustDPO(REFERENCE, flip_probability=NOISE))


def test_hinge_equals_trl(dpo: Runs) -> None:
    outcome = assert_same(dpo, "hinge", HingePreference(REFERENCE))
    assert outcome.loss.max() > outcome.loss.min() == 0  # both sides of the hinge are seen


def test_conservative_equals_trls_smoothed_labels(cpo: Runs) -> None:
    """TRL 1.16 smooths no labels in DPO any more; its CPO does, whose margin has no reference."""
    assert_same(cpo, "sigmoid", ConservativeDPO(REFERENCE, label_smoothing=NOISE))


def test_simpo_equals_trl(cpo: Runs) -> None:
    tokens = cpo.batch.num_response_tokens
    assert tokens.tolist() != [tokens[0].item()] * 6
    assert_same(cpo, "simpo", SimPO(BETA, GAMMA))


def test_the_comparison_with_trl_notices_another_number_and_a_swap(dpo: Runs, cpo: Runs) -> None:
    policy, anchors = scored(dpo)
    swapped = {"reference": PairLogProbs(anchors["reference"].rejected, anchors["reference"].chosen)}
    wrong: list[tuple[Runs, str, PreferenceObjective]] = [
        (dpo, "sigmoid", DPO(beta=1.1 * BETA)),
        (dpo, "robust", RobustDPO(REFERENCE, 0.9 * NOISE)),
        (dpo, "robust", ConservativeDPO(REFERENCE, NOISE)),
        (dpo, "hinge", HingePreference({"reference": 1.1 * BETA})),
        (cpo, "sigmoid", RobustDPO(REFERENCE, NOISE)),
        (cpo, "simpo", SimPO(BETA, GAMMA * BETA)),
        (cpo, "simpo", SimPO(BETA, GAMMA / BETA)),
    ]
    assert DPO(BETA)(policy, swapped).loss.mean().item() != pytest.approx(dpo.by_loss["sigmoid"].loss, rel=1e-3)
    for runs, name, objective in wrong:
        found = objective(*scored(runs)).loss.mean().item()
        assert found != pytest.approx(runs.by_loss[name].loss, rel=1e-3), (name, objective.settings)
