"""The anchored preference loss: daDPO, DPO and every other set of weighted anchors.

Write D_k = log pi_k(y_w) - log pi_k(y_l) for a model k. A preference objective is a set of anchors k with
weights b_k >= 0, and

    margin = sum_k b_k (D_pi - D_k),        loss = -log sigmoid(margin).

daDPO (arXiv 2506.15717, Theorem 1 and Eq. 10) has two anchors, the reference and the teacher; DPO
(arXiv 2305.18290, Eq. 7) has the reference alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.types import PairLogProbs, SequenceLogProbs

__all__ = ["anchored_margin", "preference_loss", "implicit_reward", "dadpo_loss", "dpo_loss", "check_betas"]


def check_betas(betas: Mapping[str, float]) -> None:
    """Refuse weights that define no objective.

    Raises:
        ConfigError: a weight is negative or not finite, or none is positive.
    """
    for anchor, beta in betas.items():
        if not (math.isfinite(beta) and beta >= 0):
            raise ConfigError(f"beta of anchor {anchor!r} is {beta}: expected a finite number >= 0")
    if not any(beta > 0 for beta in betas.values()):
        raise ConfigError(f"betas {dict(betas)}: at least one must be > 0")


def anchored_margin(
    policy: PairLogProbs, anchors: Mapping[str, PairLogProbs], betas: Mapping[str, float]
) -> Float[Tensor, " pairs"]:
    """Margin = sum_k b_k (D_pi - D_k), dimensionless.

    Each D is a difference within one model, taken before anything else, so that two sums of hundreds of nats
    cancel first. An anchor of weight 0 is skipped, not multiplied: it need not be scored, and what its scores
    hold cannot leak. Small weights are weights.

    Args:
        policy: log-probs of the policy, nats; gradients flow through these alone.
        anchors: log-probs of each anchor with a positive weight, nats.
        betas: b_k by anchor name.

    Raises:
        ConfigError: the weights define no objective, or a weighted anchor has no scores.
    """
    gaps = {anchor: scores.gap for anchor, scores in anchors.items()}
    return _weighted_differences(policy.gap, gaps, betas)


def preference_loss(margin: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """-log sigmoid(margin) in nats, one value a pair (Bradley-Terry; daDPO Eq. 10). The caller averages."""
    return -F.logsigmoid(margin)


def implicit_reward(
    policy: SequenceLogProbs, anchors: Mapping[str, SequenceLogProbs], betas: Mapping[str, float]
) -> Float[Tensor, " sequences"]:
    """sum_k b_k (log pi(y) - log pi_k(y)): the reward that the policy is optimal for, up to a constant a prompt."""
    totals = {anchor: scores.total for anchor, scores in anchors.items()}
    return _weighted_differences(policy.total, totals, betas)


def _weighted_differences(policy: Tensor, anchors: Mapping[str, Tensor], betas: Mapping[str, float]) -> Tensor:
    """sum_k b_k (policy - anchor_k). A single term stays as it is, so that one anchor is DPO bit for bit."""
    check_betas(betas)
    terms = []
    for name, beta in betas.items():
        if beta > 0:
            if name not in anchors:
                raise ConfigError(f"anchor {name!r} has beta {beta} but no scores; there are {sorted(anchors)}")
            assert anchors[name].shape == policy.shape, "an anchor has another number of rows than the policy"
            terms.append(beta * (policy - anchors[name].detach()))
    return torch.stack(terms).sum(dim=0) if len(terms) > 1 else terms[0]


def dadpo_loss(
    policy: PairLogProbs,
    reference: PairLogProbs,
    teacher: PairLogProbs,
    *,
    beta_reference: float,
    beta_teacher: float,
) -> Float[Tensor, " pairs"]:
    """daDPO, arXiv 2506.15717, Eq. 10; beta_reference and beta_teacher are its beta_1 and beta_2.

    Example:
        >>> import torch
        >>> from lightning_dadpo.types import PairLogProbs, SequenceLogProbs
        >>> def pair(chosen, rejected):
        ...     one = torch.ones(1, dtype=torch.long)
        ...     return PairLogProbs(SequenceLogProbs(torch.tensor([chosen]), one),
        ...                         SequenceLogProbs(torch.tensor([rejected]), one))
        >>> same = pair(-20.0, -30.0)
        >>> dadpo_loss(same, same, same, beta_reference=0.1, beta_teacher=0.1)  # ln 2
        tensor([0.6931])
    """
    anchors = {"reference": reference, "teacher": teacher}
    betas = {"reference": beta_reference, "teacher": beta_teacher}
    return preference_loss(anchored_margin(policy, anchors, betas))


def dpo_loss(policy: PairLogProbs, reference: PairLogProbs, *, beta: float) -> Float[Tensor, " pairs"]:
    """DPO, arXiv 2305.18290, Eq. 7; with the teacher's texts as chosen it is the dDPO of arXiv 2310.16944."""
    return preference_loss(anchored_margin(policy, {"reference": reference}, {"reference": beta}))
