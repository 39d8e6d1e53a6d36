"""What a sampler is asked and what it answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lightning_dadpo.data.rows import FinishReason, content_digest
from lightning_dadpo.errors import ConfigError

__all__ = ["SamplerSettings", "Sampled", "Sampler", "nothing", "prompt_seed", "seed_key"]


@dataclass(frozen=True)
class SamplerSettings:
    """How responses are drawn. Everything is stated: a model's own generation defaults never apply.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token each time.
        top_p: keep the likeliest tokens up to this probability mass; 1 keeps all.
        max_new_tokens: cap on a response, in tokens, its end-of-turn token included.
        seed: with the prompt's id and the number of the response to it, it fixes the randomness of that response
            alone. Two models whose responses are to be paired want two seeds: under one they draw with the same
            random numbers.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature {self.temperature}: expected a number >= 0")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p}: expected a number in (0, 1]")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens {self.max_new_tokens}: expected at least 1")


@dataclass(frozen=True)
class Sampled:
    """One response.

    Attributes:
        token_ids: what was drawn, the end-of-turn token included when it was drawn.
        finish_reason: "stop" when the model ended its turn, "length" when the cap did.
        log_prob: log pi(y|x) of the raw model, in nats: temperature 1, nothing cut off; None where nobody can say it.
    """

    token_ids: list[int]
    finish_reason: FinishReason
    log_prob: float | None


def nothing(count: int) -> None:
    """Nobody counts the responses."""


class Sampler(Protocol):
    """Draws one response for each prompt."""

    def sample(
        self, prompt_ids: list[list[int]], keys: list[str], advance: Callable[[int], None] = nothing
    ) -> list[Sampled]:
        """One response a prompt, in the order given; `advance` is told when so many more are there.

        `keys` seed them one by one, so that company does not change them beyond the rounding of its products.
        """


def seed_key(prompt_id: str, candidate: int) -> str:
    """What seeds one response: the first to a prompt as if it were the only one, further ones each in their own way."""
    return f"{candidate} {prompt_id}" if candidate else prompt_id


def prompt_seed(seed: int, key: str) -> int:
    """The seed of one response's random numbers, 63 bits: other prompts and their order do not enter."""
    return int(content_digest(seed, key), 16) >> 1
