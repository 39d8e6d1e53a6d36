"""Preference objectives as the classes that a YAML names; each calls the pure functions and keeps no state.

Every one of them is a margin and a link from that margin to a loss. The margin is the difference of the implicit
rewards of the two responses; all but SimPO take them from weighted anchors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_dadpo.losses.anchored import anchored_margin, check_betas, implicit_reward, preference_loss
from lightning_dadpo.losses.preference_links import (
    check_label_noise,
    check_simpo,
    conservative_loss,
    hinge_loss,
    ipo_loss,
    robust_loss,
    simpo_reward,
)
from lightning_dadpo.types import PairLogProbs, SequenceLogProbs

__all__ = [
    "PreferenceObjective", "PreferenceOutcome", "AnchoredPreference", "DaDPO", "DPO", "IPO", "RobustDPO",
    "ConservativeDPO", "HingePreference", "SimPO",
]  # fmt: skip


@dataclass(frozen=True)
class PreferenceOutcome:
    """What an objective says of each pair.

    Attributes:
        loss: nats (IPO: nats squared; hinge: dimensionless).
        margin: dimensionless; the chosen response's implicit reward less the rejected one's.
        chosen_reward: implicit reward of the chosen response.
        rejected_reward: implicit reward of the rejected response.
        weight: -d loss / d margin, outside autograd: how hard the pair still pulls; sigmoid(-margin) in daDPO.
    """

    loss: Float[Tensor, " pairs"]
    margin: Float[Tensor, " pairs"]
    chosen_reward: Float[Tensor, " pairs"]
    rejected_reward: Float[Tensor, " pairs"]
    weight: Float[Tensor, " pairs"]


class PreferenceObjective(ABC):
    """What training asks of an objective: the anchors it needs, its settings, and a value a pair."""

    @property
    @abstractmethod
    def anchors(self) -> tuple[str, ...]:
        """Names of the anchors whose scores it needs."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Its numbers in plain values, for checkpoints and model cards."""

    @abstractmethod
    def margin(self, policy: PairLogProbs, anchors: Mapping[str, PairLogProbs]) -> Float[Tensor, " pairs"]:
        """The chosen response's implicit reward less the rejected one's."""

    @abstractmethod
    def reward(self, policy: SequenceLogProbs, anchors: Mapping[str, SequenceLogProbs]) -> Float[Tensor, " sequences"]:
        """The implicit reward of each response, up to a constant a prompt."""

    @abstractmethod
    def link(self, margin: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """The loss of each pair, of its margin alone."""

    def __call__(self, policy: PairLogProbs, anchors: Mapping[str, PairLogProbs]) -> PreferenceOutcome:
        """Loss, margin, implicit rewards and weight of each pair."""
        margin = self.margin(policy, anchors)
        chosen = {name: anchors[name].chosen for name in self.anchors}
        rejected = {name: anchors[name].rejected for name in self.anchors}
        return PreferenceOutcome(
            loss=self.link(margin),
            margin=margin,
            chosen_reward=self.reward(policy.chosen, chosen),
            rejected_reward=self.reward(policy.rejected, rejected),
            weight=_weight(self.link, margin),
        )


def _weight(link: Callable[[Tensor], Tensor], margin: Tensor) -> Tensor:
    """-d link / d margin at each margin: by autograd, so that no link can disagree with its own weight."""
    with torch.inference_mode(False), torch.enable_grad():  # validation runs in inference mode
        at = margin.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(link(at).sum(), at)
    return -slope


class AnchoredPreference(PreferenceObjective):
    """The anchored preference loss, -log sigmoid(margin), over any number of named anchors.

    Args:
        betas: weight b_k >= 0 of each anchor by name, for example {reference: 0.05, teacher: 0.05}.
            An anchor of weight 0 is left out and need not be scored.
    """

    def __init__(self, betas: dict[str, float]) -> None:
        check_betas(betas)
        self.betas = {anchor: beta for anchor, beta in betas.items() if beta > 0}

    @property
    def anchors(self) -> tuple[str, ...]:
        """The anchors with a positive weight."""
        return tuple(self.betas)

    @property
    def settings(self) -> dict[str, Any]:
        """The weights."""
        return {"betas": dict(self.betas)}

    def margin(self, policy: PairLogProbs, anchors: Mapping[str, PairLogProbs]) -> Float[Tensor, " pairs"]:
        """See `anchored_margin`."""
        return anchored_margin(policy, anchors, self.betas)

    def reward(self, policy: SequenceLogProbs, anchors: Mapping[str, SequenceLogProbs]) -> Float[Tensor, " sequences"]:
        """See `implicit_reward`."""
        return implicit_reward(policy, anchors, self.betas)

    def link(self, margin: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """See `preference_loss`."""
        return preference_loss(margin)


class DaDPO(AnchoredPreference):
    """daDPO (arXiv 2506.15717, Eq. 10): anchored on the reference and on the teacher.

    Args:
        beta_reference: weight of the KL to the reference (the paper's beta_1).
        beta_teacher: weight of the KL to the teacher (the paper's beta_2).
    """

    def __init__(self, beta_reference: float, beta_teacher: float) -> None:
        super().__init__({"reference": beta_reference, "teacher": beta_teacher})


class DPO(AnchoredPreference):
    """DPO (arXiv 2305.18290, Eq. 7): anchored on the reference alone. On teacher/student pairs it is dDPO.

    Args:
        beta: weight of the KL to the reference.
    """

    def __init__(self, beta: float) -> None:
        super().__init__({"reference": beta})


class IPO(AnchoredPreference):
    """IPO (arXiv 2310.12036, Eq. 17) over any anchors; on summed log-probs, as the paper's equation says.

    Args:
        betas: weight of each anchor by name; {reference: tau} is the paper's.
    """

    def link(self, margin: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """See `ipo_loss`."""
        return ipo_loss(margin, total_beta=sum(self.betas.values()))


class HingePreference(AnchoredPreference):
    """The hinge of SLiC (arXiv 2305.10425) on ratios to anchors, as RSO has it (arXiv 2309.06657, hinge-norm).

    Args:
        betas: weight of each anchor by name; {reference: gamma} is RSO's.
    """

    def link(self, margin: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """See `hinge_loss`."""
        return hinge_loss(margin)


class RobustDPO(AnchoredPreference):
    """Robust DPO (arXiv 2403.00409) over any anchors: unbiased where a known share of labels is wrong.

    Args:
        betas: weight of each anchor by name; {reference: beta} is the paper's.
        flip_probability: how probable it is that a pair's two responses are the wrong way round, in [0, 0.5).
    """

    def __init__(self, betas: dict[str, float], flip_probability: float) -> None:
        super().__init__(betas)
        check_label_noise("flip_probability", flip_probability)
        self.flip_probability = flip_probability

    @property
    def settings(self) -> dict[str, Any]:
        """The weights and the share of wrong labels."""
        return super().settings | {"flip_probability": self.flip_probability}

    def link(self, margin: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """See `robust_loss`."""
        return robust_loss(margin, flip_probability=self.flip_probability)


class ConservativeDPO(AnchoredPreference):
    """Conservative DPO (E. Mitchell's note of 2023, Eq. 3) over any anchors: label smoothing.

    Args:
        betas: weight of each anchor by name; {reference: beta} is the note's.
        label_smoothing: what the label leaves to the other response, in [0, 0.5).
    """

    def __init__(self, betas: dict[str, float], label_smoothing: float) -> None:
        super().__init__(betas)
        check_label_noise("label_smoothing", label_smoothing)
        self.label_smoothing = label_smoothing

    @property
    def settings(self) -> dict[str, Any]:
        """The weights and the smoothing."""
        return super().settings | {"label_smoothing": self.label_smoothing}

    def link(self, margin: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """See `conservative_loss`."""
        return conservative_loss(margin, label_smoothing=self.label_smoothing)


class SimPO(PreferenceObjective):
    """SimPO (arXiv 2405.14734, Eq. 6): rewards are nats per token of the policy itself, so it needs no anchor.

    Args:
        beta: scale of the rewards, > 0.
        gamma: target of the rewards' difference, >= 0, in units of the rewards (the paper's gamma, not gamma / beta).
    """

    def __init__(self, beta: float, gamma: float) -> None:
        check_simpo(beta, gamma)
        self.beta, self.gamma = beta, gamma

    @property
    def anchors(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def settings(self) -> dict[str, Any]:
        """Beta and gamma."""
        return {"beta": self.beta, "gamma": self.gamma}

    def margin(self, policy: PairLogProbs, anchors: Mapping[str, PairLogProbs]) -> Float[Tensor, " pairs"]:
        """The rewards' difference, before gamma is taken off: accuracy asks which response is preferred."""
        return self.reward(policy.chosen, {}) - self.reward(policy.rejected, {})

    def reward(self, policy: SequenceLogProbs, anchors: Mapping[str, SequenceLogProbs]) -> Float[Tensor, " sequences"]:
        """See `simpo_reward`."""
        return simpo_reward(policy, beta=self.beta)

    def link(self, margin: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """-log sigmoid(margin - gamma); see `simpo_loss`."""
        return preference_loss(margin - self.gamma)
