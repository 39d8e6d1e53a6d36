"""Questions to a chat endpoint: messages go in, one message comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from lightning_dadpo.models.openai_server import OpenAIServer, Question

__all__ = ["ChatAnswer", "ChatServer"]


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _ChatCompletion(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


DECLINES = (400, 413, 422)
"""Statuses of a question that cannot be answered as it is: too long for the model, or against a server's rules."""


@dataclass(frozen=True)
class ChatAnswer:
    """What a server said to one question.

    Attributes:
        text: the message; empty where there is none, as when a model refuses.
        prompt_tokens: tokens that it read, and drawn_tokens: that it wrote, thoughts included; None where it says none.
        declined: why it did not answer this one question, where it did not.
    """

    text: str
    prompt_tokens: int | None
    drawn_tokens: int | None
    declined: str | None = None


class ChatServer(OpenAIServer[ChatAnswer]):
    """A model behind a chat endpoint; a question is the body of its request, without the model's name."""

    answers_with = "chat completion"

    async def _send(self, client: Any, question: Question) -> Any:
        # all but the messages as extra_body: nothing that a config says can become a header, and no name is left out
        rest = {name: value for name, value in question.items() if name != "messages"}
        return await client.chat.completions.with_raw_response.create(
            model=self.spec.model, messages=question["messages"], extra_body=rest
        )

    def _declined(self, status: int, said: str) -> ChatAnswer | None:
        return ChatAnswer("", 0, 0, f"answered {status}: {said}") if status in DECLINES else None

    def _read(self, said: str) -> ChatAnswer:
        body = self._parsed(said, _ChatCompletion)
        usage = body.usage
        return ChatAnswer(
            body.choices[0].message.content or "",
            None if usage is None else usage.prompt_tokens,
            None if usage is None else usage.completion_tokens,
        )
