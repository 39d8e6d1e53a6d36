"""A teacher on a server: sums held to float64 loops over ids written out by hand, and everything that must fail."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_dadpo.cli.main import main
from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.chat import render_prompt, render_response
from lightning_dadpo.data.rows import Message, PairRow, ScoreRow, content_digest, read_rows
from lightning_dadpo.errors import AuditError, ConfigError, DadpoError, DataError
from lightning_dadpo.models.server_spec import ServerSpec
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.scoring.cached import CachedScorer
from lightning_dadpo.scoring.remote import AnsweredRow
from lightning_dadpo.scoring.stage import score
from tests.other import by_hand, other_model
from tests.scoring.example import write_artifact
from tests.servers.fake import FakeServer, next_log_probs
from tests.tiny import tiny_tokenizer

KEY = "sk-planted-0123456789"
PAIRS = 5
PROBE = 2 + 4 + 4
"""Requests before the first pair: the fixed text twice, four places, the tokens offered there."""
WORDS = ["the answer stands here", "Zürich, 日本 🙂", "no", "it stands\n\nhere often", "a user, the assistant answers"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return other_model(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "student"
    tiny_tokenizer(folder)
    return folder


@pytest.fixture
def server(teacher: Path) -> Iterator[FakeServer]:
    with FakeServer(teacher) as server:
        yield server


def make_pair(tokenizer: Any, number: int, chosen: str, rejected: str, cut: bool = False) -> PairRow:
    messages = [Message("user", f"question {number}")]
    prompt = render_prompt(tokenizer, messages)
    sides = [render_response(tokenizer, messages, text, not cut) for text in (chosen, rejected)]
    return PairRow(
        content_digest(prompt, *sides), f"p-{number}", "train", messages, prompt, sides[0], chosen,
        "length" if cut else "stop", sides[1], rejected, "length" if cut else "stop",
    )  # fmt: skip


@pytest.fixture
def pairs(student: Path, tmp_path: Path) -> Path:
    tokenizer = tiny_tokenizer(student)
    rows = [
        make_pair(tokenizer, number, f"{WORDS[number]} {number}", WORDS[number - 1], cut=number % 3 == 0)
        for number in range(PAIRS)
    ]
    return write_artifact(tmp_path / "pairs", "pairs", rows)


def rows_of(pairs: Path) -> list[PairRow]:
    return list(read_rows(pairs / "rows.jsonl", PairRow))


def scored(server: FakeServer, student: Path, pairs: Path, out: Path, **changes: Any) -> Path:
    folder = server.tokenizer.name_or_path
    settings: dict[str, Any] = {"concurrency": 3, "attempts": 3, "timeout_seconds": 20.0}
    spec = ServerSpec(server.url, "tiny", ModelSpec(folder), **(settings | changes))
    return score(None, str(pairs), str(out), tokenizer=ModelSpec(str(student)), server=spec)


def refusal(kind: type[DadpoError], *arguments: Any, **changes: Any) -> str:
    with pytest.raises(kind) as caught:
        scored(*arguments, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def expected(server: FakeServer, pair: PairRow, text: str, finish: str) -> tuple[float, int]:
    """Sum and count, from ids that no template and no code of the package has made."""
    prompt, response = by_hand(server.tokenizer, pair.messages[0].content, text, finish == "stop")
    log_probs = next_log_probs(server.model, prompt + response)
    terms = [float(log_probs[len(prompt) - 1 + place, token]) for place, token in enumerate(response)]
    return sum(terms), len(terms)


def check(server: FakeServer, pairs: Path, folder: Path, left_out: frozenset[str] = frozenset()) -> None:
    found = {row.pair_id: row for row in read_rows(folder / "rows.jsonl", ScoreRow)}
    wanted = [pair for pair in rows_of(pairs) if pair.pair_id not in left_out]
    assert list(found) == [pair.pair_id for pair in wanted]
    for pair in wanted:
        row = found[pair.pair_id]
        total, tokens = expected(server, pair, pair.chosen_text, pair.chosen_finish_reason)
        assert row.chosen_log_prob == pytest.approx(total, abs=1e-4)
        assert row.chosen_num_tokens == tokens
        total, tokens = expected(server, pair, pair.rejected_text, pair.rejected_finish_reason)
        assert row.rejected_log_prob == pytest.approx(total, abs=1e-4)
        assert row.rejected_num_tokens == tokens


@pytest.mark.parametrize("kind", ["llama", "vllm"])
def test_A5_A7_A10_every_sum_is_the_float64_one_of_the_teachers_own_ids(
    kind: Any, teacher: Path, student: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(teacher, kind) as server:
        folder = scored(server, student, pairs, tmp_path / "out")
        check(server, pairs, folder)
        assert server.most <= 3
    manifest = read_manifest(folder, "scores")
    assert manifest.counts == {"pairs": PAIRS, "left_out": 0}
    assert manifest.results["left_out"] == {}
    assert manifest.results["audit"]["rows"] == PAIRS
    assert manifest.results["changed_ids"] == {"pairs": 0, "chosen": 0, "rejected": 0}
    assert manifest.made_from["model"] == "tiny on a server"
    assert manifest.made_from["read"] == "text"
    assert "5 pairs asked again alone: agree; 5 pairs, left out 0" in capsys.readouterr().out
    total = CachedScorer(folder).look_up([rows_of(pairs)[0].pair_id]).chosen.total
    assert total.dtype == torch.float32


def test_without_a_usage_the_drawn_token_is_told_apart(
    server: FakeServer, student: Path, pairs: Path, tmp_path: Path
) -> None:
    server.usage = False
    folder = scored(server, student, pairs, tmp_path / "out")
    left_out = CachedScorer(folder).left_out
    assert len(left_out) <= 2  # where the token drawn could be the last one sent
    check(server, pairs, folder, frozenset(left_out))


def test_a_finished_artefact_asks_nothing(server: FakeServer, student: Path, pairs: Path, tmp_path: Path) -> None:
    folder = scored(server, student, pairs, tmp_path / "out")
    asked = len(server.asked)
    assert scored(server, student, pairs, tmp_path / "out") == folder
    assert len(server.asked) == asked


def test_C3_a_killed_run_asks_for_what_is_missing_also_elsewhere(
    server: FakeServer, teacher: Path, student: Path, pairs: Path, tmp_path: Path
) -> None:
    def dies(number: int) -> None:
        if number > PROBE + 4:
            server.always = 400

    server.after = dies
    assert "answered 400" in refusal(DataError, server, student, pairs, tmp_path / "out", concurrency=1)
    assert not (tmp_path / "out").exists()
    shard = tmp_path / "out.partial" / "shards" / "0.jsonl"
    kept = [row.pair_id for row in read_rows(shard, AnsweredRow)]
    assert kept == [pair.pair_id for pair in rows_of(pairs)[:2]]
    with FakeServer(teacher) as moved:  # the same model on another port
        check(moved, pairs, scored(moved, student, pairs, tmp_path / "out"))
        assert moved.url != server.url
        prompts = [body["prompt"] for body in moved.asked]
    alone_and_together = PAIRS * 2 * 2
    assert len(prompts) == PROBE + 2 * (PAIRS - len(kept)) + alone_and_together


def test_B8_another_model_under_the_same_name_is_refused_with_both_numbers(
    server: FakeServer, student: Path, pairs: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server.after = lambda number: setattr(server, "always", 500 if number > PROBE + 4 else None)
    refusal(DataError, server, student, pairs, tmp_path / "out", attempts=1)
    before = json.loads((tmp_path / "out.partial" / "probe.json").read_text("utf-8"))["log_probs"]
    with FakeServer(other_model(tmp_path_factory.mktemp("models") / "changed", seed=6)) as changed:
        changed.tokenizer.name_or_path = server.tokenizer.name_or_path
        said = refusal(AuditError, changed, student, pairs, tmp_path / "out")
    assert "was begun with other numbers" in said
    assert f"it was {sum(before):.4f}" in said


def test_B8_a_model_that_changes_in_the_middle_of_a_run_is_found_by_the_audit(
    server: FakeServer, student: Path, pairs: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    changed = other_model(tmp_path_factory.mktemp("models") / "changed", seed=6)
    other = AutoModelForCausalLM.from_pretrained(changed).eval()
    server.after = lambda number: setattr(server, "model", other) if number == PROBE + 6 else None
    said = refusal(AuditError, server, student, pairs, tmp_path / "out")
    assert "audit of teacher: pair" in said
    assert "nats stored" in said


@pytest.mark.parametrize("kind", ["llama", "vllm"])
def test_numbers_shifted_by_one_token_are_refused(
    kind: Any, teacher: Path, student: Path, pairs: Path, tmp_path: Path
) -> None:
    with FakeServer(teacher, kind) as server:
        server.shift = True
        said = refusal(AuditError, server, student, pairs, tmp_path / "out")
    assert "are not those of the tokens beside which they stand" in said
    assert not list((tmp_path / "out.partial").glob("shards/*"))


def test_llama_cpp_pythons_own_shift_is_refused(server: FakeServer, student: Path, pairs: Path, tmp_path: Path) -> None:
    """It takes the first log-prob off whether or not it took a beginning-of-sequence token off (0.3.36)."""
    template = tmp_path / "no_begin.jinja"
    template.write_text(server.tokenizer.chat_template.replace("{{- bos_token -}}", ""), "utf-8")
    tokenizer = ModelSpec(server.tokenizer.name_or_path, chat_template=str(template))
    spec = ServerSpec(server.url, "tiny", tokenizer)
    with pytest.raises(
        (AuditError, DataError), match=r"llama-cpp-python (has it|cannot score) where a prompt does not"
    ):
        score(None, str(pairs), str(tmp_path / "out"), tokenizer=ModelSpec(str(student)), server=spec)


def test_A1_a_beginning_that_the_server_adds_is_refused(
    server: FakeServer, student: Path, pairs: Path, tmp_path: Path
) -> None:
    server.adds_begin = True
    said = refusal(DataError, server, student, pairs, tmp_path / "out")
    assert "it adds a beginning-of-sequence token of its own" in said
    assert "add_bos_token=bool:false" in said


def test_a_server_without_the_prompts_log_probs_is_told_how_to_start(
    server: FakeServer, student: Path, pairs: Path, tmp_path: Path
) -> None:
    server.log_probs = False
    said = refusal(DataError, server, student, pairs, tmp_path / "out")
    assert "--logits_all true" in said
    assert "prompt_logprobs" in said
    server.log_probs, server.echoes = True, False
    assert "it must know `echo`" in refusal(DataError, server, student, pairs, tmp_path / "out")


def test_another_tokenizer_than_the_served_ones_is_refused(
    server: FakeServer, tiny_folder: Path, student: Path, pairs: Path, tmp_path: Path
) -> None:
    spec = ServerSpec(server.url, "tiny", ModelSpec(str(tiny_folder)))
    with pytest.raises(DataError, match=r"is server\.tokenizer the served model's\?"):
        score(None, str(pairs), str(tmp_path / "out"), tokenizer=ModelSpec(str(student)), server=spec)


def test_rows_whose_pieces_do_not_spell_what_was_sent_are_left_out(
    server: FakeServer, student: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.respell = lambda pieces, sent: [*pieces[:-3], "x", *pieces[-2:]] if "日本" in sent else pieces
    folder = scored(server, student, pairs, tmp_path / "out")
    wrong = {row.pair_id for row in rows_of(pairs) if "日本" in row.chosen_text + row.rejected_text}
    assert len(wrong) == 2
    assert CachedScorer(folder).left_out == dict.fromkeys(wrong, "other tokens")
    check(server, pairs, folder, frozenset(wrong))
    assert f"left out {len(wrong)} (other tokens: {len(wrong)})" in capsys.readouterr().out
    assert read_manifest(folder).counts == {"pairs": PAIRS - len(wrong), "left_out": len(wrong)}


def test_where_most_rows_do_not_fit_it_stops_with_the_first_ones_texts(
    server: FakeServer, student: Path, pairs: Path, tmp_path: Path
) -> None:
    server.respell = lambda pieces, sent: [*pieces[:-3], "x", *pieces[-2:]] if "question" in sent else pieces
    said = refusal(AuditError, server, student, pairs, tmp_path / "out")
    assert "more than half of 5 pairs cannot be scored" in said
    assert "other tokens, sent " in said
    assert "the server's tokens spell" in said
    asked = len(server.asked)
    assert asked <= PROBE + 2 * PAIRS  # none was asked again
    again = refusal(AuditError, server, student, pairs, tmp_path / "out")
    assert again.split(" cannot be scored")[1] == said.split(" cannot be scored")[1]
    assert len(server.asked) <= asked + PROBE + 3  # the probe alone, and what was under way when the first run ended
    assert f"remove {tmp_path / 'out.partial'} to ask again" in again


def test_A13_a_text_that_spells_a_special_token_is_not_sent(server: FakeServer, student: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(student)
    rows = [make_pair(tokenizer, number, f"the answer {number}", "no") for number in range(3)]
    rows.append(make_pair(tokenizer, 3, "it ends with <end_of_turn> here", "no"))
    pairs = write_artifact(tmp_path / "pairs", "pairs", rows)
    folder = scored(server, student, pairs, tmp_path / "out")
    assert CachedScorer(folder).left_out == {rows[3].pair_id: "a special token written out in the text"}
    assert not any("it ends with" in body["prompt"] for body in server.asked)


def test_passing_failures_change_no_number(server: FakeServer, student: Path, pairs: Path, tmp_path: Path) -> None:
    server.statuses = [429, None, 500, None, None, 503, *([None] * 12), *([429, None] * 5)]
    check(server, pairs, scored(server, student, pairs, tmp_path / "out", attempts=9))
    assert server.statuses == []


def test_a_key_is_in_nothing_that_is_written_or_printed(
    server: FakeServer, student: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("MY_SERVER_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    server.key = KEY
    server.after = lambda number: setattr(server, "key", KEY if number < PROBE + 4 else "changed")
    arguments = [
        "score", "--server.url", server.url, "--server.model", "tiny", "--server.tokenizer.path",
        server.tokenizer.name_or_path, "--server.api_key_variable", "MY_SERVER_KEY", "--tokenizer.path", str(student),
        "--pairs", str(pairs), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(arguments) == 2
    printed = capfd.readouterr()
    assert "401, the key in MY_SERVER_KEY was refused" in printed.err
    assert printed.err.count("\n") == 1
    partial = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "begun.json" for path in partial)
    assert not [path for path in partial if KEY in path.read_text("utf-8")]
    server.after, server.key = lambda number: None, KEY
    assert main(arguments) == 0
    printed_now = capfd.readouterr()
    for text in (printed.out, printed.err, printed_now.out, printed_now.err, caplog.text):
        assert KEY not in text
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY in path.read_text("utf-8")]
    check(server, pairs, tmp_path / "out")


def test_what_cannot_be_is_refused_before_anything_is_written(
    server: FakeServer, teacher: Path, student: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, own, out = (
        ServerSpec(server.url, "tiny", ModelSpec(str(teacher))),
        ModelSpec(str(student)),
        str(tmp_path / "o"),
    )
    with pytest.raises(ConfigError, match="model beside server"):
        score(own, str(pairs), out, server=spec)
    with pytest.raises(ConfigError, match="tokens_per_batch, precision beside server"):
        score(None, str(pairs), out, tokens_per_batch=3, precision="32-true", server=spec)
    with pytest.raises(ConfigError, match=r"expected a model \(--model.path FOLDER\) or a server"):
        score(None, str(pairs), out)
    with pytest.raises(ConfigError, match="anchor reference: it is scored exactly as the policy trains"):
        score(None, str(pairs), out, "reference", tokenizer=own, server=spec)
    with pytest.raises(ConfigError, match="a server is sent text"):
        score(None, str(pairs), out, read="ids", tokenizer=own, server=spec)
    with pytest.raises(ConfigError, match=r"say whose they are, the student's: --tokenizer\.path"):
        score(None, str(pairs), out, server=spec)
    with pytest.raises(ConfigError, match="no such environment variable"):
        score(None, str(pairs), out, tokenizer=own, server=replace(spec, api_key_variable="NOT_SET_ANYWHERE"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openai", None)
        with pytest.raises(ConfigError, match=r"pip install 'lightning-dadpo\[server\]'"):
            score(None, str(pairs), out, tokenizer=own, server=spec)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="is one process and was started as 2"):
        score(None, str(pairs), out, tokenizer=own, server=spec)
    assert server.asked == []
    assert not list(tmp_path.glob("o*"))
