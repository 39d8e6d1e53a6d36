"""An HTTP server on this machine's loopback, whose answers a class below it decides."""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

__all__ = ["LoopbackServer"]


class LoopbackServer(ABC):
    """Answers POST requests with JSON bodies, each in a thread of its own, until the block is left.

    Attributes:
        asked: bodies of all requests, failed ones too.
        lock: for whatever threads share.
    """

    def __init__(self, port: int = 0) -> None:
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @abstractmethod
    def respond(
        self, path: str, body: dict[str, Any], headers: Mapping[str, str], number: int
    ) -> tuple[int, str, Mapping[str, str]]:
        """Status, content and further headers for the request of this number, from 1; headers' names are lower case."""

    @property
    def url(self) -> str:
        """Where its API begins."""
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> Self:
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
                length = int(self.headers["Content-Length"])
                raw = self.rfile.read(length)
                if len(raw) < length:  # who asked has given up in the middle of it
                    self.close_connection = True
                    return
                body, headers = json.loads(raw), {name.lower(): value for name, value in self.headers.items()}
                with server.lock:
                    server.asked.append(body)
                    number = len(server.asked)
                status, content, further = server.respond(self.path, body, headers, number)
                sent = content.encode()
                self.send_response(status)
                kind = "text/html" if content.startswith("<") else "application/json"
                for name, value in {"Content-Type": kind, "Content-Length": str(len(sent)), **further}.items():
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
