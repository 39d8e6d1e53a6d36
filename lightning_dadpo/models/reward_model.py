"""Reward models: transformers' sequence classifiers with one output, read as their own forward pass reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.models.loading import Model, quietly_loading, refuse_gaps
from lightning_dadpo.models.spec import ModelSpec, Precision, refuse_quantized

__all__ = ["load_reward_model", "rewards", "batches_of"]


def load_reward_model(spec: ModelSpec, precision: Precision, device: torch.device) -> Model:
    """A frozen reward model on the device, in eval mode.

    In bf16-true the trunk holds 16-bit weights and the head float32 ones: a reward near 10 would otherwise be rounded
    to a multiple of 1/16, and different responses would seem equal (trap B2).

    Args:
        spec: a folder or hub name of safetensors; code that it brings is never run.
        precision: 32-true or bf16-true.

    Raises:
        ConfigError: the spec asks for what only a language model can be loaded with, or the folder is not there.
        DataError: it is no sequence classifier with one output, or not all of its weights are there.
    """
    _refuse(spec)
    arguments: dict[str, Any] = {"revision": spec.revision, "trust_remote_code": False}
    with quietly_loading(spec, "reward model"):
        config = transformers.AutoConfig.from_pretrained(spec.location(), **arguments)
    if config.num_labels != 1:
        raise DataError(
            f"model {spec.path!r}: has {config.num_labels} outputs, expected the one of a reward model (num_labels 1)"
        )
    with quietly_loading(spec, "reward model"):
        model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            spec.location(),
            dtype=torch.bfloat16 if precision == "bf16-true" else torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **arguments,
        )
    untrained = sorted(key for key in report["missing_keys"] if not key.startswith(f"{model.base_model_prefix}."))
    if untrained:
        raise DataError(
            f"model {spec.path!r}: its files lack {untrained[0]}, the head that makes a reward; a language model is no "
            "reward model"
        )
    refuse_gaps(spec, model, report)
    model.config.use_cache = False  # not every classifier's forward takes use_cache
    if precision == "bf16-true":
        _widen_head(spec, model)
    return model.requires_grad_(False).eval().to(device)


def _refuse(spec: ModelSpec) -> None:
    refuse_quantized(spec, "a reward model is read with whole weights")
    refused = {
        "trust_remote_code": spec.trust_remote_code,
        "gguf_file": spec.gguf_file,
        "chunk_tokens": spec.chunk_tokens,
        "attention varlen": spec.attention == "varlen",
    }
    if said := [name for name, value in refused.items() if value]:
        raise ConfigError(f"model {spec.path!r}: {said[0]}: a reward model takes none; leave it out")


def _widen_head(spec: ModelSpec, model: Model) -> None:
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1]
    if len(heads) != 1:
        raise ConfigError(
            f"model {spec.path!r}: has {len(heads)} layers of one output, so its head is not known; read it with "
            "precision 32-true"
        )
    heads[0].float().register_forward_pre_hook(lambda _, given: (given[0].float(), *given[1:]))


def batches_of(model: Model, batches: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Batches of rows as this model can take them: a model whose config names no padding token takes one at a time."""
    padding = model.config.get_text_config().pad_token_id
    return (
        [tuple(batch) for batch in batches] if padding is not None else [(row,) for batch in batches for row in batch]
    )


@torch.no_grad()
def rewards(model: Model, sequences: Sequence[Sequence[int]]) -> Tensor:
    """What the model's own forward pass gives to each sequence alone: [sequences], float64 on the CPU.

    A decoder's head reads the last token that is not the config's padding token. So rows are padded with that very
    token, on the right, where neither attention nor positions notice it; the tokenizer's padding token and side, which
    may be others, do not enter. A sequence that ends in that token itself is read before it, alone as in a batch.

    Args:
        model: of `load_reward_model`. sequences: ids, at least one each; see `batches_of`.
    """
    padding = model.config.get_text_config().pad_token_id
    width = max(map(len, sequences))
    rows = [[*sequence, *[padding] * (width - len(sequence))] for sequence in sequences]
    mask = [[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences]
    device = next(model.parameters()).device
    logits = model(input_ids=torch.tensor(rows, device=device), attention_mask=torch.tensor(mask, device=device)).logits
    found: Tensor = logits[:, 0].double().cpu()
    return found
