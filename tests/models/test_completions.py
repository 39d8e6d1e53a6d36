"""The client of completions servers: patient within bounds, strict about answers, silent about keys."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.errors import ConfigError, DadpoError, DataError
from lightning_dadpo.models.completions import Answer, CompletionsServer, to_read
from lightning_dadpo.models.server_spec import ServerSpec, refuse_beside_a_server
from lightning_dadpo.models.spec import ModelSpec
from tests.servers.fake import FakeServer

KEY = "sk-planted/0123456789"
QUESTION = to_read("<|im_start|>user\nhello")


@pytest.fixture
def server(tiny_folder: Path) -> Iterator[FakeServer]:
    with FakeServer(tiny_folder) as server:
        yield server


def spec(server: FakeServer, **changes: Any) -> ServerSpec:
    settings: dict[str, Any] = {"concurrency": 3, "timeout_seconds": 20.0, "attempts": 4}
    return ServerSpec(server.url, "tiny", ModelSpec("tiny"), **(settings | changes))


def ask(server: FakeServer, **changes: Any) -> Answer:
    return CompletionsServer(spec(server, **changes)).ask_one(QUESTION)


def refusal(server: FakeServer, **changes: Any) -> DadpoError:
    with pytest.raises(DadpoError) as caught:
        ask(server, **changes)
    assert "\n" not in str(caught.value)
    return caught.value


def test_an_answer_holds_what_was_said(server: FakeServer) -> None:
    answer = ask(server)
    assert answer.prompt_tokens == 11
    assert answer.drawn_tokens == 1
    assert answer.tokens is not None
    assert "".join(answer.tokens).startswith("user\nhello")
    assert answer.by_id is None
    assert server.asked[0] == {
        "model": "tiny", "prompt": "<|im_start|>user\nhello", "echo": True, "logprobs": 1, "max_tokens": 1,
        "temperature": 1.0, "top_p": 1.0, "seed": 0, "prompt_logprobs": 0, "add_special_tokens": False,
    }  # fmt: skip


@pytest.mark.parametrize("statuses", [[429], [500, 503, 408], [429, None]])
def test_what_passes_is_waited_for(server: FakeServer, statuses: list[int | None]) -> None:
    server.statuses = list(statuses)
    assert ask(server).prompt_tokens == 11
    assert len(server.asked) == len([one for one in statuses if one]) + 1


def test_a_late_answer_is_asked_for_again(server: FakeServer) -> None:
    server.stalls = 1
    assert ask(server, timeout_seconds=0.5).prompt_tokens == 11
    assert len(server.asked) == 2


def test_patience_ends_after_so_many_attempts(server: FakeServer) -> None:
    server.always = 503
    assert "answered 503" in str(refusal(server))
    assert len(server.asked) == 4
    assert "asked 4 times; what was finished is kept" in str(refusal(server))
    server.always = None
    server.stalls = 9
    late = refusal(server, timeout_seconds=0.2, attempts=1)
    assert "no answer in 0.2 s, asked once" in str(late)
    assert "server.timeout_seconds" in str(late)


@pytest.mark.parametrize(
    ("status", "said"), [(404, "is server.model the name that it serves"), (400, "answered 400"), (422, "answered 422")]
)
def test_what_will_not_pass_is_not_asked_again(server: FakeServer, status: int, said: str) -> None:
    server.always = status
    assert said in str(refusal(server))
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<html><body>Welcome</body></html>", "no completion .*<html>"),
        ("", "no completion"),
        ('{"choices": []}', "holds no choice"),
        ('{"choices": [{"text": 3}]}', "`choices.0.text`"),
        ('{"object": "list", "data": []}', "`choices`: Field required.*ending in /v1"),
    ],
)
def test_a_200_that_is_no_completion(server: FakeServer, body: str, said: str) -> None:
    server.body = body
    error = refusal(server)
    assert isinstance(error, DataError)
    assert error.args[0].startswith(f"server {server.url}, model 'tiny': ")
    with pytest.raises(DataError, match=said):
        raise error


def test_a_dead_port(server: FakeServer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(DataError, match=r"cannot be reached, tried once .*is it running\?"):
            CompletionsServer(replace(spec(server, attempts=1), url=url)).ask_one(QUESTION)


def test_no_more_than_so_many_at_a_time_and_tasks_are_taken_up_one_by_one(server: FakeServer) -> None:
    taken: list[int] = []
    told: list[int] = []

    def tasks() -> Iterator[tuple[int, list[Any]]]:
        for number in range(12):
            taken.append(number)
            assert len(taken) - len(told) <= 3
            yield number, [QUESTION, QUESTION]

    def tell(number: int, answers: list[Answer]) -> None:
        assert len(answers) == 2
        told.append(number)

    CompletionsServer(spec(server)).ask(tasks(), tell)
    assert sorted(told) == list(range(12))
    assert len(server.asked) == 24
    assert 1 < server.most <= 3


def test_the_first_error_ends_it(server: FakeServer) -> None:
    server.after = lambda number: setattr(server, "always", 400 if number >= 5 else None)
    told: list[int] = []
    with pytest.raises(DataError, match="answered 400"):
        CompletionsServer(spec(server)).ask(
            ((number, [QUESTION]) for number in range(50)), lambda number, _: told.append(number)
        )
    assert len(told) <= 5
    assert len(server.asked) <= 5 + 3


@pytest.mark.parametrize("status", [401, 403, 400, 404, 500])
def test_a_key_is_in_nothing_that_is_said(
    server: FakeServer, status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("MY_SERVER_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
    caplog.set_level(logging.DEBUG)
    server.key, server.always = "something else", status
    error = refusal(server, api_key_variable="MY_SERVER_KEY", attempts=1)
    printed = capfd.readouterr()
    for text in (str(error), repr(error), repr(error.__cause__), caplog.text, printed.out, printed.err):
        assert KEY not in text
        assert "sk-another" not in text
    assert error.__suppress_context__
    if status in (401, 403):
        assert isinstance(error, ConfigError)
        assert "the key in MY_SERVER_KEY was refused" in str(error)
    else:
        assert "[key]" in str(error)  # the server did repeat it


def test_the_key_is_sent_and_no_other_one(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
    server.key = "none"
    assert ask(server).prompt_tokens == 11
    server.key = KEY
    assert "it wants a key; name its variable: api_key_variable" in str(refusal(server))
    monkeypatch.setenv("MY_SERVER_KEY", KEY)
    assert ask(server, api_key_variable="MY_SERVER_KEY").prompt_tokens == 11
    monkeypatch.setenv("MY_SERVER_KEY", " ")
    assert "MY_SERVER_KEY: no such environment variable, or an empty one" in str(
        refusal(server, api_key_variable="MY_SERVER_KEY")
    )


def test_what_the_environment_holds_for_other_servers_is_not_sent(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: as the package has it by itself, all of these arrive, and a custom Authorization in the key's place."""
    ask(server)
    held = {"ORG_ID": "foreign-org", "PROJECT_ID": "foreign-project", "ADMIN_KEY": "foreign-admin"}
    held["CUSTOM_HEADERS"] = "X-Gateway-Key: foreign-key\nauthorization: Bearer foreign-bearer"
    for name, value in held.items():
        monkeypatch.setenv(f"OPENAI_{name}", value)
    monkeypatch.setenv("MY_SERVER_KEY", KEY)
    ask(server, api_key_variable="MY_SERVER_KEY")
    usual, sent = server.sent
    assert sent.keys() == usual.keys()
    assert sent["authorization"] == f"Bearer {KEY}"
    assert "foreign" not in str(sent)


