"""Losses of single responses, as the classes that a YAML names: SFT, and token-level distances to a live teacher.

Each gives nats per token of a response: a mean over its tokens, so that long answers do not outshout short ones (the
discrepancy of GKD, arXiv 2306.13649). They are trained on alone, or added with a weight to a preference
loss.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.losses.divergences import (
    jensen_shannon_divergence,
    kl_divergence,
    skew_kl_divergence,
    skew_reverse_kl_divergence,
)
from lightning_dadpo.losses.supervised import response_nll_per_token
from lightning_dadpo.types import SequenceLogProbs

__all__ = [
    "WeightedTerm", "PairTerm", "ResponseLoss", "ResponseNLL", "TokenDivergence", "ForwardKL", "ReverseKL",
    "JensenShannon", "SkewForwardKL", "SkewReverseKL",
]  # fmt: skip


class ResponseLoss(ABC):
    """A loss of single responses. A `TokenDivergence` needs a live teacher; others the policy's log-probs alone."""

    @abstractmethod
    def __call__(self, policy: SequenceLogProbs, distance: Float[Tensor, " sequences"] | None) -> Tensor:
        """Nats per token of each response, [sequences].

        Args:
            policy: log-probs of the policy.
            distance: for a `TokenDivergence`, its sum over the response's positions in nats.
        """


class ResponseNLL(ResponseLoss):
    """-log pi(y|x) / |y|: supervised fine-tuning on the response."""

    def __call__(self, policy: SequenceLogProbs, distance: Tensor | None) -> Tensor:
        """See `response_nll_per_token`."""
        return response_nll_per_token(policy)


class TokenDivergence(ResponseLoss):
    """A distance between teacher and student at every position of the response, over the ids that both have."""

    def __call__(self, policy: SequenceLogProbs, distance: Tensor | None) -> Tensor:
        """The mean over the response's positions."""
        assert distance is not None, f"{type(self).__name__} was asked without the teacher"
        return distance / policy.num_tokens

    @abstractmethod
    def at_positions(
        self,
        teacher_logits: Float[Tensor, "positions teacher_vocabulary"],
        student_logits: Float[Tensor, "positions student_vocabulary"],
    ) -> Float[Tensor, " positions"]:
        """Nats at each position."""


class ForwardKL(TokenDivergence):
    """KL(teacher || student): the student covers whatever the teacher might say."""

    def at_positions(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """See `kl_divergence`."""
        return kl_divergence(teacher_logits, student_logits)


class ReverseKL(TokenDivergence):
    """KL(student || teacher): the student says what the teacher finds likely. Wants the student's own samples."""

    def at_positions(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """See `kl_divergence`."""
        return kl_divergence(student_logits, teacher_logits)


class JensenShannon(TokenDivergence):
    """GKD's generalised Jensen-Shannon divergence (arXiv 2306.13649).

    Args:
        beta: share of the teacher in the mixture; 0 means forward KL, 1 reverse KL.
    """

    def __init__(self, beta: float) -> None:
        if not 0 <= beta <= 1:
            raise ConfigError(f"JensenShannon: beta {beta}, expected a number in [0, 1]")
        self.beta = beta

    def at_positions(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """See `jensen_shannon_divergence`."""
        return jensen_shannon_divergence(teacher_logits, student_logits, self.beta)


def _checked_alpha(name: str, alpha: float) -> float:
    if not 0 <= alpha < 1:
        raise ConfigError(f"{name}: alpha {alpha}, expected a number in [0, 1); at 1 there is nothing to learn")
    return alpha


class SkewForwardKL(TokenDivergence):
    """KL(teacher || alpha teacher + (1 - alpha) student) (alpha-SKL of DistiLLM, arXiv 2402.03898).

    Args:
        alpha: share of the teacher in the mixture; 0 is the forward KL.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = _checked_alpha("SkewForwardKL", alpha)

    def at_positions(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """See `skew_kl_divergence`."""
        return skew_kl_divergence(teacher_logits, student_logits, self.alpha)


class SkewReverseKL(TokenDivergence):
    """KL(student || (1 - alpha) teacher + alpha student) (alpha-SRKL of DistiLLM, arXiv 2402.03898).

    Args:
        alpha: share of the student in the mixture; 0 is the reverse KL.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = _checked_alpha("SkewReverseKL", alpha)

    def at_positions(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """See `skew_reverse_kl_divergence`."""
        return skew_reverse_kl_divergence(teacher_logits, student_logits, self.alpha)


@dataclass(frozen=True)
class WeightedTerm:
    """A loss of responses that is added to another one.

    Attributes:
        weight: what it is multiplied by, > 0.
        term: for example ResponseNLL, or ReverseKL.
    """

    weight: float
    term: ResponseLoss

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ConfigError(f"terms: weight {self.weight}, expected a number > 0; leave out a term of no weight")


@dataclass(frozen=True)
class PairTerm(WeightedTerm):
    """A loss of responses that is added to each pair's preference loss.

    Attributes:
        response: which of the pair's two it is a loss of. (Not `on`: YAML reads that key as true.)
    """

    response: Literal["chosen", "rejected"] = "chosen"
