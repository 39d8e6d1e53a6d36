"""Questions to a completions endpoint: what is asked there, and what an answer holds.

For the stages that score and sample; `models.openai_server` carries them.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from lightning_dadpo.models.openai_server import GOES_ON, OpenAIServer, Question

__all__ = ["CompletionsServer", "Answer", "Question", "to_read", "GOES_ON"]


def to_read(text: str) -> Question:
    """Ask what the model gives to every token of a text.

    One token is drawn, since llama-cpp-python takes 0 for "as many as there is room for"; it is not looked at. At
    temperature 1, because there are servers that put the temperature into the log-probs that they return.
    """
    return {
        "prompt": text,
        "echo": True,
        "logprobs": 1,
        "max_tokens": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 0,
        # vLLM's own: log-probs by token id, and no beginning-of-sequence token beside the template's (trap A1)
        "extra_body": {"prompt_logprobs": 0, "add_special_tokens": False},
    }


class _Entry(BaseModel):
    logprob: float


class _LogProbs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(BaseModel):
    text: str
    finish_reason: str | None = None
    logprobs: _LogProbs | None = None
    prompt_logprobs: list[dict[str, _Entry] | None] | None = None


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int = 0


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


class Answer:
    """What a server said to one question.

    Attributes:
        text: what it returned. finish_reason: why it ended.
        tokens: pieces of text, and log_probs: what each got, in nats; None without `logprobs`.
        top_log_probs: the likeliest pieces at each place.
        by_id: vLLM's `prompt_logprobs`: for each token of the prompt its id with its log-prob; None for the first one.
        prompt_tokens: tokens of the prompt as the server counts them, where it says so.
        drawn_tokens: tokens that it drew, where it says so.
    """

    def __init__(self, body: _Completion) -> None:
        choice, usage, said = body.choices[0], body.usage, body.choices[0].logprobs
        self.text, self.finish_reason = choice.text, choice.finish_reason
        self.tokens = None if said is None else said.tokens
        self.log_probs = None if said is None else said.token_logprobs
        self.top_log_probs = None if said is None else said.top_logprobs
        self.by_id: list[dict[str, float]] | None = None
        if choice.prompt_logprobs is not None:
            self.by_id = [{name: one.logprob for name, one in (at or {}).items()} for at in choice.prompt_logprobs]
        self.prompt_tokens = None if usage is None else usage.prompt_tokens
        self.drawn_tokens = None if usage is None else usage.completion_tokens


class CompletionsServer(OpenAIServer[Answer]):
    """A model behind a completions endpoint."""

    answers_with = "completion"

    async def _send(self, client: Any, question: Question) -> Any:
        return await client.completions.with_raw_response.create(model=self.spec.model, **question)

    def _read(self, said: str) -> Answer:
        return Answer(self._parsed(said, _Completion))