def test_a_missing_package_is_one_line(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    error = refusal(server)
    assert "pip install 'lightning-dadpo[server]'" in str(error)
    assert isinstance(error, ConfigError)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "127.0.0.1:8000"}, "server.url '127.0.0.1:8000': expected http://HOST:PORT/v1"),
        ({"url": "ftp://x/v1"}, "expected http://"),
        ({"url": f"http://me:{KEY}@x/v1"}, "expected no user, password or query"),
        ({"url": f"http://x/v1?key={KEY}"}, "expected no user, password or query"),
        ({"api_key_variable": KEY}, "expected the NAME of an environment variable"),
        ({"model": ""}, "server.model ''"),
        ({"concurrency": 0}, "server.concurrency 0: expected at least 1"),
        ({"attempts": 0}, "server.attempts 0: expected at least 1"),
        ({"timeout_seconds": 0.0}, "server.timeout_seconds 0.0: expected a number > 0"),
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused_without_repeating_a_key(changes: dict[str, Any], said: str) -> None:
    good = ServerSpec("http://x/v1", "m", ModelSpec("t"))
    with pytest.raises(ConfigError) as caught:
        replace(good, **changes)
    assert said in str(caught.value)
    assert KEY not in str(caught.value)


def test_what_a_server_cannot_obey_is_named() -> None:
    refuse_beside_a_server(model=None, precision=None)
    with pytest.raises(ConfigError, match="model, precision beside server"):
        refuse_beside_a_server(model=1, precision="32-true", backend=None)
