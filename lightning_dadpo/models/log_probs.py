"""The one place where a transformers model meets the log-prob kernels: the policy's, the reference's, the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_dadpo.data.packing import pack
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.logprobs import (
    Divergence,
    Predictor,
    default_chunk_tokens,
    linear_divergences,
    linear_log_probs,
    packed_log_probs,
    sequence_log_probs,
    sum_over_responses,
)
from lightning_dadpo.models.attention import Layout, masked_rows, refuse_by_config, variable_lengths
from lightning_dadpo.models.head import AskedHead, Question, install_head, is_spread
from lightning_dadpo.models.spec import Attention, ModelSpec, Precision
from lightning_dadpo.types import PackedBatch, SequenceBatch, SequenceLogProbs

__all__ = [
    "Kernels", "prepare", "attention_kernel", "describe_backend", "describe_kernels", "model_log_probs", "predictor",
    "predictor_log_probs", "log_probs_and_divergences", "response_logits", "plain_log_probs", "check_trunk_and_head",
]  # fmt: skip

CHANGES_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Entries of a config that change logits behind the head; on small logits a probe alone would not see them."""

ROUNDING_FLOAT32, ROUNDING_16_BIT = 0.01, 0.15
"""Shares by which logits of a probe may differ. SmolLM2-135M differs by 6e-7 in float32 and by 0.01 in bfloat16, under
autocast or not; by 1 where its layers ignore token trees, and by 0.3 where trees do not see their stem. A fresh random
one differs by 0.25 and more in both cases."""


@dataclass(frozen=True)
class Kernels:
    """What a loaded model computes log-probs with; see `ModelSpec`, where both come from."""

    attention: Attention = "auto"
    chunk_tokens: int | None = None


def prepare(model: Any, kernels: Kernels) -> None:
    """Make a loaded transformers model, its attention `TOKEN_TREES`, ready for everything here."""
    model.kernels = kernels
    install_head(model)


def attention_kernel(asked: Attention, device: torch.device, dtype: torch.dtype) -> Literal["sdpa", "varlen"]:
    """Which kernel runs.

    Args:
        asked: the model's setting.
        device: where it is.
        dtype: what attention is computed in: autocast's, or the weights'.

    Raises:
        ConfigError: varlen was asked for where it does not run.
    """
    can = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if asked == "varlen" and not can:
        raise ConfigError(f"attention varlen: needs a CUDA GPU and 16-bit numbers, this is {device.type} in {dtype}")
    return "varlen" if can and asked != "sdpa" else "sdpa"


def describe_backend(spec: ModelSpec, precision: Precision, device: torch.device) -> str:
    """What scores are computed with, for their record.

    Raises:
        ConfigError: the model asks for a kernel that does not run there.
    """
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    return f"transformers {attention_kernel(spec.attention, device, dtype)} {precision}"


def _kernel(model: Any, device: torch.device) -> Literal["sdpa", "varlen"]:
    """The attention kernel under the current autocast."""
    return attention_kernel(model.kernels.attention, device, _dtype(model, device))


def _dtype(model: Any, device: torch.device) -> torch.dtype:
    """What the model computes in under the current autocast."""
    autocast = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if autocast else next(model.parameters()).dtype


def describe_kernels(model: Any) -> str:
    """What "automatic" comes to for this model, where it is and under the current autocast; for the log."""
    device = next(model.parameters()).device
    chunk = model.kernels.chunk_tokens or default_chunk_tokens(model.get_output_embeddings().out_features, device)
    return f"attention {_kernel(model, device)}, head in chunks of {chunk} predictions"


def _layout(model: Any, batch: PackedBatch) -> Layout:
    device = batch.token_ids.device
    if _kernel(model, device) == "varlen":
        return variable_lengths(batch)
    return masked_rows(batch).to(_dtype(model, device))


def _answer(model: Any, batch: PackedBatch, question: Question, layout: Layout | None = None) -> Tensor:
    """What the head answers behind the trunk's states of every token; no key-value cache is kept."""
    head = model.get_output_embeddings()
    if not isinstance(head, AskedHead):  # an adapter on the head would be left out of the product, and of training
        raise ConfigError(f"the model's head is a {type(head).__name__}, expected a plain linear layer")
    with head.asked(question):
        answer: Tensor = model(
            input_ids=batch.token_ids[None],
            # transformers passes a mask of four dimensions through untouched, so it builds none over all packed tokens
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.token_ids.device),
            position_ids=batch.position_ids[None],
            use_cache=False,
            token_trees=layout if layout is not None else _layout(model, batch),
        ).logits
    return answer


