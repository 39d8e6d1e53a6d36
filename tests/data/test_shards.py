"""Trap C3 with several ranks: whatever dies and whoever goes on, the rows are those of one process, each made once."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data import company, shards
from lightning_dadpo.data.artifacts import finished, read_manifest
from lightning_dadpo.data.company import LeaderStoppedError
from lightning_dadpo.data.ranks import ranks_here
from lightning_dadpo.data.rows import ScoreRow, read_rows
from lightning_dadpo.data.shards import share, shared_draft
from lightning_dadpo.errors import ArtifactError, DadpoError, DataError
from tests.ranks import Rank, await_rank, ended, start_ranks

PIECES = [["d", "a"], ["b"], ["h", "e", "g"], ["c", "f"], ["i"], ["k", "j"], ["l"]]
MADE_FROM = {"model": "abc"}
NOTHING: Callable[[int, int], None] = lambda rank, piece: None  # noqa: E731


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(company, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(shards, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(company, "RENAME_SECONDS", 0.5)


def row(name: str, piece: int) -> ScoreRow:
    """A key that stands in two pieces has two values."""
    return ScoreRow(name, -float(ord(name)) - piece / 16, 3, -1.0, 4)


def work(
    folder: Path, disturb: Callable[[int, int], None] = NOTHING, pieces: list[list[str]] = PIECES, **made_from: Any
) -> Callable[[int], int]:
    """One rank's run of a stage: 0, or 2 behind an error that it prints. It notes which pieces it has made."""

    def run(rank: int) -> int:
        try:
            with shared_draft(folder, "scores", MADE_FROM | made_from, ranks_here()) as made:
                with share(made, pieces, ScoreRow, lambda one: one.pair_id, "testing (rows)") as own:
                    for piece in own:
                        disturb(rank, piece)
                        own.write(piece, [row(name, piece) for name in pieces[piece]])
                        own.advance(len(pieces[piece]))
                        with (folder.parent / "made").open("a") as notes:
                            notes.write(f"{piece}\n")
                if made.leads:
                    made.draft.counts["rows"] = len(list(read_rows(made.draft.path / "rows.jsonl", ScoreRow)))
            assert finished(folder, "scores", MADE_FROM)  # not before
        except DadpoError as error:
            print(f"{type(error).__name__}: {error}")
            return 2
        return 0

    return run


def made(folder: Path) -> Counter[int]:
    """How often each piece was made."""
    return Counter(map(int, (folder.parent / "made").read_text().split()))


def alone(folder: Path, pieces: list[list[str]] = PIECES) -> bytes:
    """What one process writes."""
    assert work(folder / "alone", pieces=pieces)(0) == 0
    (folder / "made").unlink()
    return (folder / "alone" / "rows.jsonl").read_bytes()


def test_one_process_writes_the_pieces_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = alone(tmp_path).decode().splitlines()
    assert [json.loads(line)["pair_id"] for line in lines] == [name for piece in PIECES for name in piece]
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == ["manifest.json", "rows.jsonl"]
    assert capsys.readouterr().out.count("testing (rows): 12/12") == 1


@pytest.mark.parametrize("size", [2, 3, 9])  # nine ranks, seven pieces
def test_any_number_of_ranks_writes_the_same_bytes_and_rank_0_alone_speaks(tmp_path: Path, size: int) -> None:
    expected, folder = alone(tmp_path), tmp_path / "scores"
    ranks = start_ranks(tmp_path / "logs", size, work(folder))
    assert ended(ranks) == [0] * size, [rank.said for rank in ranks]
    assert (folder / "rows.jsonl").read_bytes() == expected
    assert read_manifest(folder).counts == {"rows": 12}
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "rows.jsonl"]
    assert made(folder) == dict.fromkeys(range(7), 1)
    assert [bool(rank.said) for rank in ranks] == [True] + [False] * (size - 1)
    assert ranks[0].said.count("testing (rows): 12/12") == 1


def slow(rank: int, piece: int) -> None:
    time.sleep(0.1)


def dies(folder: Path, who: int, at: int) -> Callable[[int, int], None]:
    def disturb(rank: int, piece: int) -> None:
        slow(rank, piece)
        if rank == who and piece >= at:
            await_rank(folder, 1 - who)
            os.kill(os.getpid(), 9)

    return disturb


