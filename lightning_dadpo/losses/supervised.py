"""Supervised terms on responses: dSFT, and the optional SFT term beside a preference loss."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lightning_dadpo.types import SequenceLogProbs

__all__ = ["response_nll", "response_nll_per_token"]


def response_nll(responses: SequenceLogProbs) -> Float[Tensor, " sequences"]:
    """-log pi(y|x) in nats, summed over response tokens. dSFT divides the sum over rows by the step's tokens."""
    return -responses.total


def response_nll_per_token(responses: SequenceLogProbs) -> Float[Tensor, " sequences"]:
    """-log pi(y|x) / |y| in nats/token: what `ResponseNLL` is; long answers do not outshout short ones."""
    return -responses.mean