def model_log_probs(model: Any, batch: PackedBatch, layout: Layout | None = None) -> SequenceLogProbs:
    """Log pi(y|x) of each sequence in nats, under the model's current mode and autocast.

    Args:
        model: prepared.
        batch: token trees.
        layout: attention's view of them, where it has been made before.

    Raises:
        ConfigError: the model's head is more than a matrix.
    """

    def totals(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return packed_log_probs(states[0], weight, bias, batch, model.kernels.chunk_tokens).total

    return SequenceLogProbs(_answer(model, batch, totals, layout), batch.num_response_tokens)


@torch.no_grad()
def predictor(model: Any, batch: PackedBatch) -> Predictor:
    """A frozen model's states at every prediction of a batch, and its head: all that its logits are made of.

    A head whose weight is spread over ranks is whole only while the model runs, so that one is copied.

    Raises:
        ConfigError: the model's head is more than a matrix.
    """
    copied = is_spread(model.get_output_embeddings().weight)
    head: list[Tensor | None] = []

    def states(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        head.extend(None if part is None else part.clone() if copied else part.detach() for part in (weight, bias))
        return hidden[0, batch.predicted_by]

    found = _answer(model, batch, states)
    weight, bias = head
    assert weight is not None
    return Predictor(found, weight, bias)


def predictor_log_probs(asked: Predictor, batch: PackedBatch, chunk_tokens: int | None = None) -> SequenceLogProbs:
    """Log pi(y|x) of each sequence in nats, of a model that has been asked for its `predictor`."""
    log_probs = linear_log_probs(asked.states, asked.weight, asked.bias, batch.targets, chunk_tokens)
    return SequenceLogProbs(sum_over_responses(log_probs, batch), batch.num_response_tokens)


def log_probs_and_divergences(
    model: Any, batch: PackedBatch, teacher: Predictor, divergences: Sequence[Divergence]
) -> tuple[SequenceLogProbs, Tensor]:
    """Log pi(y|x) of each sequence, and sums of token-level distances to a teacher, from one forward pass.

    Args:
        model: prepared; gradients reach it under its current mode and autocast.
        batch: token trees.
        teacher: its `predictor` for the same batch.
        divergences: what is summed over each response's positions.

    Returns:
        Log-probs, and the sums [divergences, sequences], all in nats.

    Raises:
        ConfigError: the model's head is more than a matrix.
    """
    chunk = model.kernels.chunk_tokens

    def sums(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        own = Predictor(hidden[0, batch.predicted_by], weight, bias)
        distances = linear_divergences(own, teacher, divergences, chunk)
        rows = [predictor_log_probs(own, batch, chunk).total, *(sum_over_responses(row, batch) for row in distances)]
        return torch.stack(rows)

    answered = _answer(model, batch, sums)
    return SequenceLogProbs(answered[0], batch.num_response_tokens), answered[1:]


def response_logits(model: Any, batch: PackedBatch) -> Tensor:
    """Logits [predictions, vocabulary] behind the states that predict response tokens, in the order of the targets.

    Raises:
        ConfigError: the model's head is more than a matrix.
    """

    def logits(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(states[0, batch.predicted_by], weight, bias)

    return _answer(model, batch, logits)


def plain_log_probs(model: Any, batch: SequenceBatch) -> SequenceLogProbs:
    """As `model_log_probs`, as anybody would write it: padded rows, one a sequence. The oracle of the fast path."""
    hidden = model.base_model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).last_hidden_state
    return sequence_log_probs(hidden, model.get_output_embeddings(), batch)


@torch.no_grad()
def check_trunk_and_head(model: Any, name: str) -> None:
    """Refuse a model that the packed path would read wrongly: that scales or caps its logits, whose head is more than
    a matrix, whose attention its config alone shows to be unfit, or whose layers mix tokens otherwise than through
    attention over token trees.

    A probe is read under the current autocast, with the kernel that runs there. Where that is on, it is read without
    it too: the weights' own format rounds less away.

    Raises:
        ConfigError: naming the model.
    """
    changing = [entry for entry in CHANGES_LOGITS if getattr(model.config, entry, None) not in (None, 1, 1.0)]
    if changing:
        raise ConfigError(f"model {name!r} changes its logits after the head ({changing[0]}): not supported yet")
    refuse_by_config(model.config, name)
    head = model.get_output_embeddings()
    if not isinstance(head, AskedHead):
        raise ConfigError(f"model {name!r}: its head is a {type(head).__name__}, expected a plain linear layer")
    device = next(model.parameters()).device
    batch, rows = _probe(head.out_features, device)
    _read_probe(model, name, batch, rows, _layout(model, batch))
    if torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            _read_probe(model, name, batch, rows, masked_rows(batch))


def _probe(vocabulary: int, device: torch.device) -> tuple[PackedBatch, list[tuple[int, Tensor]]]:
    """Two prompts behind one stem, each with two responses that begin alike; and each sequence in a row of its own,
    with the tokens of its prompt.
    """
    first = vocabulary // 2 - 8  # special tokens stand at the ends, and 16 bits may leave nothing of their states

    def ids(*numbers: int) -> list[int]:
        return [first + number for number in numbers]

    prompts = [ids(0, 1, 2, 3), ids(0, 1, 2, 4, 5)]
    responses = [[ids(6, 7, 8, 9), ids(6, 10, 11)], [ids(12, 1), ids(12, 13, 14)]]
    order = [(prompt, group[number]) for number in (0, 1) for prompt, group in zip(prompts, responses, strict=True)]
    rows = [(len(prompt), torch.tensor([prompt + response], device=device)) for prompt, response in order]
    return pack(prompts, responses).to(device), rows


def _read_probe(model: Any, name: str, batch: PackedBatch, rows: list[tuple[int, Tensor]], layout: Layout) -> None:
    """Hold the logits of packed trees to those of whole rows."""
    given: list[Tensor] = []

    def logits(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        given.append(nn.functional.linear(states[0, batch.predicted_by], weight, bias))
        return given[-1]

    answered = _answer(model, batch, logits, layout)
    if not torch.allclose(answered, given[0], rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ConfigError(f"model {name!r} changes its logits after the head: not supported yet")
    whole = torch.cat([model(input_ids=row, use_cache=False).logits[0, prompt - 1 : -1] for prompt, row in rows])
    packed = answered[batch.terms[batch.owners.argsort(stable=True)]]
    error = float((packed - whole).float().norm() / whole.float().norm())
    if error > (ROUNDING_16_BIT if _dtype(model, whole.device).itemsize == 2 else ROUNDING_FLOAT32):  # NaN: elsewhere
        raise ConfigError(
            f"model {name!r}: packed token trees and whole rows give different logits (by {error:.0%}); its layers do "
            "not leave attention to transformers' AttentionInterface: not supported yet"
        )
