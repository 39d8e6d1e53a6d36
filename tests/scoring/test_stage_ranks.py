"""`dadpo score` as several processes: the bits of one, audited once, and nothing scored twice after a kill."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.cli.main import main
from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import PairRow
from lightning_dadpo.scoring import stage
from lightning_dadpo.types import PairLogProbs
from tests.ranks import await_rank, ended, start_ranks
from tests.scoring.example import make_pairs, write_artifact

PAIRS = make_pairs(20)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """One pair stands there twice, as two prompts with the same tokens give it."""
    return write_artifact(tmp_path / "pairs", "pairs", [*PAIRS, PAIRS[3]])


def scoring(model: Path, pairs: Path, out: Path) -> Callable[[int], int]:
    asked = ["--model.path", str(model), "--pairs", str(pairs), "--out", str(out)]
    return lambda rank: main(["score", *asked, "--precision", "32-true", "--tokens_per_batch", "70"])


def noted(monkeypatch: pytest.MonkeyPatch, notes: Path, out: Path, dies: int | None = None, at: int = 3) -> None:
    """Every pair whose score is made for the rows leaves a line; one rank is killed at its `at`th batch."""
    real, calls = stage._rows, []

    def noting(pairs: list[PairRow], scores: PairLogProbs) -> Any:
        calls.append(pairs)
        if os.environ.get("RANK") == str(dies) and len(calls) == at:
            await_rank(out, 1 - int(str(dies)))
            os.kill(os.getpid(), 9)
        with notes.open("a") as file:
            file.write("".join(f"{pair.pair_id}\n" for pair in pairs))
        return real(pairs, scores)

    monkeypatch.setattr(stage, "_rows", noting)


def test_any_number_of_processes_writes_the_bytes_of_one_and_audits_them_once(
    tiny_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    assert scoring(tiny_folder, pairs, tmp_path / "1")(0) == 0
    for size in (2, 3):
        ranks = start_ranks(tmp_path / "logs", size, scoring(tiny_folder, pairs, tmp_path / str(size)))
        assert ended(ranks) == [0] * size, [rank.said for rank in ranks]
        assert (tmp_path / str(size) / "rows.jsonl").read_bytes() == (tmp_path / "1" / "rows.jsonl").read_bytes()
        assert ranks[0].said.count("audit of teacher: 8 pairs") == 1
        assert not any(rank.said for rank in ranks[1:])
        ours, theirs = (read_manifest(tmp_path / name) for name in ("1", str(size)))
        assert (ours.made_from, ours.counts, ours.results) == (theirs.made_from, theirs.counts, theirs.results)


@pytest.mark.parametrize(("who", "again"), [(1, 1), (1, 3), (0, 2)])
def test_C3_killed_and_started_again_on_other_ranks_it_scores_only_what_is_missing(
    tiny_folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: int, again: int
) -> None:
    assert scoring(tiny_folder, pairs, tmp_path / "one")(0) == 0
    notes, out = tmp_path / "notes", tmp_path / "many"
    with monkeypatch.context() as patch:
        noted(patch, notes, out, dies=who)
        patch.setattr("lightning_dadpo.data.company.RENAME_SECONDS", 0.5)
        ranks = start_ranks(tmp_path / "logs", 2, scoring(tiny_folder, pairs, out))
        statuses = ended(ranks)
        assert statuses[who] == -9
        assert statuses[1 - who] == 2
    first = notes.read_text().split()
    assert 2 <= len(first) < 21
    noted(monkeypatch, notes, out)
    assert ended(start_ranks(tmp_path / "logs", again, scoring(tiny_folder, pairs, out))) == [0] * again
    made = notes.read_text().split()
    assert len(made) == 21
    assert set(made) == {pair.pair_id for pair in PAIRS}
    assert (out / "rows.jsonl").read_bytes() == (tmp_path / "one" / "rows.jsonl").read_bytes()
