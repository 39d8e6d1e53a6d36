"""Sampling with transformers' `generate`, the choice of each token made here.

`generate` runs greedily over scores in which one processor has already put the drawn token on top. So the draw
is seeded prompt by prompt, and the raw temperature-1 log-prob of what was drawn is read from the very logits it
was drawn from, before temperature and top-p (METHOD: "always of the raw model").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from lightning_dadpo.data.rows import content_digest
from lightning_dadpo.sampling.base import Sampled, SamplerSettings

__all__ = ["TransformersSampler"]


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Draws by inversion, one uniform number a token, and notes the raw log-prob of each draw."""

    def __init__(self, settings: SamplerSettings, uniforms: Tensor) -> None:
        self.settings = settings
        self.uniforms = uniforms  # [rows, max_new_tokens], float64
        self.top_p = TopPLogitsWarper(settings.top_p) if settings.top_p < 1 else None
        self.log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        raw = scores.float().log_softmax(dim=-1)
        if self.settings.temperature == 0:
            drawn = raw.argmax(dim=-1)
        else:
            warped = scores.float() / self.settings.temperature
            if self.top_p is not None:
                warped = self.top_p(input_ids, warped)
            cumulated = warped.double().softmax(dim=-1).cumsum(dim=-1)
            point = self.uniforms[:, len(self.log_probs)] * cumulated[:, -1]
            drawn = torch.searchsorted(cumulated, point[:, None], right=True).squeeze(-1)
            drawn = drawn.clamp_max(scores.shape[-1] - 1)
        self.log_probs.append(raw.gather(-1, drawn[:, None]).squeeze(-1))
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn[:, None], 0.0)


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

    def _generation_config(self) -> GenerationConfig:
        """Every setting that could bend the distribution is stated as neutral; none comes from the model's folder."""
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.settings.max_new_tokens,
            eos_token_id=list(self.end_of_turn_ids),
            pad_token_id=self.end_of_turn_ids[0],
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            min_new_tokens=0,
            use_cache=True,
        )

    @torch.inference_mode()
    def sample(self, prompt_ids: list[list[int]], keys: list[str]) -> list[Sampled]:
        """One response a prompt, in the order given."""
        width = max(map(len, prompt_ids))
        filler = self.end_of_turn_ids[0]
        ids = torch.tensor([[filler] * (width - len(row)) + row for row in prompt_ids], device=self.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompt_ids], device=self.device)
        draw = _Draw(self.settings, torch.stack([self._uniforms(key) for key in keys]).to(self.device))
        config = self.model.generation_config
        try:
            # generate() fills what a config leaves open from the model's own; give it none to fill from.
            self.model.generation_config = GenerationConfig()
            output = self.model.generate(
                ids,
                attention_mask=mask,
                generation_config=self._generation_config(),
                logits_processor=LogitsProcessorList([draw]),
            )
        finally:
            self.model.generation_config = config
        log_probs = torch.stack(draw.log_probs, dim=1).double().cpu()
        new_ids = output[:, width:].cpu().tolist()
        return [self._trim(row, log_probs[index]) for index, row in enumerate(new_ids)]

    def _uniforms(self, key: str) -> Tensor:
        generator = torch.Generator().manual_seed(int(content_digest(self.settings.seed, key), 16) >> 1)
        return torch.rand(self.settings.max_new_tokens, generator=generator, dtype=torch.float64)

    def _trim(self, row: list[int], log_probs: Tensor) -> Sampled:
        """Cut what `generate` pads behind the first end-of-turn token."""
        ends = [index for index, token in enumerate(row) if token in self.end_of_turn_ids]
        length = ends[0] + 1 if ends else len(row)
        return Sampled(row[:length], "stop" if ends else "length", float(log_probs[:length].sum()))
