"""Sampling from a transformers model, its key-value cache kept and every draw made here.

Not `generate`: that runs every row of a batch to the cap of the longest, fills what it is not told from the model's
own generation defaults (trap A9), and hands out scores that it has already bent. Here finished rows leave, the
draw is seeded prompt by prompt, and the raw temperature-1 log-prob of what was drawn is read from the very logits
that it was drawn from (METHOD: "always of the raw model").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, TopPLogitsWarper

from lightning_dadpo.data.rows import content_digest
from lightning_dadpo.sampling.base import Sampled, SamplerSettings

__all__ = ["TransformersSampler", "draw"]


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


class _Rows:
    """The rows of a batch that still run, and the cache that belongs to them."""

    def __init__(self, model: Any, prompt_ids: list[list[int]], uniforms: Tensor) -> None:
        device, width = uniforms.device, max(map(len, prompt_ids))
        # padded on the left, so that the next token of every row stands in the same column; positions are counted
        # from each row's own first token (trap B4)
        padding = [width - len(row) for row in prompt_ids]
        filled = [[0] * left + row for left, row in zip(padding, prompt_ids, strict=True)]
        self.ids = torch.tensor(filled, device=device)
        self.mask = torch.tensor([[0] * left + [1] * (width - left) for left in padding], device=device)
        self.index = torch.arange(len(prompt_ids), device=device)
        self.uniforms = uniforms
        self.cache = DynamicCache(config=model.config)

    def next_logits(self, model: Any) -> Tensor:
        """Raw logits [rows, vocabulary] behind the latest tokens; float32."""
        positions = (self.mask.cumsum(dim=-1) - 1).clamp_min(0)[:, -self.ids.shape[1] :]
        output = model(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def append(self, drawn: Tensor) -> None:
        self.ids = drawn[:, None]
        self.mask = torch.cat([self.mask, torch.ones_like(self.ids)], dim=1)

    def keep(self, rows: Tensor) -> None:
        self.ids, self.mask, self.index, self.uniforms = (
            part[rows] for part in (self.ids, self.mask, self.index, self.uniforms)
        )
        self.cache.batch_select_indices(rows)


class TransformersSampler:
    """A `Sampler` over a loaded causal language model.

    Args:
        model: in eval mode, on its device.
        end_of_turn_ids: ids that end a response.
        settings: how to draw.
    """

    def __init__(self, model: Any, end_of_turn_ids: tuple[int, ...], settings: SamplerSettings) -> None:
        self.model, self.end_of_turn_ids, self.settings = model, end_of_turn_ids, settings
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def sample(self, prompt_ids: list[list[int]], keys: list[str]) -> list[Sampled]:
        """One response a prompt, in the order given."""
        uniforms = torch.stack([self._uniforms(key) for key in keys]).to(self.device)
        rows = _Rows(self.model, prompt_ids, uniforms)
        ends = torch.tensor(self.end_of_turn_ids, device=self.device)
        tokens: list[list[int]] = [[] for _ in prompt_ids]
        nats = [0.0] * len(prompt_ids)
        for step in range(self.settings.max_new_tokens):
            logits = rows.next_logits(self.model)
            drawn = draw(logits, rows.uniforms[:, step], self.settings)
            raw = logits.gather(-1, drawn[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)
            for row, token, log_prob in zip(rows.index.tolist(), drawn.tolist(), raw.tolist(), strict=True):
                tokens[row].append(token)
                nats[row] += log_prob
            running = (~torch.isin(drawn, ends)).nonzero().squeeze(-1)
            if not len(running):
                break
            rows.append(drawn)
            if len(running) < len(drawn):
                rows.keep(running)
        return [self._sampled(row, total) for row, total in zip(tokens, nats, strict=True)]

    def _sampled(self, token_ids: list[int], log_prob: float) -> Sampled:
        ended = token_ids[-1] in self.end_of_turn_ids
        return Sampled(token_ids, "stop" if ended else "length", log_prob)

    def _uniforms(self, key: str) -> Tensor:
        generator = torch.Generator().manual_seed(int(content_digest(self.settings.seed, key), 16) >> 1)
        return torch.rand(self.settings.max_new_tokens, generator=generator, dtype=torch.float64)
