"""Log-probabilities straight from hidden states and the head's weight, a chunk of predictions at a time.

The full logits of a micro-batch are its largest tensor by far (a vocabulary of 49,152 in float32 is 197 kB a
token), and autograd would keep them twice. Here a chunk's logits live while the chunk is worked on; what is kept for
the backward pass is one log-sum-exp a prediction, and the logits are made again from it:

    d log p(y) / d logit_v = [v = y] - p(v),    p(v) = exp(logit_v - log-sum-exp)
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["default_chunk_tokens", "linear_log_probs", "product_dtype"]

CHUNK_BYTES = {"cpu": 48 * 2**20, "cuda": 512 * 2**20}
"""Memory of one chunk's float32 logits: large enough for a fast matrix product, small beside everything else."""


def default_chunk_tokens(vocabulary: int, device: torch.device) -> int:
    """Predictions whose logits are in memory at a time when nothing else is asked for."""
    return max(16, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // (4 * vocabulary))


def linear_log_probs(
    hidden: Float[Tensor, "predictions width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, " vocabulary"] | None,
    targets: Int[Tensor, " predictions"],
    chunk_tokens: int | None = None,
) -> Float[Tensor, " predictions"]:
    """Log softmax(hidden @ weight.T + bias)[target], in nats.

    As `token_log_probs` of the same logits, values and gradients. Under autocast the matrix products run in the
    autocast dtype and everything else in float32; the weight's gradient is summed over chunks in float32.

    Args:
        hidden: the trunk's states that make a prediction each.
        weight: the head's; tied to the embedding or not, autograd adds up what reaches it from both ends.
        bias: the head's, if it has one.
        targets: id that each prediction is asked about.
        chunk_tokens: predictions whose logits are in memory at a time; None: `default_chunk_tokens`.
    """
    chunk = chunk_tokens or default_chunk_tokens(weight.shape[0], hidden.device)
    applied = _LinearLogProbs.apply(hidden, weight, bias, targets, chunk, product_dtype(hidden))  # type: ignore[no-untyped-call]
    assert isinstance(applied, Tensor)
    return applied


def product_dtype(hidden: Tensor) -> torch.dtype:
    """What the head multiplies these states in: autocast's format where it is on."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One chunk's logits, float32 or wider; the matrix product itself keeps its dtype."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int, dtype: torch.dtype
    ) -> Tensor:
        ctx.chunk, ctx.dtype = chunk, dtype
        chosen, log_sums = [], []
        with torch.autocast(hidden.device.type, enabled=False):
            cast, cast_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
            for states, ids in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True):
                logits = _logits(states.to(dtype), cast, cast_bias)
                chosen.append(logits.gather(-1, ids[:, None]).squeeze(-1))
                log_sums.append(logits.logsumexp(dim=-1))
        log_sum = torch.cat(log_sums)
        ctx.save_for_backward(hidden, weight, bias, targets, log_sum)
        return torch.cat(chosen) - log_sum

    @staticmethod
    @once_differentiable  # the log-sum-exp is kept as a plain number: a second derivative would be wrong in silence
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_sum = ctx.saved_tensors
        (by_log_prob,) = gradients
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wide = torch.promote_types(ctx.dtype, torch.float32)
        by_hidden = torch.empty_like(hidden) if wants_hidden else None
        by_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        by_bias = torch.zeros_like(bias, dtype=wide) if wants_bias else None
        cast, cast_bias = weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
        with torch.autocast(hidden.device.type, enabled=False):  # also where the backward pass alone is in autocast
            for start in range(0, len(hidden), ctx.chunk):
                part = slice(start, start + ctx.chunk)
                states = hidden[part].to(ctx.dtype)
                logits = _logits(states, cast, cast_bias)
                slopes = logits.sub_(log_sum[part, None]).exp_().mul_(-by_log_prob[part, None])
                slopes.scatter_add_(-1, targets[part, None], by_log_prob[part, None].to(slopes.dtype))
                if by_bias is not None:
                    by_bias += slopes.sum(dim=0)
                slopes = slopes.to(ctx.dtype)
                if by_hidden is not None:
                    by_hidden[part] = slopes @ cast
                if by_weight is not None:
                    if ctx.dtype == wide:
                        by_weight.addmm_(slopes.T, states)
                    else:
                        by_weight += slopes.T @ states
        return (
            by_hidden,
            None if by_weight is None else by_weight.to(weight.dtype),
            None if by_bias is None else by_bias.to(bias.dtype),
            None,
            None,
            None,
        )