@pytest.mark.parametrize("again", [1, 2, 3])
@pytest.mark.parametrize("who", [0, 1])
def test_C3_a_rank_that_is_killed_ends_the_launch_and_a_rerun_makes_only_what_is_missing(
    tmp_path: Path, who: int, again: int
) -> None:
    expected, folder = alone(tmp_path), tmp_path / "scores"
    ranks = start_ranks(tmp_path / "logs", 2, work(folder, dies(folder, who, 2)))
    statuses = ended(ranks)
    assert statuses[who] == -9
    assert statuses[1 - who] == 2
    (said,) = [line for line in ranks[1 - who].said.splitlines() if "testing" not in line]
    place = f"{tmp_path / 'scores.partial'}: rank {who} (process {ranks[who].process} on "
    assert said.startswith(f"ArtifactError: {place}")
    assert "of 2 has died; what was finished is kept" in said
    assert not folder.exists()
    there = made(folder)
    assert 1 <= len(there) < 7
    assert ended(start_ranks(tmp_path / "logs", again, work(folder))) == [0] * again
    assert (folder / "rows.jsonl").read_bytes() == expected
    assert made(folder) == dict.fromkeys(range(7), 1)  # none of them twice


def test_C3_a_piece_that_a_kill_tore_is_made_again_as_a_whole_and_the_rest_is_not(tmp_path: Path) -> None:
    expected, folder = alone(tmp_path), tmp_path / "scores"
    ended(start_ranks(tmp_path / "logs", 2, work(folder, dies(folder, 1, 5))))
    there, shard = made(folder), tmp_path / "scores.partial" / "shards" / "1.jsonl"
    assert (there[1], there[3], there[5]) == (1, 1, 0)
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join(lines[:-1]) + lines[-1][:9])  # the second row of piece 3
    assert ended(start_ranks(tmp_path / "logs", 3, work(folder))) == [0, 0, 0]
    assert (folder / "rows.jsonl").read_bytes() == expected
    assert made(folder) == dict.fromkeys(range(7), 1) | {3: 2}


def test_what_stopped_one_rank_stops_all_and_is_said_once_by_rank_0(tmp_path: Path) -> None:
    def fails(rank: int, piece: int) -> None:
        slow(rank, piece)
        if rank == 2:
            raise DataError("row 7:\nno number")

    ranks = start_ranks(tmp_path / "logs", 3, work(tmp_path / "scores", fails))
    assert ended(ranks) == [2, 2, 2]
    assert ranks[0].said.splitlines()[-1] == "ArtifactError: rank 2 of 3 stopped: row 7: no number"
    assert ranks[1].said.startswith("LeaderStoppedError: rank 0 of 3 stopped: rank 2 of 3 stopped: row 7")
    assert ranks[2].said.startswith("DataError")
    assert issubclass(LeaderStoppedError, ArtifactError)


def test_an_error_of_rank_0_behind_the_work_keeps_the_others_from_success(tmp_path: Path) -> None:
    folder = tmp_path / "scores"

    def run(rank: int) -> int:
        try:
            with shared_draft(folder, "scores", MADE_FROM, ranks_here()) as made:
                with share(made, PIECES, ScoreRow, lambda one: one.pair_id, "testing") as own:
                    for piece in own:
                        own.write(piece, [row(name, piece) for name in PIECES[piece]])
                if made.leads:
                    raise DataError("the audit")
        except DadpoError as error:
            print(error)
            return 2
        return 0

    ranks = start_ranks(tmp_path / "logs", 2, run)
    assert ended(ranks) == [2, 2]
    assert ranks[1].said == "rank 0 of 2 stopped: the audit\n"
    assert len(list(read_rows(tmp_path / "scores.partial" / "rows.jsonl", ScoreRow))) == 12


