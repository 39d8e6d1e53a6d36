"""Which model on which server, said in plain values that a YAML and a command line can hold."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lightning_dadpo.data.rows import content_digest
from lightning_dadpo.data.tokenizers import PROBES
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.spec import ModelSpec

__all__ = ["Endpoint", "ServerSpec", "ChatServerSpec", "refuse_beside_a_server", "tokenizer_digest"]


@dataclass(frozen=True)
class ServerSpec:
    """A model behind an OpenAI-compatible completions server (vLLM, llama-cpp-python and others).

    Attributes:
        url: where its API begins, for example http://127.0.0.1:8000/v1. It may change between two runs; the model and
            its numbers may not.
        model: the name that the server knows it by.
        tokenizer: the served model's own tokenizer and chat template; no weights are read.
        concurrency: requests at a time.
        timeout_seconds: how long one request may take.
        attempts: how often one is made, with growing waits, before the stage gives up.
        api_key_variable: name of the environment variable that holds the server's key, where it wants one.
    """

    url: str
    model: str
    tokenizer: ModelSpec
    concurrency: int = 8
    timeout_seconds: float = 120.0
    attempts: int = 6
    api_key_variable: str | None = None

    def __post_init__(self) -> None:
        _check(self)

    def served(self) -> str:
        """How manifests name the model; the url does not enter."""
        return f"{self.model} on a server"


@dataclass(frozen=True)
class ChatServerSpec:
    """A model behind an OpenAI-compatible chat endpoint: a company's, or vLLM's, llama-cpp-python's and others'.

    Attributes:
        url: where its API begins, for example https://api.openai.com/v1.
        model: the name that the server knows it by.
        concurrency: requests at a time.
        timeout_seconds: how long one request may take.
        attempts: how often one is made, with growing waits, before it all ends.
        api_key_variable: name of the environment variable that holds the server's key, where it wants one.
    """

    url: str
    model: str
    concurrency: int = 8
    timeout_seconds: float = 120.0
    attempts: int = 6
    api_key_variable: str | None = None

    def __post_init__(self) -> None:
        _check(self)


Endpoint = ServerSpec | ChatServerSpec


def _check(spec: Endpoint) -> None:
    parts = urlsplit(spec.url)
    if "@" in spec.url or parts.query or parts.fragment:  # what stands there may be a key: it is not repeated
        raise ConfigError(
            "server.url: expected no user, password or query in it; name a variable with api_key_variable"
        )
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"server.url {spec.url!r}: expected http://HOST:PORT/v1 or https://...")
    if not spec.model:
        raise ConfigError("server.model '': expected the name that the server knows the model by")
    if spec.concurrency < 1:
        raise ConfigError(f"server.concurrency {spec.concurrency}: expected at least 1")
    if spec.attempts < 1:
        raise ConfigError(f"server.attempts {spec.attempts}: expected at least 1")
    if not (math.isfinite(spec.timeout_seconds) and spec.timeout_seconds > 0):
        raise ConfigError(f"server.timeout_seconds {spec.timeout_seconds}: expected a number > 0")
    if spec.api_key_variable is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", spec.api_key_variable):
        raise ConfigError(  # somebody may have put the key itself there: it is not repeated
            "server.api_key_variable: expected the NAME of an environment variable, in capitals, not a key"
        )


def refuse_beside_a_server(**options: Any) -> None:
    """Refuse what only a model that is loaded here can obey.

    Raises:
        ConfigError: one of the options is set; the message names it.
    """
    if found := [name for name, value in options.items() if value is not None]:
        raise ConfigError(f"{', '.join(found)} beside server: a server runs its own model, as it was started")


def tokenizer_digest(tokenizer: Any) -> str:
    """Changes with what a tokenizer does and with its template; weights that lie beside it do not enter."""
    read = [tokenizer.encode(text, add_special_tokens=False) for text in PROBES]
    return content_digest(tokenizer.get_vocab(), tokenizer.chat_template, read)
