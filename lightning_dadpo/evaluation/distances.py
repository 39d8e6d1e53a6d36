"""Distances between two models on sampled responses: exact KL over the whole common vocabulary, position by position.

KL(p || q) on samples of p (METHOD: distances used in reports). With p the teacher it is the forward KL of q, with p
the student the reverse KL. What comes out are sums a response; the ratio of sums is taken over prompts, later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_dadpo.data.packing import pack
from lightning_dadpo.logprobs import token_log_probs
from lightning_dadpo.losses import kl_divergence
from lightning_dadpo.models.loading import autocast
from lightning_dadpo.models.log_probs import response_logits
from lightning_dadpo.models.spec import Precision
from lightning_dadpo.types import PackedBatch

__all__ = ["Sample", "SampleSums", "sample_sums", "token_log_probs_of", "MAX_POSITIONS"]

MAX_POSITIONS = 512
"""Positions whose full-vocabulary logits are in memory at a time, of both models."""


@dataclass(frozen=True)
class Sample:
    """One sampled response: the prompt's ids as the model read them, and the ids that it sampled."""

    prompt_token_ids: list[int]
    token_ids: list[int]


@dataclass(frozen=True)
class SampleSums:
    """Sums over the positions of each response, on the CPU.

    Attributes:
        kl: sum of KL(p || q) in nats, never negative.
        other_log_prob: log q(y|x) in nats, of the raw model q over its whole vocabulary.
        num_tokens: positions in both sums; the emitted end-of-turn token is one of them.
    """

    kl: Float[Tensor, " responses"]
    other_log_prob: Float[Tensor, " responses"]
    num_tokens: Int[Tensor, " responses"]


@dataclass(frozen=True)
class _Window:
    """Positions [start, end) of response number `row`."""

    row: int
    start: int
    end: int


@torch.no_grad()
def sample_sums(
    sampled_by: Any, other: Any, samples: Sequence[Sample], precision: Precision, max_positions: int = MAX_POSITIONS
) -> SampleSums:
    """Sums over each response, sampled from p, of KL(p || q) and of log q.

    Both models run under `precision`'s autocast; softmax and sums are float32, the sums over chunks float64.
    At most `max_positions` positions have logits in memory: responses are taken a few at a time, and a longer one in
    windows, for each of which the trunk runs again over what stands before (the head is what needs the memory).

    Args:
        sampled_by: the model p that the responses were sampled from.
        other: the model q; p itself is allowed and gives a KL of exactly 0. Both on one device.
        samples: prompts with responses.
        precision: the number format that both models were loaded for.
        max_positions: bound on the positions in memory.
    """
    device = next(sampled_by.parameters()).device
    kl = torch.zeros(len(samples), dtype=torch.float64)
    log_prob = torch.zeros(len(samples), dtype=torch.float64)
    for windows in _grouped(samples, max_positions):
        batch = _batch(samples, windows).to(device)
        with autocast(precision, device):
            p_logits = response_logits(sampled_by, batch)
            q_logits = p_logits if other is sampled_by else response_logits(other, batch)
        owners = torch.tensor([window.row for window in windows])[batch.owners.cpu()]
        kl.index_add_(0, owners, kl_divergence(p_logits, q_logits).double().cpu())
        log_prob.index_add_(0, owners, token_log_probs(q_logits, batch.targets).double().cpu())
    return SampleSums(kl, log_prob, torch.tensor([len(sample.token_ids) for sample in samples]))


@torch.no_grad()
def token_log_probs_of(
    model: Any, samples: Sequence[Sample], precision: Precision, max_positions: int = MAX_POSITIONS
) -> list[Float[Tensor, " tokens"]]:
    """Log pi(token | prompt and the tokens before) of every token of each response, in nats, on the CPU.

    Of the raw model over its whole vocabulary, in windows as `sample_sums`; what a response gets sums to its log-prob.

    Args:
        model: any model. samples: prompts with responses. precision: the number format that it was loaded for.
        max_positions: bound on the positions in memory.
    """
    device = next(model.parameters()).device
    found: list[list[Tensor]] = [[] for _ in samples]
    for windows in _grouped(samples, max_positions):
        batch = _batch(samples, windows).to(device)
        with autocast(precision, device):
            values = token_log_probs(response_logits(model, batch), batch.targets).double().cpu()
        # a tree of one response: its predictions stand in the order of its tokens
        for window, part in zip(windows, torch.split(values, [one.end - one.start for one in windows]), strict=True):
            found[window.row].append(part)
    return [torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64) for parts in found]


def _grouped(samples: Sequence[Sample], max_positions: int) -> Iterator[list[_Window]]:
    """Windows in order, in groups of at most `max_positions` positions."""
    group: list[_Window] = []
    held = 0
    for row, sample in enumerate(samples):
        for start in range(0, len(sample.token_ids), max_positions):
            window = _Window(row, start, min(start + max_positions, len(sample.token_ids)))
            if held + window.end - window.start > max_positions:
                yield group
                group, held = [], 0
            group.append(window)
            held += window.end - window.start
    if group:
        yield group


def _batch(samples: Sequence[Sample], windows: Sequence[_Window]) -> PackedBatch:
    """Trees whose response begins at the window's start: what stands before counts as prompt, nothing follows."""
    rows = [samples[window.row] for window in windows]
    own = list(zip(rows, windows, strict=True))
    prompts = [row.prompt_token_ids + row.token_ids[: window.start] for row, window in own]
    return pack(prompts, [[row.token_ids[window.start : window.end]] for row, window in own])
