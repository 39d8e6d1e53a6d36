"""`dadpo score-responses`: what a model gives to responses, held to a float64 loop and to its own sampler."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.cli.main import main
from lightning_dadpo.data.artifacts import draft, read_manifest
from lightning_dadpo.data.rows import Message, ResponseRow, ResponseScoreRow, RowWriter, read_rows, response_id
from lightning_dadpo.errors import AuditError, DataError
from lightning_dadpo.models.loading import load_frozen, load_tokenizer, model_digest
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.scoring import responses as stage
from lightning_dadpo.scoring.responses import score_responses
from tests import oracles
from tests.ranks import ended, start_ranks
from tests.tiny import END_OF_TURN, VOCABULARY, tiny_model


def written(model: Path, count: int = 12) -> list[ResponseRow]:
    """Responses of many lengths, two candidates a prompt; the last two are the same."""
    generator = torch.Generator().manual_seed(5)
    tokenizer = load_tokenizer(ModelSpec(str(model)))
    rows = []
    for number in range(count):
        length = 1 + number % 5
        ids = [*torch.randint(40, 120, (length,), generator=generator).tolist(), END_OF_TURN]
        prompt = torch.randint(3, VOCABULARY, (4 + number // 2,), generator=generator).tolist()
        text = tokenizer.decode(ids, skip_special_tokens=True)
        turn = [Message("user", "?")]
        rows.append(ResponseRow(f"p{number // 2}", "train", turn, prompt, ids, text, "stop", -1.0, number % 2))
    return [*rows[:-1], replace(rows[-2], candidate=1)]


def kept(folder: Path, rows: list[ResponseRow], model: str = "another") -> str:
    with draft(folder, "responses", {"model": model}) as work, RowWriter(work.path / "rows.jsonl") as writer:
        writer.write(*rows)
    return str(folder)


def expected(model: Any, row: ResponseRow) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([row.prompt_token_ids + row.token_ids])).logits[0].double().tolist()
    ids = row.prompt_token_ids + row.token_ids
    return oracles.sequence_log_prob(logits, ids, len(row.prompt_token_ids), len(ids))[0]


def scored(model: Path, responses: str, out: Path, **settings: Any) -> dict[str, ResponseScoreRow]:
    folder = score_responses(ModelSpec(str(model)), responses, str(out), precision="32-true", **settings)
    return {row.response_id: row for row in read_rows(folder / "rows.jsonl", ResponseScoreRow)}


@pytest.mark.parametrize("budget", [1, 40, 4000])
def test_every_response_gets_the_sum_over_its_own_tokens(tiny_folder: Path, tmp_path: Path, budget: int) -> None:
    rows = written(tiny_folder)
    found = scored(tiny_folder, kept(tmp_path / "responses", rows), tmp_path / "out", tokens_per_batch=budget)
    assert len(found) == 11  # two candidates that are the same are one response
    model = load_frozen(ModelSpec(str(tiny_folder)), "32-true")
    for row in rows:
        score = found[response_id(row)]
        assert score.log_prob == pytest.approx(expected(model, row), rel=1e-4)
        assert score.num_tokens == len(row.token_ids)
    manifest = read_manifest(tmp_path / "out", "response_scores")
    assert manifest.counts["responses"] == 11
    assert manifest.made_from["model"] == model_digest(ModelSpec(str(tiny_folder)))
    assert manifest.results["audit"]["rows"] == 8


def test_a_models_own_responses_are_held_to_what_its_sampler_saw(tiny_folder: Path, tmp_path: Path) -> None:
    """METHOD, consequence 3: planted, one sampler's note is half a nat off."""
    model, digest = load_frozen(ModelSpec(str(tiny_folder)), "32-true"), model_digest(ModelSpec(str(tiny_folder)))
    rows = [replace(row, log_prob=expected(model, row)) for row in written(tiny_folder)]
    scored(tiny_folder, kept(tmp_path / "good", rows, digest), tmp_path / "out")
    assert read_manifest(tmp_path / "out").results["audit"]["samples"] == 11
    wrong = [*rows[:3], replace(rows[3], log_prob=(rows[3].log_prob or 0) - 0.5), *rows[4:]]
    with pytest.raises(AuditError, match=r"against its sampler: prompt 'p1', candidate 1: .* nats stored"):
        scored(tiny_folder, kept(tmp_path / "bad", wrong, digest), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_A10_rows_that_land_on_other_responses_are_found(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stage._rows
    monkeypatch.setattr(stage, "_rows", lambda rows, nats: real(rows, nats[::-1]))
    with pytest.raises(AuditError, match="scored again alone"):
        scored(tiny_folder, kept(tmp_path / "responses", written(tiny_folder)), tmp_path / "out")


def test_C3_a_killed_run_scores_only_what_is_missing(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    responses = kept(tmp_path / "responses", written(tiny_folder))
    whole = scored(tiny_folder, responses, tmp_path / "out", tokens_per_batch=40)
    (tmp_path / "out").rename(tmp_path / "out.partial")
    partial = tmp_path / "out.partial"
    manifest = json.loads((partial / "manifest.json").read_text("utf-8"))
    (partial / "begun.json").write_text(json.dumps(manifest["made_from"]), "utf-8")
    lines = (partial / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (partial / "rows.jsonl").write_bytes(b"".join(lines[:-2]) + lines[-2][:7])
    asked: list[int] = []
    real = stage._rows

    def counting(rows: list[ResponseRow], nats: list[float]) -> list[ResponseScoreRow]:
        asked.append(len(rows))
        return real(rows, nats)

    monkeypatch.setattr(stage, "_rows", counting)
    assert scored(tiny_folder, responses, tmp_path / "out", tokens_per_batch=40) == whole
    assert sum(asked) < 6
    monkeypatch.setattr(stage, "load_frozen", lambda *_: pytest.fail("loaded again"))
    assert scored(tiny_folder, responses, tmp_path / "out", tokens_per_batch=40) == whole


def test_several_processes_write_the_bytes_of_one(tiny_folder: Path, tmp_path: Path) -> None:
    responses = kept(tmp_path / "responses", written(tiny_folder))
    scored(tiny_folder, responses, tmp_path / "one", tokens_per_batch=40)
    command = ["score-responses", "--model.path", str(tiny_folder), "--responses", responses, "--precision", "32-true"]
    command += ["--tokens_per_batch", "40", "--out", str(tmp_path / "two")]
    ranks = start_ranks(tmp_path / "logs", 2, lambda rank: main(command))
    assert ended(ranks) == [0, 0], [rank.said for rank in ranks]
    assert (tmp_path / "two" / "rows.jsonl").read_bytes() == (tmp_path / "one" / "rows.jsonl").read_bytes()
    assert not ranks[1].said


def test_a_model_that_reads_other_words_is_refused_in_one_line(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [replace(row, text="other words") for row in written(tiny_folder)]
    responses = kept(tmp_path / "responses", rows)
    command = [
        "score-responses",
        "--model.path",
        str(tiny_folder),
        "--responses",
        responses,
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(command) == 2
    assert "reads the ids of a response to prompt" in capsys.readouterr().err
    assert not (tmp_path / "o.partial").exists()


def test_a_log_prob_that_is_no_number_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "broken")
    rows = written(folder)
    with pytest.raises(AuditError, match="not finite"):
        stage._rows(rows[:1], [math.nan])
    with pytest.raises(DataError, match="no response to score"):
        scored(folder, kept(tmp_path / "responses", [replace(rows[0], token_ids=[])]), tmp_path / "out")
