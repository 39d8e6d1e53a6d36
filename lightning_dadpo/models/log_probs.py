"""The one place where a transformers model meets the log-prob kernels: the policy's, the reference's, the teacher's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.logprobs import response_positions, sequence_log_probs
from lightning_dadpo.types import SequenceBatch, SequenceLogProbs

__all__ = ["model_log_probs", "response_logits", "check_trunk_and_head"]

CHANGES_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Entries of a config that change logits behind the head; on small logits a probe alone would not see them."""


def _hidden(model: Any, batch: SequenceBatch) -> Tensor:
    """The trunk's last hidden states. Right padding, so default positions are right; no cache is kept."""
    hidden: Tensor = model.base_model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).last_hidden_state
    return hidden


def model_log_probs(model: Any, batch: SequenceBatch) -> SequenceLogProbs:
    """Log pi(y|x) of each row in nats, under the model's current mode and autocast."""
    return sequence_log_probs(_hidden(model, batch), model.get_output_embeddings(), batch)


def response_logits(model: Any, batch: SequenceBatch) -> Tensor:
    """Logits [response tokens, vocabulary] at the positions that predict response tokens, row by row."""
    rows, positions, _ = response_positions(batch)
    logits: Tensor = model.get_output_embeddings()(_hidden(model, batch)[rows, positions])
    return logits


@torch.no_grad()
def check_trunk_and_head(model: Any, name: str) -> None:
    """Refuse a model whose logits are not head(trunk(x)), such as one that scales or caps them.

    Raises:
        ConfigError: naming the model.
    """
    config = getattr(model, "config", None)
    changing = [name for name in CHANGES_LOGITS if getattr(config, name, None) not in (None, 1, 1.0)]
    device = next(model.parameters()).device
    ids = torch.arange(4, 12, device=device)[None, :]
    whole = model(input_ids=ids, use_cache=False).logits
    parts = model.get_output_embeddings()(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    if changing or not torch.allclose(whole, parts, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ConfigError(f"model {name!r} changes its logits after the head (scale or soft cap): not supported yet")
