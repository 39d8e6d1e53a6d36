"""How often a student answers by itself while it is trained, as a recipe says it."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.sampling.base import SamplerSettings

__all__ = ["OnPolicy"]


@dataclass(frozen=True)
class OnPolicy:
    """How often the student answers a prompt itself (GKD, arXiv 2306.13649: the student data fraction).

    Attributes:
        fraction: of the responses, drawn anew at each step; the others are the data's.
        sampler: how the student answers; its cap bounds the memory of a micro-batch, whatever the budget of tokens.
    """

    fraction: float
    sampler: SamplerSettings = field(default_factory=SamplerSettings)

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"model.on_policy.fraction {self.fraction}: expected a number in (0, 1]; or leave it out")
