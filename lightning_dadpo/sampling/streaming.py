"""One response drawn token by token for somebody who reads along."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lightning_dadpo.data.rows import FinishReason
from lightning_dadpo.sampling.base import SamplerSettings
from lightning_dadpo.sampling.transformers_sampler import draw, refuse_unknown_layers, response_uniforms
from lightning_dadpo.sampling.waiting import Waiting

__all__ = ["Drawn", "StreamedResponse", "settled", "stream_tokens"]

BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Drawn:
    """One token, and its log-prob of the raw model in nats: temperature 1, nothing cut off."""

    token_id: int
    log_prob: float


@torch.inference_mode()
def stream_tokens(
    model: Any, prompt_ids: list[int], end_of_turn_ids: tuple[int, ...], settings: SamplerSettings, key: str
) -> Iterator[Drawn]:
    """The tokens of one response, each when it is drawn: those that `TransformersSampler` draws for it alone.

    The prompt is read anew for every response: keys and values kept from an earlier turn would be rounded otherwise
    than those of a fresh reading, so that the same conversation could go on in two ways.

    Args:
        model: in eval mode, on its device.
        prompt_ids: the prompt, up to and with the assistant header.
        end_of_turn_ids: ids that end a response.
        settings: how to draw.
        key: with the seed it fixes the random numbers.

    Raises:
        ConfigError: the model has layers whose memory is not keys and values of single tokens.
    """
    refuse_unknown_layers(model)
    uniforms = response_uniforms(settings, key).to(next(model.parameters()).device)
    running = Waiting(model, [prompt_ids]).begin(1)
    for at in range(settings.max_new_tokens):
        drawn = draw(running.logits, uniforms[at : at + 1], settings)
        nats = running.logits[0, drawn[0]] - running.logits[0].logsumexp(dim=-1)
        token = int(drawn)
        yield Drawn(token, float(nats))
        if token in end_of_turn_ids or at + 1 == settings.max_new_tokens:
            return
        running.advance(model, drawn)


def settled(text: str) -> str:
    """Decoded text as far as later tokens cannot change it: without characters of which bytes are still to come."""
    return text.rstrip(BROKEN)


class StreamedResponse:
    """A response that grows with every `step`; whoever leaves off keeps what is there.

    Args:
        model, tokenizer: who answers.
        prompt_token_ids: what it answers.
        end_of_turn_ids: ids that end a response.
        settings: how to draw.
        key: with the seed it fixes the random numbers.

    Attributes:
        token_ids: what was drawn, the end-of-turn token included when it was drawn.
        log_prob: log pi(y|x) of the raw model in nats, of what is there.
        text: the same decoded without special tokens; while bytes of a character are missing, up to it.
        finish_reason: "stop" when the model ended its turn, "length" when the cap did; None as long as neither has.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompt_token_ids: list[int],
        end_of_turn_ids: tuple[int, ...],
        settings: SamplerSettings,
        key: str,
    ) -> None:
        self.tokenizer, self.prompt_token_ids = tokenizer, prompt_token_ids
        self.token_ids: list[int] = []
        self.log_prob = 0.0
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self._ends, self._cap = end_of_turn_ids, settings.max_new_tokens
        self._tokens = stream_tokens(model, prompt_token_ids, end_of_turn_ids, settings, key)

    def step(self) -> None:
        """Draw one more token, unless the response has ended."""
        if self.finish_reason is not None:
            return
        drawn = next(self._tokens)
        self.token_ids.append(drawn.token_id)
        self.log_prob += drawn.log_prob
        decoded = str(self.tokenizer.decode(self.token_ids, skip_special_tokens=True))
        if drawn.token_id in self._ends:
            self.finish_reason, self.text = "stop", decoded
            return
        # some decoders show a finished character as broken again while the next one lacks bytes: no step back
        self.text = max(self.text, settled(decoded), key=len)
        if len(self.token_ids) == self._cap:
            self.finish_reason = "length"
