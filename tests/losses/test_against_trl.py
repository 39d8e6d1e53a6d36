"""DPO against TRL's own DPOTrainer: its collator, its forward passes and its loss, run as they are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.losses import DPO, DaDPO
from lightning_dadpo.models.attention import TOKEN_TREES
from lightning_dadpo.models.log_probs import Kernels, model_log_probs, prepare
from lightning_dadpo.types import PackedBatch, PairLogProbs, SequenceBatch
from tests.tiny import tiny_model
from tests.trees import trees_of

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and its dependencies' own warnings are not ours to mend

BETA = 0.3
ROWS = [
    {"prompt": "Name a river.", "chosen": " The Rhine.", "rejected": " no"},
    {"prompt": "2+2?", "chosen": "4", "rejected": " It may well be five, or is it?"},
    {"prompt": "Say hello to Zürich", "chosen": " Grüezi, Zürich!", "rejected": " Hello."},
]


def trl_trainer(folder: Path) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    policy, reference = (
        AutoModelForCausalLM.from_pretrained(tiny_model(folder / str(seed), layers=2, seed=seed)) for seed in (1, 2)
    )
    arguments = DPOConfig(
        output_dir=str(folder / "trl"),
        beta=BETA,
        loss_type=["sigmoid"],
        max_length=None,
        per_device_train_batch_size=len(ROWS),
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    return DPOTrainer(
        model=policy,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(folder / "1"),
    )


def pairs_of_trl(inputs: dict[str, torch.Tensor]) -> PackedBatch:
    """TRL's collated rows in our terms: it marks responses with a mask, we with lengths, and share prompts."""
    lengths = inputs["attention_mask"].sum(dim=1)
    rows = SequenceBatch(inputs["input_ids"], lengths - inputs["completion_mask"].sum(dim=1), lengths)
    return trees_of(rows, responses=2)


def in_trees(model: Any) -> Any:
    """TRL's own model, its attention told of token trees after TRL has run."""
    model.set_attn_implementation(TOKEN_TREES)
    prepare(model, Kernels())
    return model


@pytest.fixture(scope="module")
def trl_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One loss and its gradients by TRL, and the batch it was made from."""
    trainer = trl_trainer(tmp_path_factory.mktemp("trl"))
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return {
        "loss": loss.item(),
        "gradients": gradients,
        "metrics": metrics,
        "batch": pairs_of_trl(inputs),
        "policy": in_trees(trainer.accelerator.unwrap_model(trainer.model)),
        "reference": in_trees(trainer.accelerator.unwrap_model(trainer.ref_model)),
    }


def test_consequence_1_dpo_equals_trl_in_value_rewards_and_gradients(trl_run: dict[str, Any]) -> None:
    batch = trl_run["batch"]
    assert batch.num_response_tokens.tolist() != [batch.num_response_tokens[0].item()] * 6  # ragged, or it shows little
    trl_run["policy"].zero_grad()
    policy = PairLogProbs.split(model_log_probs(trl_run["policy"], batch))
    with torch.no_grad():
        reference = PairLogProbs.split(model_log_probs(trl_run["reference"], batch))
    outcome = DaDPO(beta_reference=BETA, beta_teacher=0.0)(policy, {"reference": reference})
    outcome.loss.mean().backward()  # type: ignore[no-untyped-call]

    assert outcome.loss.mean().item() == pytest.approx(trl_run["loss"], rel=1e-5)
    assert abs(trl_run["loss"] - math.log(2)) > 0.05  # the two models differ, so the number says something
    metrics = trl_run["metrics"]
    assert policy.chosen.total.mean().item() == pytest.approx(metrics["logps/chosen"], rel=1e-5)
    assert policy.rejected.total.mean().item() == pytest.approx(metrics["logps/rejected"], rel=1e-5)
    assert outcome.chosen_reward.mean().item() == pytest.approx(metrics["rewards/chosen"], rel=1e-4)
    assert outcome.rejected_reward.mean().item() == pytest.approx(metrics["rewards/rejected"], rel=1e-4)
    assert outcome.margin.mean().item() == pytest.approx(metrics["rewards/margins"], rel=1e-4)
    for name, parameter in trl_run["policy"].named_parameters():
        scale = trl_run["gradients"][name].abs().max().item()
        assert torch.allclose(parameter.grad, trl_run["gradients"][name], rtol=1e-3, atol=1e-4 * scale), name


def test_the_comparison_with_trl_notices_another_beta_and_a_swap(trl_run: dict[str, Any]) -> None:
    with torch.no_grad():
        policy, reference = (
            PairLogProbs.split(model_log_probs(trl_run[name], trl_run["batch"])) for name in ("policy", "reference")
        )
    swapped = PairLogProbs(reference.rejected, reference.chosen)
    assert DPO(beta=BETA)(policy, {"reference": swapped}).loss.mean().item() != pytest.approx(trl_run["loss"], rel=1e-3)
    other = DPO(beta=1.1 * BETA)(policy, {"reference": reference}).loss.mean().item()
    assert other != pytest.approx(trl_run["loss"], rel=1e-3)
