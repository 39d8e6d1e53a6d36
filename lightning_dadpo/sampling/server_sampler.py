"""Sampling from a completions server.

A server returns text. It is read back to ids by the served model's own tokenizer, so the ids are one tokenisation of
what was drawn, mostly the one that was drawn. No log-prob is kept with a response: what servers return for drawn tokens
may be bent by temperature and top_p, and belongs to the ids that were drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_dadpo.data.chat import render_response
from lightning_dadpo.data.rows import Message
from lightning_dadpo.errors import DataError
from lightning_dadpo.models.completions import Answer, CompletionsServer, Question
from lightning_dadpo.models.server_spec import ServerSpec
from lightning_dadpo.sampling.base import Sampled, SamplerSettings, nothing, prompt_seed

__all__ = ["ServerSampler"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class ServerSampler:
    """A `Sampler` over a server.

    Args:
        spec: which model on which server.
        tokenizer: the served model's own.
        settings: how to draw.

    Raises:
        ConfigError: the package openai is missing, or the key's variable is not set.
    """

    def __init__(self, spec: ServerSpec, tokenizer: Any, settings: SamplerSettings) -> None:
        self.server, self.tokenizer, self.settings = CompletionsServer(spec), tokenizer, settings
        self.end_of_turn = render_response(tokenizer, [Message("user", "question")], "answer")[-1]

    def sample(
        self, prompt_ids: list[list[int]], keys: list[str], advance: Callable[[int], None] = nothing
    ) -> list[Sampled]:
        """One response a prompt, in the order given; `advance` is told of every one.

        Raises:
            DataError: a prompt cannot be sent as text, or the server did not answer what it was asked.
        """
        found: dict[int, Sampled] = {}
        texts = [self._text(key, ids) for key, ids in zip(keys, prompt_ids, strict=True)]

        def tell(number: int, answers: list[Answer]) -> None:
            found[number] = self._sampled(keys[number], prompt_ids[number], texts[number], answers[0])
            advance(1)

        tasks = [(number, [self._question(text, keys[number])]) for number, text in enumerate(texts)]
        self.server.ask(tasks, tell)
        return [found[number] for number in range(len(keys))]

    def _text(self, key: str, ids: list[int]) -> str:
        text = str(self.tokenizer.decode(ids))
        if self._encoded(text) != ids:
            raise DataError(
                f"prompt {key!r}: its text is read as other tokens than the prompt's, so it cannot be sent to a server "
                f"(it may write out a special token, trap A13): {text[-120:]!r}"
            )
        return text

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _question(self, text: str, key: str) -> Question:
        """Every parameter that bends the distribution or ends a response, said (trap A9)."""
        return {
            "prompt": text,
            "max_tokens": self.settings.max_new_tokens,
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
            "seed": prompt_seed(self.settings.seed, key) >> 32,  # what fits everywhere: 31 bits
            "n": 1,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "extra_body": {
                "top_k": 0,
                "min_p": 0.0,
                "repeat_penalty": 1.0,  # llama-cpp-python's name
                "repetition_penalty": 1.0,  # vLLM's
                "min_tokens": 0,
                "add_special_tokens": False,  # vLLM would put a beginning-of-sequence token in front (trap A1)
            },
        }

    def _sampled(self, key: str, prompt: list[int], prompt_text: str, answer: Answer) -> Sampled:
        if answer.prompt_tokens not in (None, len(prompt)):
            raise DataError(
                f"{self.server.place}: counts {answer.prompt_tokens} tokens in prompt {key!r} where its tokenizer "
                f"counts {len(prompt)}; is server.tokenizer the served model's, and does the server add a "
                "beginning-of-sequence token of its own (trap A1)?"
            )
        if answer.finish_reason == "stop":
            return Sampled([*self._behind(prompt, prompt_text, answer.text), self.end_of_turn], "stop", None)
        cut = answer.text.rstrip(REPLACEMENT)  # the cap may fall inside a character
        if answer.finish_reason != "length" or not cut:
            raise DataError(
                f"{self.server.place}: ended the response to prompt {key!r} with {answer.finish_reason!r} behind "
                f"{answer.text[-20:]!r}; expected 'stop', or 'length' behind some text"
            )
        return Sampled(self._behind(prompt, prompt_text, cut), "length", None)

    def _behind(self, prompt: list[int], prompt_text: str, text: str) -> list[int]:
        """Ids of text that stands behind a prompt; what spells a special token was drawn as ordinary text (trap A13).

        Some tokenizers put a space in front of whatever they are given first, which here is the prompt.
        """
        apart = list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
        together = self._encoded(prompt_text + text)
        plain = apart == self._encoded(text)
        return together[len(prompt) :] if plain and together[: len(prompt)] == prompt else apart
