"""Sampling from a transformers model, its key-value cache kept and every draw made here.

Not `generate`: that runs every row of a batch to the cap of the longest, fills what it is not told from the model's
own generation defaults (trap A9), and hands out scores that it has already bent. Here finished rows leave and waiting
prompts take their places, what all prompts begin with is computed once, the draw is seeded prompt by prompt, and the
raw temperature-1 log-prob of what was drawn is read from the very logits that it was drawn from (METHOD: "always of
the raw model").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.sampling.base import Sampled, SamplerSettings, nothing, prompt_seed
from lightning_dadpo.sampling.running import Running
from lightning_dadpo.sampling.waiting import Waiting

__all__ = ["TransformersSampler", "draw", "refuse_unknown_layers", "response_uniforms"]

KINDS_OF_LAYERS = {"full_attention", "sliding_attention"}
"""Those that see the same wherever in the cache a row stands."""


def draw(logits: Tensor, uniforms: Tensor, settings: SamplerSettings) -> Tensor:
    """One token a row, by inversion of the cumulated probabilities.

    Args:
        logits: [rows, vocabulary], raw.
        uniforms: [rows], float64 in [0, 1).
        settings: temperature and top_p.

    Returns:
        Ids [rows].
    """
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    warped = logits.float() / settings.temperature
    if settings.top_p < 1:
        warped = TopPLogitsWarper(settings.top_p)(None, warped)
    cumulated = warped.double().softmax(dim=-1).cumsum(dim=-1)
    points = uniforms * cumulated[:, -1]
    return torch.searchsorted(cumulated, points[:, None], right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)


def response_uniforms(settings: SamplerSettings, key: str) -> Tensor:
    """The random numbers of one response, [max_new_tokens] in [0, 1), float64: the seed's and the key's alone."""
    generator = torch.Generator().manual_seed(prompt_seed(settings.seed, key))
    return torch.rand(settings.max_new_tokens, generator=generator, dtype=torch.float64)


def refuse_unknown_layers(model: Any) -> None:
    """Refuse a model whose past cannot be kept as keys and values.

    Raises:
        ConfigError: the model has layers whose memory is not keys and values of single tokens.
    """
    kinds = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    if unknown := sorted(set(kinds) - KINDS_OF_LAYERS):
        raise ConfigError(
            f"sampling from {unknown[0]} layers is not supported here; expected full_attention or "
            "sliding_attention, or take backend: vllm"
        )


class TransformersSampler:
    """A `Sampler` over a loaded causal language model.

    Args:
        model: in eval mode, on its device.
        end_of_turn_ids: ids that end a response.
        settings: how to draw.
        batch_size: responses drawn at a time. Further prompts begin when a quarter of the places is free.

    Raises:
        ConfigError: the model has layers whose memory is not keys and values of single tokens.
    """

    def __init__(
        self, model: Any, end_of_turn_ids: tuple[int, ...], settings: SamplerSettings, batch_size: int = 32
    ) -> None:
        refuse_unknown_layers(model)
        self.model, self.end_of_turn_ids, self.settings = model, end_of_turn_ids, settings
        self.batch_size = batch_size
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def sample(
        self, prompt_ids: list[list[int]], keys: list[str], advance: Callable[[int], None] = nothing
    ) -> list[Sampled]:
        """One response a prompt, in the order given; `advance` is told how many more have ended."""
        uniforms = torch.stack([response_uniforms(self.settings, key) for key in keys]).to(self.device)
        waiting, responses = Waiting(self.model, prompt_ids), [_Response() for _ in prompt_ids]
        running = waiting.begin(self.batch_size)
        while len(running):
            drawn = self._draw(running, responses, uniforms)
            unfinished = [row for row, prompt in enumerate(running.prompts) if not self._ended(responses[prompt])]
            advance(len(running) - len(unfinished))
            running.keep(unfinished)
            if unfinished:
                running.advance(self.model, drawn[unfinished])
            if self.batch_size - len(running) >= min(len(waiting), max(1, self.batch_size // 4)):
                while len(waiting) and len(running) < self.batch_size:
                    running.join(waiting.begin(self.batch_size - len(running)))
        return [self._sampled(response) for response in responses]

    def _draw(self, running: Running, responses: list[_Response], uniforms: Tensor) -> Tensor:
        """Draw a token for every row, [rows], and add it to the row's response."""
        rows = [responses[prompt] for prompt in running.prompts]
        points = uniforms[running.prompts, [len(response.token_ids) for response in rows]]
        drawn = draw(running.logits, points, self.settings)
        raw = running.logits.gather(-1, drawn[:, None]).squeeze(-1) - running.logits.logsumexp(dim=-1)
        for response, token, nats in zip(rows, drawn.tolist(), raw.tolist(), strict=True):
            response.token_ids.append(token)
            response.log_prob += nats
        return drawn

    def _ended(self, response: _Response) -> bool:
        return response.token_ids[-1] in self.end_of_turn_ids or len(response.token_ids) == self.settings.max_new_tokens

    def _sampled(self, response: _Response) -> Sampled:
        ended = response.token_ids[-1] in self.end_of_turn_ids
        return Sampled(response.token_ids, "stop" if ended else "length", response.log_prob)


@dataclass
class _Response:
    """What a prompt has been answered so far: tokens, and the sum of their raw log-probs in nats."""

    token_ids: list[int] = field(default_factory=list)
    log_prob: float = 0.0
