"""A chat endpoint on this machine's loopback, whose replies and faults a test decides."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

__all__ = ["FakeChatServer"]


class FakeChatServer:
    """Serves until the block is left.

    Attributes:
        reply: what the model says, given the request.
        statuses: answered to the next requests, one each, instead of a reply. always: to every request.
        declines: which requests are answered with status 400.
        body: sent with status 200 instead of an answer.
        usage: tokens in and out that an answer counts; None for an answer without.
        key: what it wants; an error repeats what it was shown.
        asked: bodies of all requests, failed ones too.
        after: called with the number of each request, from 1, before it is answered.
    """

    def __init__(self, reply: Callable[[dict[str, Any]], str | None]) -> None:
        self.reply = reply
        self.statuses: list[int] = []
        self.always: int | None = None
        self.declines: Callable[[dict[str, Any]], bool] = lambda request: False
        self.body: str | None = None
        self.usage: tuple[int, int] | None = (100, 2)
        self.key: str | None = None
        self.asked: list[dict[str, Any]] = []
        self.after: Callable[[int], None] = lambda number: None
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        """Where its API begins."""
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> FakeChatServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                status, content = server._respond(self.path, json.loads(raw), self.headers.get("Authorization", ""))
                sent = content.encode()
                self.send_response(status)
                headers = {"Content-Type": "application/json", "Content-Length": str(len(sent)), "retry-after-ms": "1"}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *arguments: Any) -> None:
                pass

            def handle(self) -> None:
                try:
                    super().handle()
                except (BrokenPipeError, ConnectionResetError):  # who asked has given up, or was killed
                    self.close_connection = True

        return Handler

    def _respond(self, path: str, request: dict[str, Any], shown: str) -> tuple[int, str]:
        with self._lock:
            self.asked.append(request)
            number = len(self.asked)
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
        with self._lock:
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
