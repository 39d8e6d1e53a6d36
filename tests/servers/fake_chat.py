"""A chat endpoint on this machine's loopback, whose replies and faults a test decides."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.servers.loopback import LoopbackServer

__all__ = ["FakeChatServer"]


class FakeChatServer(LoopbackServer):
    """Serves until the block is left.

    Attributes:
        reply: what the model says, given the request.
        statuses: answered to the next requests, one each, instead of a reply. always: to every request.
        declines: which requests are answered with status 400.
        body: sent with status 200 instead of an answer.
        usage: tokens in and out that an answer counts; None for an answer without.
        key: what it wants; an error repeats what it was shown.
        after: called with the number of each request, from 1, before it is answered.
    """

    def __init__(self, reply: Callable[[dict[str, Any]], str | None]) -> None:
        super().__init__()
        self.reply = reply
        self.statuses: list[int] = []
        self.always: int | None = None
        self.declines: Callable[[dict[str, Any]], bool] = lambda request: False
        self.body: str | None = None
        self.usage: tuple[int, int] | None = (100, 2)
        self.key: str | None = None
        self.after: Callable[[int], None] = lambda number: None

    def respond(
        self, path: str, body: dict[str, Any], headers: Mapping[str, str], number: int
    ) -> tuple[int, str, Mapping[str, str]]:
        """See `LoopbackServer.respond`."""
        status, content = self._respond(path, body, headers.get("authorization", ""), number)
        return status, content, {"retry-after-ms": "1"}

    def _respond(self, path: str, request: dict[str, Any], shown: str, number: int) -> tuple[int, str]:
        with self.lock:
            status = self.statuses.pop(0) if self.statuses else self.always
        self.after(number)
        if self.key is not None and shown != f"Bearer {self.key}":
            status = 401
        if status is None and self.declines(request):
            status = 400
        if path != "/v1/chat/completions":
            status = 404
        if status is not None:
            return status, json.dumps({"error": {"message": f"no, not for {shown}"}})
        if self.body is not None:
            return 200, self.body
        with self.lock:
            content = self.reply(request)
        answer: dict[str, Any] = {
            "id": "x", "object": "chat.completion", "created": 0, "model": request["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}],
        }  # fmt: skip
        if self.usage is not None:
            tokens_in, tokens_out = self.usage
            answer["usage"] = {
                "prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out
            }  # fmt: skip
        return 200, json.dumps(answer)
