"""Questions to an OpenAI-compatible server: many at a time, asked again after a failure, silent about keys.

The package openai carries them: connections, time limits, waits between attempts. Which endpoint is asked and how its
answers are read is said by `models.completions` and `models.chat_completions`.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from lightning_dadpo.errors import ConfigError, DadpoError, DataError
from lightning_dadpo.models.server_spec import Endpoint

__all__ = ["OpenAIServer", "Question", "GOES_ON", "quoted"]

Task = TypeVar("Task")
Said = TypeVar("Said")
Body = TypeVar("Body", bound=BaseModel)
Question = Mapping[str, Any]
"""The body of a request, without the model's name."""

GOES_ON = "what was finished is kept; the same command goes on there"
LONGEST_QUOTE = 200


class OpenAIServer(ABC, Generic[Said]):
    """One model on one server.

    Args:
        spec: where it is, and how patiently it is asked.

    Raises:
        ConfigError: the package openai is not installed, or the key's variable is not set.
    """

    answers_with: str
    """What an answer is called in messages."""

    def __init__(self, spec: Endpoint) -> None:
        self.spec, self._openai, self._key = spec, _openai_module(), _key(spec)
        self._connected: tuple[asyncio.Runner, Any] | None = None
        self.place = f"server {spec.url}, model {spec.model!r}"

    @abstractmethod
    async def _send(self, client: Any, question: Question) -> Any:
        """The server's raw response to one question."""

    @abstractmethod
    def _read(self, said: str) -> Said:
        """An answer out of what the server said, which holds no key.

        Raises:
            DataError: it is something else; in one line.
        """

    def _declined(self, status: int, said: str) -> Said | None:
        """An answer where the server declined this one question; None where nothing more is to be asked of it."""
        return None

    def ask(
        self,
        tasks: Iterable[tuple[Task, Sequence[Question]]],
        tell: Callable[[Task, list[Said]], None],
        concurrency: int | None = None,
    ) -> None:
        """Ask the questions of every task and hand each task's answers over when they are all there.

        Tasks are taken up one by one as others finish, so that of many no more than `concurrency` are in memory; the
        questions of one task are asked one after another. The first error ends it all.

        Args:
            tasks: with the questions of each.
            tell: is given a task and its answers, in whatever order tasks finish.
            concurrency: tasks at a time, by default the spec's.

        Raises:
            ConfigError, DataError: the server cannot be reached, refuses, or answers something else; in one line.
        """
        with self.connected() as (runner, client):
            runner.run(self._ask_all(client, iter(tasks), tell, concurrency or self.spec.concurrency))

    @contextmanager
    def connected(self) -> Iterator[tuple[asyncio.Runner, Any]]:
        """Questions asked in this block share their connections, and the certificates that are read for them."""
        if self._connected is not None:
            yield self._connected
            return
        with asyncio.Runner() as runner:
            self._connected = runner, self._client()
            try:
                yield self._connected
            finally:
                runner.run(self._connected[1].close())
                self._connected = None

    def ask_one(self, question: Question) -> Said:
        """A single answer; see `ask`."""
        answers: list[Said] = []
        self.ask([(None, [question])], lambda _, found: answers.extend(found), 1)
        return answers[0]

    def _client(self) -> Any:
        client = self._openai.AsyncOpenAI(
            base_url=self.spec.url,
            api_key=self._key or "none",  # said, or a key of OPENAI_API_KEY would be sent to whatever server this is
            timeout=self.spec.timeout_seconds,
            max_retries=self.spec.attempts - 1,
        )
        # nor is another server's account its business: OPENAI_ORG_ID, OPENAI_PROJECT_ID, OPENAI_CUSTOM_HEADERS. The
        # package takes None for "read the variable", and adds what is in the last one to whatever it is given
        client.organization = client.project = None
        client._custom_headers = {}
        return client

    async def _ask_all(
        self, client: Any, tasks: Any, tell: Callable[[Any, list[Said]], None], concurrency: int
    ) -> None:
        async def work() -> None:
            for task, questions in tasks:
                tell(task, [await self._answer(client, question) for question in questions])

        workers = [asyncio.create_task(work()) for _ in range(concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _answer(self, client: Any, question: Question) -> Said:
        try:
            response = await self._send(client, question)
        except self._openai.OpenAIError as error:
            status = getattr(error, "status_code", None)
            declined = self._declined(status, quoted(self._without_key(error.response.text))) if status else None
            if declined is not None:
                return declined
            raise self._refused(error) from None  # the cause may hold the request with its key
        return self._read(self._without_key(response.text))

    def _parsed(self, said: str, body_type: type[Body]) -> Body:
        """The body of an answer.

        Raises:
            DataError: it is something else, or holds no choice.
        """
        try:
            body = body_type.model_validate_json(said)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            why = f"{f'`{field}`: ' if field else ''}{first['msg']}"
            raise DataError(
                f"{self.place}: its answer is no {self.answers_with} ({why}): {quoted(said)!r}; is the url its API's, "
                "mostly ending in /v1?"
            ) from None
        if not getattr(body, "choices", None):
            raise DataError(f"{self.place}: its answer holds no choice: {quoted(said)!r}")
        return body

    def _without_key(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, "[key]")

    def _refused(self, error: Any) -> DadpoError:
        """The error in one line, without anything that could hold the key."""
        times = f"{self.spec.attempts} times" if self.spec.attempts > 1 else "once"
        if isinstance(error, self._openai.APITimeoutError):
            return DataError(
                f"{self.place}: no answer in {self.spec.timeout_seconds:g} s, asked {times}; give it more "
                f"(server.timeout_seconds) or ask less at a time (server.concurrency); {GOES_ON}"
            )
        if isinstance(error, self._openai.APIStatusError):
            return self._refused_with(error.status_code, quoted(self._without_key(error.response.text)), times)
        cause = quoted(self._without_key(str(error.__cause__ or error)))
        return DataError(f"{self.place}: cannot be reached, tried {times} ({cause}); is it running? {GOES_ON}")

    def _refused_with(self, status: int, said: str, times: str) -> DadpoError:
        if status in (401, 403):  # whatever it says is not repeated: it may be the key
            name = self.spec.api_key_variable
            held = f"the key in {name} was refused" if name else "it wants a key; name its variable: api_key_variable"
            return ConfigError(f"{self.place}: {status}, {held}")
        hint = ""
        if "logits_all" in said:
            hint = "; start llama-cpp-python with --logits_all true"
        elif status == 404:
            hint = "; is server.model the name that it serves, and the url its API's, mostly ending in /v1?"
        elif status in (408, 409, 429) or status >= 500:
            hint = f", asked {times}; {GOES_ON}"
        return DataError(f"{self.place}: answered {status}: {said}{hint}")


def _openai_module() -> Any:
    try:
        return importlib.import_module("openai")
    except ImportError as error:
        raise ConfigError(
            f"server: cannot import the package openai ({error}); pip install 'lightning-dadpo[server]'"
        ) from error


def _key(spec: Endpoint) -> str | None:
    if spec.api_key_variable is None:
        return None
    key = os.environ.get(spec.api_key_variable, "").strip()
    if not key:
        raise ConfigError(
            f"server.api_key_variable {spec.api_key_variable}: no such environment variable, or an empty one"
        )
    return key


def quoted(text: str) -> str:
    """One line of a text, for a message."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]} ..."
