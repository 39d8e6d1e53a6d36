"""Rows on disk: as `read_rows` gives them, in any order, and never held."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data.row_store import RowStore, column
from lightning_dadpo.data.rows import PairRow, RowWriter, ScoreRow, read_rows
from lightning_dadpo.errors import DataError
from tests.scoring.example import LiveRows, make_pairs


def chosen_tokens(row: PairRow) -> int:
    return len(row.chosen_token_ids)


def written(path: Path, rows: list[Any]) -> Path:
    with RowWriter(path) as writer:
        writer.write(*rows)
    return path


def test_rows_come_as_read_rows_gives_them_in_any_order(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", make_pairs(9))
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n  \n", 3))  # blank lines are no rows
    rows, store = list(read_rows(path, PairRow)), RowStore(path, PairRow)
    assert len(store) == 9
    assert list(store) == rows
    assert [store[index] for index in (8, 0, -1, 4)] == [rows[index] for index in (8, 0, -1, 4)]
    assert store[2:9:3] == rows[2:9:3]
    assert store.take([7, 7, 1]) == [rows[7], rows[7], rows[1]]
    with pytest.raises(IndexError):
        store[9]


def test_rows_that_are_not_kept_are_left_out_of_numbers_too(tmp_path: Path) -> None:
    pairs = make_pairs(4) + make_pairs(3, "validation") + make_pairs(2, seed=1)
    store = RowStore(
        written(tmp_path / "rows.jsonl", pairs), PairRow, [chosen_tokens], lambda row: row.split == "train"
    )
    kept = pairs[:4] + pairs[7:]
    assert list(store) == kept
    assert list(column(store, chosen_tokens)) == [len(pair.chosen_token_ids) for pair in kept]
    assert list(column(store, lambda row: len(row.split))) == [5] * 6  # not measured at first: read again
    assert list(column(kept, chosen_tokens)) == [len(pair.chosen_token_ids) for pair in kept]


@pytest.mark.parametrize(
    "broken", [b'{"pair_id": "a"}', b"{", b'{"pair_id": 1, "x": 2}', b"\xff", b'"' + b"x" * 40 + b'"']
)
def test_a_line_that_is_no_row_is_refused_as_read_rows_refuses_it(tmp_path: Path, broken: bytes) -> None:
    path = written(tmp_path / "rows.jsonl", [ScoreRow("a", -1.0, 2, -3.0, 4)])
    path.write_bytes(path.read_bytes() + b"\n" + broken + b"\n")
    with pytest.raises(DataError) as expected:
        list(read_rows(path, ScoreRow))
    with pytest.raises(DataError) as found:
        RowStore(path, ScoreRow, keep=lambda row: False)  # validated, also where it would not be kept
    assert str(found.value) == str(expected.value)
    assert str(found.value).startswith(f"{path}:3: ")
    with pytest.raises(DataError, match="nowhere: no such file"):
        RowStore(tmp_path / "nowhere", ScoreRow)


def test_sixteen_times_the_rows_keep_no_more_rows_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = {}
    for count in (100, 1600):
        path = written(tmp_path / f"{count}.jsonl", make_pairs(50) * (count // 50))
        with monkeypatch.context() as patch:
            live = LiveRows(patch)
            store = RowStore(path, PairRow, [chosen_tokens])
            assert sum(1 for _ in store) == count
            assert len(store.take([5, count - 1, 17])) == 3
            most[count] = live.most
            assert live.now == 0
    assert most[100] == most[1600] <= 4


def test_a_row_costs_the_memory_of_its_numbers(tmp_path: Path) -> None:
    memory = {}
    for count in (100, 1600):
        path = written(tmp_path / f"{count}.jsonl", make_pairs(50) * (count // 50))
        tracemalloc.start()
        store = RowStore(path, PairRow, [chosen_tokens])
        assert sum(1 for _ in store) == count
        memory[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # per row three numbers of eight bytes, over-allocated by less than one half, and the same again while they grow
    assert memory[1600] - memory[100] < 1500 * 3 * 8 * 3
