"""Every preference objective trains a student for two steps, with whatever anchors it needs, or none."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.data.batching import collate_pairs
from lightning_dadpo.data.pairing import read_pairs
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
)
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.training.callbacks import RecordPairs, Throughput
from lightning_dadpo.training.checks import CheckScores
from lightning_dadpo.training.metrics import pair_value_names
from lightning_dadpo.training.preference import AnchorSource, PreferenceModule
from tests.scoring.example import Setup, make_setup, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")  # live anchors are

ONE = {"reference": 0.1}
OBJECTIVES: dict[str, PreferenceObjective] = {
    "dadpo": DaDPO(0.1, 0.05),
    "dpo": DPO(0.1),
    "teacher_only": AnchoredPreference({"teacher": 0.1}),
    "several_teachers": AnchoredPreference({"reference": 0.1, "teacher_a": 0.02, "teacher_b": 0.03}),
    "ipo": IPO(ONE),
    "ipo over several teachers": IPO({"reference": 0.1, "teacher_a": 0.02, "teacher_b": 0.03}),
    "hinge": HingePreference(ONE),
    "robust": RobustDPO(ONE, 0.1),
    "conservative": ConservativeDPO(ONE, 0.1),
    "simpo": SimPO(2.0, 0.5),
}


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("objectives"))


def module_for(setup: Setup, objective: PreferenceObjective) -> PreferenceModule:
    """One teacher lives on disk, the other in memory."""
    anchors = {
        "reference": AnchorSource(scores=str(setup.reference_scores)),
        "teacher": AnchorSource(scores=str(setup.teacher_scores)),
        "teacher_a": AnchorSource(scores=str(setup.teacher_scores)),
        "teacher_b": AnchorSource(model=ModelSpec(str(setup.teacher))),
    }
    return setup.module(
        loss=objective,
        anchors={name: anchors[name] for name in objective.anchors},
        optimizer=partial(torch.optim.SGD, lr=1e-3),
    )


def losses_of(module: PreferenceModule, setup: Setup, split: str) -> torch.Tensor:
    batch = collate_pairs(read_pairs(setup.pairs, split))
    with torch.no_grad():
        return module.loss(module.policy_log_probs(batch), module.anchor_log_probs(batch)).loss


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_steps_train_the_student_and_say_every_value(name: str, setup: Setup, tmp_path: Path) -> None:
    objective = OBJECTIVES[name]
    module = module_for(setup, objective)
    callbacks = [CheckScores(chosen_from_teacher=False), RecordPairs(), Throughput()]
    loop = trainer(tmp_path, callbacks, max_steps=2, max_epochs=-1)
    module.trainer = loop
    module.configure_model()
    before = torch.cat([parameter.detach().flatten().clone() for parameter in module.student.parameters()])
    first = losses_of(module, setup, "train")
    loop.fit(module, datamodule=setup.data(pairs_per_step=16))

    after = torch.cat([parameter.detach().flatten() for parameter in module.student.parameters()])
    assert loop.global_step == 2
    assert not torch.equal(before, after)
    assert bool(after.isfinite().all())
    assert losses_of(module, setup, "train").mean() < first.mean()  # downhill, on the pairs that it has seen
    logged = {key: float(value) for key, value in loop.callback_metrics.items()}
    assert {f"val/{value}" for value in pair_value_names(objective.anchors)} <= set(logged)
    assert logged["val/loss"] == pytest.approx(losses_of(module, setup, "validation").mean().item(), rel=1e-5)
    rows = [json.loads(line) for line in (tmp_path / "validation_pairs.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 7
    for row in rows:
        assert row["chosen_reward"] - row["rejected_reward"] == pytest.approx(row["margin"], rel=1e-4, abs=1e-4)


def test_what_simpo_says_of_a_pair_is_of_nats_per_token(setup: Setup, tmp_path: Path) -> None:
    """The implicit reward is beta times the mean log-prob, and the weight knows gamma."""
    module, loop = module_for(setup, SimPO(2.0, 0.5)), trainer(tmp_path)
    assert module.anchor_sources == {}
    (batches,) = [loop.predict(module, datamodule=setup.data(test=setup.data().sources["validation"]))]
    values: dict[str, torch.Tensor] = batches[0]["values"]  # type: ignore[index,call-overload,assignment]
    assert values["chosen_reward"].tolist() == pytest.approx((-2 * values["chosen_nll_per_token"]).tolist())
    rejected = 2 * values["rejected_log_prob/policy"] / values["rejected_tokens"]
    assert values["rejected_reward"].tolist() == pytest.approx(rejected.tolist())
    assert values["weight"].tolist() == pytest.approx(torch.sigmoid(0.5 - values["margin"]).tolist())
    assert values["loss"].tolist() == pytest.approx((-torch.nn.functional.logsigmoid(values["margin"] - 0.5)).tolist())
    assert not [name for name in values if name.endswith(("/reference", "/teacher", "teacher_agreement"))]


@pytest.mark.parametrize("name", ["simpo", "robust", "several_teachers"])
def test_a_checkpoint_says_the_objectives_numbers_and_training_goes_on_from_it(
    name: str, setup: Setup, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"limit_val_batches": 0, "max_epochs": -1}
    loop = trainer(tmp_path, max_steps=1, **settings)
    loop.fit(module_for(setup, OBJECTIVES[name]), datamodule=setup.data())
    loop.save_checkpoint(tmp_path / "last.ckpt")
    said = torch.load(tmp_path / "last.ckpt", weights_only=True)["dadpo"]["objective"]
    assert said == {"name": type(OBJECTIVES[name]).__name__, "terms": {}} | OBJECTIVES[name].settings
    again = trainer(tmp_path, max_steps=2, **settings)
    again.fit(module_for(setup, OBJECTIVES[name]), datamodule=setup.data(), ckpt_path=tmp_path / "last.ckpt")
    assert again.global_step == 2
