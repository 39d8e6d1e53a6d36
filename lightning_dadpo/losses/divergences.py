"""Distances between two next-token distributions, exact over the vocabulary that both share."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["kl_divergence"]


def kl_divergence(
    p_logits: Float[Tensor, "positions p_vocabulary"], q_logits: Float[Tensor, "positions q_vocabulary"]
) -> Float[Tensor, " positions"]:
    """KL(p || q) = sum_v p(v) [log p(v) - log q(v)] at each position, in nats.

    Computed in float32 (float64 for float64 logits) from log-softmax over the common ids: some model families pad
    their vocabularies to different widths, so both are cut to the narrower one and normalised there.
    Rounding can leave -1e-8 where the truth is 0; that is clamped, since a KL is never negative.
    """
    width = min(p_logits.shape[-1], q_logits.shape[-1])
    dtype = torch.promote_types(torch.promote_types(p_logits.dtype, q_logits.dtype), torch.float32)
    p = p_logits[:, :width].to(dtype).log_softmax(dim=-1)
    q = q_logits[:, :width].to(dtype).log_softmax(dim=-1)
    terms = p.exp() * (p - q)
    return torch.where(p == -torch.inf, 0.0, terms).sum(dim=-1).clamp_min(0.0)
