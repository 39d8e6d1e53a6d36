"""Preference objectives as the classes that a YAML names; each calls the pure functions and keeps no state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightning_dadpo.losses.anchored import anchored_margin, check_betas, implicit_reward, preference_loss
from lightning_dadpo.types import PairLogProbs

__all__ = ["PreferenceObjective", "PreferenceOutcome", "AnchoredPreference", "DaDPO", "DPO"]


@dataclass(frozen=True)
class PreferenceOutcome:
    """What an objective says of each pair.

    Attributes:
        loss: nats; margin: dimensionless; implicit rewards of the chosen and the rejected response.
    """

    loss: Float[Tensor, " pairs"]
    margin: Float[Tensor, " pairs"]
    chosen_reward: Float[Tensor, " pairs"]
    rejected_reward: Float[Tensor, " pairs"]


class PreferenceObjective(ABC):
    """What training asks of an objective: the anchors it needs, and a value a pair."""

    @property
    @abstractmethod
    def anchors(self) -> tuple[str, ...]:
        """Names of the anchors whose scores it needs."""

    @abstractmethod
    def __call__(self, policy: PairLogProbs, anchors: Mapping[str, PairLogProbs]) -> PreferenceOutcome:
        """Loss, margin and implicit rewards of each pair."""


class AnchoredPreference(PreferenceObjective):
    """The anchored preference loss over any number of named anchors.

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

    def __call__(self, policy: PairLogProbs, anchors: Mapping[str, PairLogProbs]) -> PreferenceOutcome:
        """See `anchored_margin`, `preference_loss` and `implicit_reward`."""
        margin = anchored_margin(policy, anchors, self.betas)
        chosen = {name: anchors[name].chosen for name in self.betas}
        rejected = {name: anchors[name].rejected for name in self.betas}
        return PreferenceOutcome(
            loss=preference_loss(margin),
            margin=margin,
            chosen_reward=implicit_reward(policy.chosen, chosen, self.betas),
            rejected_reward=implicit_reward(policy.rejected, rejected, self.betas),
        )


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
