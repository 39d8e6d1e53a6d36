"""Responses from a server: what is asked, and how its text becomes ids again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.cli.main import main
from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.chat import render_prompt
from lightning_dadpo.data.prompts import PromptFile
from lightning_dadpo.data.rows import Message, ResponseRow, read_rows
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.models.completions import CompletionsServer
from lightning_dadpo.models.server_spec import ServerSpec
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling.base import SamplerSettings, prompt_seed
from lightning_dadpo.sampling.server_sampler import ServerSampler
from lightning_dadpo.sampling.stage import sample
from tests.servers.fake import FakeServer
from tests.tiny import END_OF_TURN, VOCABULARY

SETTINGS = SamplerSettings(temperature=0.8, top_p=0.9, max_new_tokens=8, seed=3)


@pytest.fixture
def server(tiny_folder: Path) -> Iterator[FakeServer]:
    """Writes ASCII, and ends its turn now and then."""
    with FakeServer(tiny_folder) as server:
        server.bias = torch.full((VOCABULARY,), -1e9, dtype=torch.float64)
        for token in range(3, VOCABULARY):
            if server.tokenizer.decode([token]).isascii() and server.tokenizer.decode([token]).isprintable():
                server.bias[token] = 0.0
        server.bias[END_OF_TURN] = 2.5
        yield server


def spec(server: FakeServer, **changes: Any) -> ServerSpec:
    settings: dict[str, Any] = {"concurrency": 3, "attempts": 2, "timeout_seconds": 20.0}
    return ServerSpec(server.url, "tiny", ModelSpec(server.tokenizer.name_or_path), **(settings | changes))


def sampler(server: FakeServer) -> ServerSampler:
    return ServerSampler(spec(server), server.tokenizer, SETTINGS)


def prompt(server: FakeServer, text: str) -> list[int]:
    return render_prompt(server.tokenizer, [Message("user", text)])


def test_A1_A9_everything_is_said_and_the_prompt_is_the_rendered_text(server: FakeServer) -> None:
    sampler(server).sample([prompt(server, "hello")], ["a"])
    assert server.asked == [{
        "model": "tiny",
        "prompt": "<|im_start|>system\nYou answer in bytes.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\n",
        "max_tokens": 8, "temperature": 0.8, "top_p": 0.9, "seed": prompt_seed(3, "a") >> 32, "n": 1,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0,
        "repetition_penalty": 1.0, "min_tokens": 0, "add_special_tokens": False,
    }]  # fmt: skip
    assert 0 <= server.asked[0]["seed"] < 2**31


def test_A7_the_end_of_turn_is_there_when_the_server_stopped_and_only_then(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    real = CompletionsServer._answer

    async def noting(self: Any, client: Any, question: Any) -> Any:
        answer = await real(self, client, question)
        texts.append(answer.text)
        return answer

    monkeypatch.setattr(CompletionsServer, "_answer", noting)
    keys = [f"key {number}" for number in range(12)]
    counted: list[int] = []
    drawn = sampler(server).sample([prompt(server, key) for key in keys], keys, counted.append)
    assert {one.finish_reason for one in drawn} == {"stop", "length"}
    for one in drawn:
        assert (one.token_ids[-1] == END_OF_TURN) == (one.finish_reason == "stop")
        assert END_OF_TURN not in one.token_ids[:-1]
        assert one.log_prob is None
        assert len(one.token_ids) == 8 or one.finish_reason == "stop"
    assert sorted(server.tokenizer.decode(one.token_ids, skip_special_tokens=True) for one in drawn) == sorted(texts)
    assert sum(counted) == 12
    assert 1 < server.most <= 3


def test_a_response_is_seeded_by_its_key_alone(server: FakeServer) -> None:
    ids = prompt(server, "hello")
    one, other = sampler(server).sample([ids, ids], ["a", "b"])
    assert one != other
    assert sampler(server).sample([ids], ["b"]) == [other]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ab", "ab"),
        ("\n\nab ", "\n\nab "),
        ("é🙂", "é🙂"),
        ("a<|im_end|>b", "a<|im_end|>b"),  # written out in ordinary tokens (trap A13)
        ("ab\N{REPLACEMENT CHARACTER}", "ab"),  # the cap fell inside a character
    ],
)
def test_text_becomes_the_ids_that_spell_it(server: FakeServer, text: str, expected: str) -> None:
    server.body = json.dumps({"choices": [{"text": text, "finish_reason": "length"}]})
    (drawn,) = sampler(server).sample([prompt(server, "hello")], ["a"])
    assert server.tokenizer.decode(drawn.token_ids) == expected
    assert len(drawn.token_ids) == len(expected.encode())  # bytes: no special token among them


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"text": "a", "finish_reason": "content_filter"}, "ended the response to prompt 'a' with 'content_filter'"),
        ({"text": "a", "finish_reason": None}, "with None"),
        ({"text": "", "finish_reason": "length"}, "with 'length' behind ''"),
    ],
)
def test_an_answer_that_ended_otherwise_is_refused(server: FakeServer, choice: dict[str, Any], said: str) -> None:
    server.body = json.dumps({"choices": [choice]})
    with pytest.raises(DataError, match=said):
        sampler(server).sample([prompt(server, "hello")], ["a"])


def test_an_empty_answer_that_stopped_is_an_end_of_turn(server: FakeServer) -> None:
    server.body = json.dumps({"choices": [{"text": "", "finish_reason": "stop"}]})
    (drawn,) = sampler(server).sample([prompt(server, "hello")], ["a"])
    assert drawn.token_ids == [END_OF_TURN]


def test_A1_another_number_of_prompt_tokens_is_refused(server: FakeServer) -> None:
    server.adds_begin = True
    ids = prompt(server, "hello")
    with pytest.raises(DataError, match=f"counts {len(ids) + 1} tokens in prompt 'a' where its tokenizer counts"):
        sampler(server).sample([ids], ["a"])


def test_A13_a_prompt_that_spells_a_special_token_is_not_sent(server: FakeServer) -> None:
    with pytest.raises(DataError, match="prompt 'b': its text is read as other tokens"):
        sampler(server).sample([prompt(server, "hello"), prompt(server, "what is <|im_end|>?")], ["a", "b"])
    assert server.asked == []


def write_prompts(path: Path, count: int = 6) -> dict[str, PromptFile]:
    rows = [{"prompt_id": f"p{n}", "messages": [{"role": "user", "content": f"about {n}"}]} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {"train": PromptFile(str(path))}


def test_the_stage_samples_from_a_server_and_goes_on_after_a_failure(server: FakeServer, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    whole = sample(None, prompts, str(tmp_path / "whole"), SETTINGS, batch_size=2, server=spec(server))
    rows = list(read_rows(whole / "rows.jsonl", ResponseRow))
    assert len(rows) == 6
    assert all(row.log_prob is None for row in rows)
    assert all(row.text == server.tokenizer.decode(row.token_ids, skip_special_tokens=True) for row in rows)
    manifest = read_manifest(whole, "responses")
    assert manifest.made_from["model"] == "tiny on a server"
    assert manifest.made_from["backend"] == "completions server"
    asked = len(server.asked)
    server.after = lambda number: setattr(server, "always", 400 if number > asked + 3 else None)
    with pytest.raises(DataError, match="answered 400"):
        sample(None, prompts, str(tmp_path / "killed"), SETTINGS, batch_size=2, server=spec(server))
    server.after, server.always, server.asked = lambda number: None, None, []
    resumed = sample(None, prompts, str(tmp_path / "killed"), SETTINGS, batch_size=2, server=spec(server))
    assert list(read_rows(resumed / "rows.jsonl", ResponseRow)) == rows
    assert len(server.asked) == 4
    assert sample(None, prompts, str(tmp_path / "killed"), SETTINGS, batch_size=2, server=spec(server)) == resumed
    assert len(server.asked) == 4


def test_the_command_takes_a_server_in_place_of_a_model(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 2)
    file = tmp_path / "sample.yaml"
    file.write_text(
        json.dumps({
            "server": {"url": server.url, "model": "tiny", "tokenizer": {"path": server.tokenizer.name_or_path}},
            "prompts": {"train": {"path": prompts["train"].path}},
            "settings": {"max_new_tokens": 4},
            "out": str(tmp_path / "out"),
        }),
        "utf-8",
    )  # fmt: skip
    assert main(["sample", "-c", str(file)]) == 0
    assert len(list(read_rows(tmp_path / "out" / "rows.jsonl", ResponseRow))) == 2
    assert main(["sample", "-c", str(file), "--model.path", server.tokenizer.name_or_path, "--out", "x"]) == 2
    assert "model beside server" in capsys.readouterr().err


def test_one_of_the_two_is_needed(server: FakeServer, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 1)
    with pytest.raises(ConfigError, match=r"expected a model .* or a server"):
        sample(None, prompts, str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="precision, backend beside server"):
        sample(None, prompts, str(tmp_path / "out"), precision="32-true", backend="vllm", server=spec(server))
