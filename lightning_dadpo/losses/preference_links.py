"""From a margin to a loss: what hinge, IPO, robust and conservative DPO do with the margin that daDPO has too.

The margin is sum_k b_k (D_pi - D_k) over any set of weighted anchors (`anchored.anchored_margin`); with the
reference as the only anchor each of these is its paper's loss. SimPO has no anchor: its margin is that of its own
length-normalised rewards.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.losses.anchored import preference_loss
from lightning_dadpo.types import PairLogProbs, SequenceLogProbs

__all__ = [
    "ipo_loss", "hinge_loss", "robust_loss", "conservative_loss", "simpo_loss", "simpo_reward", "check_simpo",
    "check_label_noise",
]  # fmt: skip


def ipo_loss(margin: Float[Tensor, " pairs"], *, total_beta: float) -> Float[Tensor, " pairs"]:
    """IPO, arXiv 2310.12036, Eq. 17: (h - 1/(2 tau))^2 with h = D_pi - D_ref of summed log-probs, in nats squared.

    Over several anchors the sum of their weighted KLs is tau = B = sum_k b_k times the KL to one virtual reference,
    whose D is the weighted mean of theirs. So h = margin / B and the loss is (margin / B - 1 / (2 B))^2; a single
    anchor of weight tau gives Eq. 17 back. TRL divides each log-prob by its response's length first; the paper's
    equation does not.

    Args:
        margin: sum_k b_k (D_pi - D_k), dimensionless.
        total_beta: B, the paper's tau where there is one anchor.

    Example:
        >>> import torch
        >>> ipo_loss(torch.tensor([0.0, 0.5]), total_beta=0.1)  # h = 0 and h = 5, which is 1 / (2 tau)
        tensor([25.,  0.])
    """
    return (margin / total_beta - 1 / (2 * total_beta)) ** 2


def hinge_loss(margin: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """max(0, 1 - margin): SLiC's calibration loss (arXiv 2305.10425) on ratios to the anchors.

    That is the hinge-norm loss of RSO (arXiv 2309.06657), whose gamma is the anchor's weight. SLiC itself has
    no reference inside the hinge and adds an SFT term; for that one add a term on the chosen response.

    Example:
        >>> import torch
        >>> hinge_loss(torch.tensor([-1.0, 0.25, 3.0]))
        tensor([2.0000, 0.7500, 0.0000])
    """
    return torch.relu(1 - margin)


def robust_loss(margin: Float[Tensor, " pairs"], *, flip_probability: float) -> Float[Tensor, " pairs"]:
    """Robust DPO, arXiv 2403.00409: [(1 - e) loss(margin) - e loss(-margin)] / (1 - 2e), loss = -log sigmoid.

    An unbiased estimate: where each label is flipped with probability e, its mean over the flips is the loss of the
    true labels (the paper's Lemma 3.1). It equals loss(margin) - margin e / (1 - 2e), so it has no lower bound: it
    pulls harder than DPO, and never stops. `conservative_loss` does the opposite.

    Args:
        margin: dimensionless.
        flip_probability: e, in [0, 0.5).

    Example:
        >>> import torch
        >>> robust_loss(torch.tensor([0.0, 3.0]), flip_probability=0.25)  # ln 2, and 0.0486 - 3 / 2
        tensor([ 0.6931, -1.4514])
    """
    kept = (1 - flip_probability) * preference_loss(margin)
    return (kept - flip_probability * preference_loss(-margin)) / (1 - 2 * flip_probability)


def conservative_loss(margin: Float[Tensor, " pairs"], *, label_smoothing: float) -> Float[Tensor, " pairs"]:
    """Conservative DPO: (1 - e) loss(margin) + e loss(-margin), loss = -log sigmoid.

    E. Mitchell, "A note on DPO with noisy preferences and relationship to IPO" (2023), Eq. 3: the cross-entropy with a
    label that is 1 - e sure. It is least at margin log((1 - e) / e) and pulls back beyond it, which `robust_loss`
    never does.

    Args:
        margin: dimensionless.
        label_smoothing: e, in [0, 0.5).

    Example:
        >>> import torch
        >>> conservative_loss(torch.tensor([0.0, 3.0]), label_smoothing=0.25)  # ln 2, and 0.0486 + 3 / 4
        tensor([0.6931, 0.7986])
    """
    return (1 - label_smoothing) * preference_loss(margin) + label_smoothing * preference_loss(-margin)


def simpo_reward(policy: SequenceLogProbs, *, beta: float) -> Float[Tensor, " sequences"]:
    """SimPO's implicit reward, inside its Eq. 6 (arXiv 2405.14734): beta log pi(y|x) / |y|, beta times nats a token."""
    return beta * policy.mean


def simpo_loss(policy: PairLogProbs, *, beta: float, gamma: float) -> Float[Tensor, " pairs"]:
    """SimPO, arXiv 2405.14734, Eq. 6: -log sigmoid(r(y_w) - r(y_l) - gamma), r being `simpo_reward`.

    Args:
        policy: log-probs of the policy, nats.
        beta: scale of the rewards.
        gamma: the margin that the rewards' difference is to reach, in units of the rewards. Some code takes
            gamma / beta for its argument; this is the paper's gamma.

    Example:
        >>> import torch
        >>> from lightning_dadpo.types import PairLogProbs, SequenceLogProbs
        >>> chosen = SequenceLogProbs(torch.tensor([-8.0]), torch.tensor([4]))  # -2 nats a token
        >>> rejected = SequenceLogProbs(torch.tensor([-5.0]), torch.tensor([2]))  # -2.5
        >>> simpo_loss(PairLogProbs(chosen, rejected), beta=2.0, gamma=1.0)  # the target is just reached: ln 2
        tensor([0.6931])
    """
    margin = simpo_reward(policy.chosen, beta=beta) - simpo_reward(policy.rejected, beta=beta)
    return preference_loss(margin - gamma)


def check_simpo(beta: float, gamma: float) -> None:
    """Refuse numbers that define no SimPO.

    Raises:
        ConfigError: beta is not a finite number > 0, or gamma not one >= 0.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise ConfigError(f"beta {beta}: expected a finite number > 0")
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ConfigError(f"gamma {gamma}: expected a finite number >= 0")


def check_label_noise(name: str, value: float) -> None:
    """Refuse a share of wrong labels outside [0, 0.5): from one half on the labels say nothing, or the opposite.

    Raises:
        ConfigError: naming the argument and its value.
    """
    if not 0 <= value < 0.5:
        raise ConfigError(f"{name} {value}: expected a number in [0, 0.5)")
