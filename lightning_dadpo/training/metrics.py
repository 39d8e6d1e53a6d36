"""Means over examples, right across batches of any size and across ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_dadpo.losses import PreferenceOutcome, response_nll_per_token
from lightning_dadpo.types import PairLogProbs

__all__ = ["ExampleMeans", "pair_values", "pair_value_names"]


class ExampleMeans(Metric):
    """Weighted means of several named values, one state for all, so one synchronisation for all.

    A filler has weight 0; a mean of per-batch means never arises (trap E3).

    Args:
        names: the values, in a fixed order.
    """

    full_state_update = False
    totals: Tensor
    weight: Tensor

    def __init__(self, names: Sequence[str], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.names = tuple(names)
        self.add_state("totals", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Mapping[str, Tensor], weights: Tensor) -> None:
        """Add a batch: every value [examples], weights [examples]."""
        stacked = torch.stack([values[name].detach().double() for name in self.names])
        # not in place: validation leaves tensors of inference mode behind, and a training may come after it
        self.totals = self.totals + (stacked * weights.double()).sum(dim=1)
        self.weight = self.weight + weights.double().sum()

    def compute(self) -> dict[str, Tensor]:
        """The mean of each value."""
        return dict(zip(self.names, self.totals / self.weight, strict=True))

    def so_far(self) -> dict[str, Tensor]:
        """This rank's sums, for a checkpoint."""
        return {"totals": self.totals.cpu().clone(), "weight": self.weight.cpu().clone()}

    def go_on_from(self, sums: dict[str, Tensor]) -> None:
        """Continue with what `so_far` gave."""
        self.totals, self.weight = sums["totals"].to(self.device), sums["weight"].to(self.device)


def pair_value_names(anchors: Sequence[str], parts: Sequence[str] = ()) -> list[str]:
    """The names that `pair_values` gives for these anchors, and of the parts of a sum."""
    names = ["loss", "margin", "accuracy", "ties", "policy_preference", "weight", "chosen_reward", "rejected_reward"]
    names += ["chosen_nll_per_token", "chosen_tokens", "rejected_tokens"]
    names += [f"{side}_log_prob/{model}" for model in ("policy", *anchors) for side in ("chosen", "rejected")]
    names += [f"part/{part}" for part in parts]
    return names + (["teacher_agreement"] if "teacher" in anchors else [])


def _preferred(gap: Tensor) -> Tensor:
    """1 where positive, one half on a tie."""
    return (gap > 0).float() + 0.5 * (gap == 0).float()


def pair_values(
    outcome: PreferenceOutcome, policy: PairLogProbs, anchors: Mapping[str, PairLogProbs]
) -> dict[str, Tensor]:
    """Everything that is said of a pair, one number a pair each; README lists what the names mean."""
    values = {
        "loss": outcome.loss,
        "margin": outcome.margin,
        "accuracy": _preferred(outcome.margin),
        "ties": (outcome.margin == 0).float(),
        "policy_preference": _preferred(policy.gap),
        "weight": outcome.weight,
        "chosen_reward": outcome.chosen_reward,
        "rejected_reward": outcome.rejected_reward,
        "chosen_nll_per_token": response_nll_per_token(policy.chosen),
        "chosen_tokens": policy.chosen.num_tokens.float(),
        "rejected_tokens": policy.rejected.num_tokens.float(),
    }
    for name, scores in {"policy": policy, **anchors}.items():
        values[f"chosen_log_prob/{name}"] = scores.chosen.total
        values[f"rejected_log_prob/{name}"] = scores.rejected.total
    if "teacher" in anchors:
        values["teacher_agreement"] = _preferred(anchors["teacher"].gap)
    return values