@pytest.mark.parametrize("comes", [0, 1])
def test_a_rank_that_never_comes_is_not_waited_for_for_ever(
    tmp_path: Path, comes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(company, "ARRIVAL_SECONDS", 0.3)
    (rank,) = start_ranks(tmp_path / "logs", 2, work(tmp_path / "scores"), only=(comes,))
    assert rank.status() == 2
    assert f"scores.partial: rank {1 - comes} of 2 has not come in 0 s" in rank.said


def test_C3_a_rank_of_an_earlier_launch_that_still_works_is_not_raced(tmp_path: Path) -> None:
    expected, folder = alone(tmp_path), tmp_path / "scores"

    def lingers(rank: int, piece: int) -> None:
        if rank == 1:
            time.sleep(1.0)

    first = start_ranks(tmp_path / "logs", 2, work(folder, lingers))
    until(lambda: len(made(folder)) == 4 if (tmp_path / "made").exists() else False)  # those of rank 0
    first[0].kill()
    assert first[0].status() == -9
    (second,) = start_ranks(tmp_path / "more", 1, work(folder))
    assert second.status() == 2
    assert f"rank 1 (process {first[1].process} on " in second.said
    assert "of an earlier launch still works there" in second.said
    assert first[1].status() == 2
    assert ended(start_ranks(tmp_path / "more", 1, work(folder))) == [0]
    assert (folder / "rows.jsonl").read_bytes() == expected


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("size", "rank", "changes", "said"),
    [
        (2, 0, {}, "another process is working there"),
        (2, 1, {}, "works there already"),
        (3, 2, {}, "a launch of 2 processes works there, this one has 3"),
        (2, 1, {"model": "xyz"}, "model: 'abc' there, 'xyz' now"),
    ],
)
def test_another_launch_is_refused_while_one_works(
    tmp_path: Path, size: int, rank: int, changes: dict[str, Any], said: str
) -> None:
    expected, folder = alone(tmp_path), tmp_path / "scores"
    first = start_ranks(tmp_path / "logs", 2, work(folder, slow))
    until((tmp_path / "scores.partial" / ".ranks" / "1").exists)
    (other,) = start_ranks(tmp_path / "more", size, work(folder, **changes), only=(rank,))
    assert other.status() == 2
    assert said in other.said
    assert ended(first) == [0, 0]
    assert (folder / "rows.jsonl").read_bytes() == expected


@pytest.mark.parametrize("size", [2, 3])
def test_a_row_of_two_pieces_is_that_of_the_first_whoever_makes_it_sooner(tmp_path: Path, size: int) -> None:
    pieces = [["a", "b"], ["b", "c"], ["a", "d"], ["c", "a"]]
    expected = alone(tmp_path, pieces)
    assert [json.loads(line)["pair_id"] for line in expected.splitlines()] == ["a", "b", "c", "d"]

    def rank_0_is_late(rank: int, piece: int) -> None:
        if rank == 0:
            time.sleep(0.3)

    ranks = start_ranks(tmp_path / "logs", size, work(tmp_path / "scores", rank_0_is_late, pieces))
    assert ended(ranks) == [0] * size
    assert (tmp_path / "scores" / "rows.jsonl").read_bytes() == expected
    assert replace(row("b", 0)) == list(read_rows(tmp_path / "scores" / "rows.jsonl", ScoreRow))[1]


def test_a_kill_between_rows_and_shards_doubles_nothing(tmp_path: Path) -> None:
    expected, folder = alone(tmp_path), tmp_path / "scores"
    ended(start_ranks(tmp_path / "logs", 2, work(folder, dies(folder, 1, 5))))
    partial = tmp_path / "scores.partial"
    kept = (partial / "shards" / "1.jsonl").read_bytes()
    with (partial / "rows.jsonl").open("ab") as rows:
        rows.write(kept)  # taken up, and the shard is still there
    assert ended(start_ranks(tmp_path / "logs", 2, work(folder))) == [0, 0]
    assert (folder / "rows.jsonl").read_bytes() == expected


def test_rank_0_counts_the_rows_of_all(tmp_path: Path) -> None:
    def rank_1_is_late(rank: int, piece: int) -> None:
        time.sleep(0.3 * rank)

    ranks: list[Rank] = start_ranks(tmp_path / "logs", 2, work(tmp_path / "scores", rank_1_is_late))
    assert ended(ranks) == [0, 0]
    assert "testing (rows): 12/12" in ranks[0].said
