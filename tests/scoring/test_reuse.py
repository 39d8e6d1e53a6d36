"""Scores that earlier rounds have paid for: taken over by pair id, and only where they are the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import PairRow, ScoreRow, read_rows
from lightning_dadpo.errors import AuditError, ConfigError
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.scoring import stage
from lightning_dadpo.scoring.stage import score
from tests.ranks import ended, start_ranks
from tests.scoring.example import make_pairs, scored, write_artifact
from tests.tiny import tiny_model

FIRST, SECOND = make_pairs(6), make_pairs(4, seed=1)


def rows_of(folder: Path) -> dict[str, ScoreRow]:
    return {row.pair_id: row for row in read_rows(folder / "rows.jsonl", ScoreRow)}


def with_known(model: Path, pairs: Path, out: Path, *known: Path, anchor: str = "teacher") -> Path:
    folders = [str(folder) for folder in known]
    return score(ModelSpec(str(model)), str(pairs), str(out), anchor, 70, "32-true", known=folders)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the pairs that a model was asked about for the artefact; audits are not counted."""
    seen: list[str] = []
    real = stage._rows

    def noting(pairs: list[PairRow], scores: object) -> list[ScoreRow]:
        seen.extend(pair.pair_id for pair in pairs)
        return real(pairs, scores)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "_rows", noting)
    return seen


def test_known_pairs_are_taken_over_and_the_others_scored(tiny_folder: Path, tmp_path: Path, asked: list[str]) -> None:
    first = scored(tiny_folder, write_artifact(tmp_path / "1", "pairs", FIRST), tmp_path / "first")
    asked.clear()
    mixed = write_artifact(tmp_path / "2", "pairs", SECOND + FIRST[::2])
    out = with_known(tiny_folder, mixed, tmp_path / "second", first)
    assert sorted(asked) == sorted(pair.pair_id for pair in SECOND)
    assert read_manifest(out).counts == {"pairs": 7, "reused": 3}
    found, before = rows_of(out), rows_of(first)
    alone = rows_of(scored(tiny_folder, mixed, tmp_path / "anew"))
    assert set(found) == set(alone)
    for pair in FIRST[::2]:
        assert found[pair.pair_id] == before[pair.pair_id]
    for name, row in found.items():
        assert row.chosen_log_prob == pytest.approx(alone[name].chosen_log_prob, rel=1e-5)
        assert row.rejected_log_prob == pytest.approx(alone[name].rejected_log_prob, rel=1e-5)


def test_where_all_is_known_nothing_is_scored_and_the_audit_still_asks(
    tiny_folder: Path, tmp_path: Path, asked: list[str]
) -> None:
    first = scored(tiny_folder, write_artifact(tmp_path / "1", "pairs", FIRST), tmp_path / "first")
    asked.clear()
    pairs = write_artifact(tmp_path / "2", "pairs", FIRST[1:4])
    out = with_known(tiny_folder, pairs, tmp_path / "second", first)
    assert asked == []
    assert read_manifest(out).counts == {"pairs": 3, "reused": 3}
    assert read_manifest(out).results["audit"]["rows"] == 3


def test_C6_a_score_that_was_spoilt_since_is_found(tiny_folder: Path, tmp_path: Path) -> None:
    from lightning_dadpo.data.artifacts import file_digest

    first = scored(tiny_folder, write_artifact(tmp_path / "1", "pairs", FIRST), tmp_path / "first")
    rows = first / "rows.jsonl"
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    lines[2]["rejected_log_prob"] += 0.5
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = json.loads((first / "manifest.json").read_text())
    manifest["files"]["rows.jsonl"] = file_digest(rows)
    (first / "manifest.json").write_text(json.dumps(manifest))
    pairs = write_artifact(tmp_path / "2", "pairs", FIRST)
    with pytest.raises(AuditError, match=lines[2]["pair_id"]):
        with_known(tiny_folder, pairs, tmp_path / "second", first)


def test_C1_another_models_or_anchors_scores_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    pairs = write_artifact(tmp_path / "1", "pairs", FIRST)
    first = scored(tiny_folder, pairs, tmp_path / "first")
    other = tiny_model(tmp_path / "other", seed=9)
    with pytest.raises(ConfigError, match=r"known .*first: scores of model '\w+', expected '\w+'"):
        with_known(other, pairs, tmp_path / "second", first)
    with pytest.raises(ConfigError, match="scores of anchor 'teacher', expected 'reference'"):
        with_known(tiny_folder, pairs, tmp_path / "second", first, anchor="reference")
    assert not (tmp_path / "second.partial").exists()


def test_B8_scores_in_another_number_format_are_made_again_and_said(
    tiny_folder: Path, tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_artifact(tmp_path / "1", "pairs", FIRST)
    first = scored(tiny_folder, pairs, tmp_path / "first", precision="bf16-true")
    asked.clear()
    out = with_known(tiny_folder, pairs, tmp_path / "second", first)
    assert len(asked) == 6
    assert read_manifest(out).counts == {"pairs": 6, "reused": 0}
    assert "was made with backend 'transformers sdpa bf16-true'; its scores are made again" in capsys.readouterr().out


def test_C3_a_killed_run_takes_over_and_scores_what_is_missing(
    tiny_folder: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scored(tiny_folder, write_artifact(tmp_path / "1", "pairs", FIRST), tmp_path / "first")
    pairs = write_artifact(tmp_path / "2", "pairs", SECOND + FIRST)
    whole = rows_of(with_known(tiny_folder, pairs, tmp_path / "whole", first))
    (tmp_path / "whole").rename(tmp_path / "killed.partial")
    partial = tmp_path / "killed.partial"
    made_from = json.loads((partial / "manifest.json").read_text())["made_from"]
    (partial / "begun.json").write_text(json.dumps(made_from))
    lines = (partial / "rows.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["pair_id"] in {SECOND[0].pair_id, FIRST[0].pair_id}]
    (partial / "rows.jsonl").write_bytes(b"".join(kept))
    asked.clear()
    assert rows_of(with_known(tiny_folder, pairs, tmp_path / "killed", first)) == whole
    assert set(asked) <= {pair.pair_id for pair in SECOND}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "no_grad", lambda: pytest.fail("asked again"))
        assert rows_of(with_known(tiny_folder, pairs, tmp_path / "killed", first)) == whole


def test_several_processes_write_the_bytes_of_one(tiny_folder: Path, tmp_path: Path) -> None:
    first = scored(tiny_folder, write_artifact(tmp_path / "1", "pairs", FIRST), tmp_path / "first")
    pairs = write_artifact(tmp_path / "2", "pairs", SECOND + FIRST)
    one = with_known(tiny_folder, pairs, tmp_path / "one", first)
    ranks = start_ranks(
        tmp_path / "logs", 2, lambda rank: int(not with_known(tiny_folder, pairs, tmp_path / "two", first))
    )
    assert ended(ranks) == [0, 0], [rank.said for rank in ranks]
    assert (tmp_path / "two" / "rows.jsonl").read_bytes() == (one / "rows.jsonl").read_bytes()
