"""A model that one can talk to: it answers a conversation piece by piece, and says how likely it finds an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from lightning_dadpo.data.chat import render_prompt
from lightning_dadpo.data.packing import pack
from lightning_dadpo.data.rows import Message, content_digest
from lightning_dadpo.data.tokenizers import tokenizer_difference
from lightning_dadpo.errors import DataError
from lightning_dadpo.models.loading import count_parameters, end_of_turn_ids, load_frozen, load_tokenizer
from lightning_dadpo.models.log_probs import check_trunk_and_head, model_log_probs
from lightning_dadpo.models.numerics import default_device, inference_precision
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling.base import SamplerSettings
from lightning_dadpo.sampling.streaming import StreamedResponse

__all__ = ["Speaker", "SpeakerPrecision"]

SpeakerPrecision = Literal["32-true", "bf16-true"]
"""Who speaks is not trained, so there are no float32 weights to keep beside 16-bit numbers."""


class Speaker:
    """A loaded model with its tokenizer.

    Args:
        name: what it is called.
        spec: which model.
        precision: number format; by default what this machine is fast in.

    Raises:
        ConfigError, DataError: it cannot be loaded.
    """

    def __init__(self, name: str, spec: ModelSpec, precision: SpeakerPrecision | None = None) -> None:
        self.name, self.spec = name, spec
        self.precision = precision or inference_precision()
        self.device = default_device()
        self.tokenizer = load_tokenizer(spec)
        self.model = load_frozen(spec, self.precision, self.device)
        self.end_of_turn_ids = end_of_turn_ids(self.model, self.tokenizer)
        self._checked = False
        self._differences: dict[str, str | None] = {}

    def describe(self) -> str:
        """One phrase: where it comes from, its size and its numbers."""
        size = count_parameters(self.model) / 1e6
        held = self.spec.quantize or self.precision
        return f"{self.spec.path}, {size:,.1f} M parameters, {held} on {self.device.type}"

    def answer(self, messages: Sequence[Message], settings: SamplerSettings) -> StreamedResponse:
        """Begin a response; nothing is computed before its first step.

        The random numbers are the seed's and the conversation's: the same question behind the same turns is answered
        in the same way, whoever else answers.

        Args:
            messages: the conversation, the user's turn last.
            settings: how to draw.

        Raises:
            DataError: the conversation fills the model's context, or its template refuses it.
        """
        prompt = render_prompt(self.tokenizer, messages)
        room = self._context() - len(prompt)
        if room < 1:
            raise DataError(
                f"{self.name}: the conversation has {len(prompt)} tokens and it reads {self._context()}; "
                "shorten it (/undo) or begin anew (/reset)"
            )
        settings = replace(settings, max_new_tokens=min(settings.max_new_tokens, room))
        key = content_digest([[message.role, message.content] for message in messages])
        return StreamedResponse(self.model, self.tokenizer, prompt, self.end_of_turn_ids, settings, key)

    def _context(self) -> int:
        """Tokens that it was made to read; any number where its config does not say."""
        said = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return int(said) if said else 1 << 30

    def cannot_read(self, author: Speaker, messages: Sequence[Message], response: StreamedResponse) -> str | None:
        """Why another one's answer, as token ids, would be another answer to this model; None where it would not.

        Args:
            author: who answered. messages: what was answered. response: the answer.
        """
        if author.name not in self._differences:
            self._differences[author.name] = tokenizer_difference(author.tokenizer, self.tokenizer)
        if (difference := self._differences[author.name]) is not None:
            return f"their tokenizers differ ({difference})"
        if author is not self and render_prompt(self.tokenizer, messages) != response.prompt_token_ids:
            return "their chat templates render the conversation otherwise"
        known = self.model.get_input_embeddings().num_embeddings
        if (largest := max([*response.prompt_token_ids, *response.token_ids])) >= known:
            return f"it holds token id {largest}, and {self.name} knows ids below {known}"
        return None

    @torch.no_grad()
    def log_prob(self, response: StreamedResponse) -> float:
        """Log pi(y|x) of a response behind its own prompt, in nats, of the raw model, by the one path for log-probs.

        Raises:
            ConfigError: that path cannot read this kind of model.
        """
        if not self._checked:
            check_trunk_and_head(self.model, self.spec.path)
            self._checked = True
        batch = pack([response.prompt_token_ids], [[response.token_ids]]).to(self.device)
        return float(model_log_probs(self.model, batch).total.double())
