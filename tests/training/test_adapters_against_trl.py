"""DPO through a LoRA adapter against TRL's DPOTrainer with the same one; both ask the model, its adapter off."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.losses import DPO
from lightning_dadpo.models.adapters import attach_adapter
from lightning_dadpo.models.loading import load_model
from lightning_dadpo.models.log_probs import model_log_probs
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.scoring.live import StartScorer
from lightning_dadpo.types import PairBatch, PairLogProbs
from tests.tiny import tiny_model
from tests.trl_runs import BETA, dpo_trainer, pairs_of_trl

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and its dependencies' own warnings are not ours to mend

ADAPTER = AdapterSpec(rank=3, alpha=6.0)
PREFIX = "base_model.model."


def trl_trainer(folder: Path, base: Path) -> Any:
    from peft import LoraConfig

    adapter = LoraConfig(r=ADAPTER.rank, lora_alpha=int(ADAPTER.alpha), target_modules="all-linear")
    return dpo_trainer(folder, base, peft_config=adapter)


def test_loss_and_gradients_are_trl_s(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", layers=2, seed=1)
    trainer = trl_trainer(tmp_path, base)
    generator = torch.Generator().manual_seed(0)
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():  # as if both had been trained for a while
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()

    student = load_model(ModelSpec(str(base)))
    attach_adapter(student, ADAPTER, ModelSpec(str(base)))
    ours = {f"{PREFIX}{name}".replace(".trained.", ".default."): p for name, p in student.named_parameters()}
    with torch.no_grad():
        for name, parameter in trained.items():
            ours[name].copy_(parameter)
    student.train()
    batch = PairBatch(tuple("abc"), pairs_of_trl(inputs), torch.ones(3), 3)
    policy = PairLogProbs.split(model_log_probs(student, batch.sequences))
    outcome = DPO(BETA)(policy, {"reference": StartScorer(student).score(batch)})
    outcome.loss.mean().backward()  # type: ignore[no-untyped-call]

    assert outcome.loss.mean().item() == pytest.approx(theirs.item(), rel=1e-5)
    assert abs(theirs.item() - math.log(2)) > 0.05  # the adapter does something, so the number says something
    assert len(trained) == 28
    for name, parameter in trained.items():
        scale = parameter.grad.abs().max().item()
        assert torch.allclose(ours[name].grad, parameter.grad, rtol=1e-3, atol=1e-4 * scale), name
