"""TRL's trainers on tiny models, for the tests that hold this project's numbers against theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightning_dadpo.models.attention import TOKEN_TREES
from lightning_dadpo.models.log_probs import Kernels, prepare
from lightning_dadpo.types import PackedBatch, SequenceBatch
from tests.tiny import tiny_model
from tests.trees import trees_of

BETA = 0.3
ROWS = [
    {"prompt": "Name a river.", "chosen": " The Rhine.", "rejected": " no"},
    {"prompt": "2+2?", "chosen": "4", "rejected": " It may well be five, or is it?"},
    {"prompt": "Say hello to Zürich", "chosen": " Grüezi, Zürich!", "rejected": " Hello."},
]
QUIET: dict[str, Any] = {
    "beta": BETA,
    "max_length": None,
    "per_device_train_batch_size": len(ROWS),
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
}
"""What every run here says: float32 on the CPU, all rows in one batch, nothing cut, nothing written."""


def pretrained(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def inputs_of(folder: Path, tokenizer: Path) -> dict[str, Any]:
    """What every trainer is given beside its model: the rows and who reads them."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    return {
        "train_dataset": Dataset.from_list(ROWS),
        "processing_class": AutoTokenizer.from_pretrained(tokenizer),
    }


def dpo_trainer(folder: Path, base: Path, **further: Any) -> Any:
    """TRL's DPOTrainer that starts from `base`; it is made for the sigmoid loss."""
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    arguments = DPOConfig(output_dir=str(folder / "trl"), loss_type=["sigmoid"], **QUIET)
    return DPOTrainer(model=pretrained(base), args=arguments, **inputs_of(folder, base), **further)


def two_model_dpo_trainer(folder: Path) -> Any:
    """A policy and a reference that differ."""
    policy, reference = (tiny_model(folder / str(seed), layers=2, seed=seed) for seed in (1, 2))
    return dpo_trainer(folder, policy, ref_model=pretrained(reference))


def cpo_trainer(folder: Path, **settings: Any) -> Any:
    """TRL's CPOTrainer without its SFT term: where TRL keeps SimPO and label smoothing. It has no reference."""
    from trl.experimental.cpo.cpo_config import CPOConfig
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    base = tiny_model(folder / "1", layers=2, seed=1)
    arguments = CPOConfig(output_dir=str(folder / "trl"), cpo_alpha=0.0, **(QUIET | {"max_length": 512}), **settings)
    return CPOTrainer(model=pretrained(base), args=arguments, **inputs_of(folder, base))


def trees_of_rows(ids: torch.Tensor, attended: torch.Tensor, in_response: torch.Tensor) -> PackedBatch:
    """TRL's collated rows in our terms: it marks responses with a mask, we with lengths, and share prompts."""
    lengths = attended.sum(dim=1)
    return trees_of(SequenceBatch(ids, lengths - in_response.sum(dim=1), lengths), responses=2)


def pairs_of_trl(inputs: dict[str, torch.Tensor]) -> PackedBatch:
    """A batch of the DPOTrainer."""
    return trees_of_rows(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])


def in_trees(model: Any) -> Any:
    """TRL's own model, its attention told of token trees after TRL has run."""
    model.set_attn_implementation(TOKEN_TREES)
    prepare(model, Kernels())
    return model
