from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data.rows import (
    Message,
    PairRow,
    PromptRow,
    ResponseRow,
    RowWriter,
    ScoreRow,
    content_digest,
    read_rows,
)
from lightning_dadpo.errors import DataError

MESSAGES = [Message("user", 'Zürich? 東京?\u2028\n"<|im_end|>" {x}')]
ROWS: list[Any] = [
    PromptRow("p-1", MESSAGES, source="made up"),
    ResponseRow("p-1", "train", MESSAGES, [1, 5, 6], [7, 8, 2], "ab", "stop", -12.34567890123456789, candidate=3),
    PairRow("d", "p-1", "train", MESSAGES, [1, 5], [7, 2], "a", "stop", [8, 9], "bc", "length", -1.5, None),
    ScoreRow("d", -0.1, 2, -1e-300, 2),
]
SCORE = {
    "pair_id": "d",
    "chosen_log_prob": -1.0,
    "chosen_num_tokens": 2,
    "rejected_log_prob": -2.0,
    "rejected_num_tokens": 3,
}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_what_is_written_is_read_back_exactly(tmp_path: Path, row: Any) -> None:
    path = tmp_path / "rows.jsonl"
    with RowWriter(path) as writer:
        writer.write(row, row)
    assert list(read_rows(path, type(row))) == [row, row]
    assert path.read_bytes().count(b"\n") == 2


def test_a_response_of_an_older_artefact_is_the_first_candidate(tmp_path: Path) -> None:
    row = {"prompt_id": "p", "split": "train", "messages": [], "prompt_token_ids": [1], "token_ids": [2], "text": ""}
    path = lines(tmp_path / "rows.jsonl", row | {"finish_reason": "stop", "log_prob": -1.5})
    (found,) = read_rows(path, ResponseRow)
    assert (found.candidate, found.log_prob) == (0, -1.5)


def test_a_sampler_that_saw_no_log_prob_says_so(tmp_path: Path) -> None:
    row = ResponseRow("p", "train", MESSAGES, [1], [2], "", "stop", None)
    with RowWriter(tmp_path / "rows.jsonl") as writer:
        writer.write(row)
    assert list(read_rows(tmp_path / "rows.jsonl", ResponseRow)) == [row]
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace('"log_prob": null, ', ""))
    with pytest.raises(DataError, match="log_prob"):
        list(read_rows(tmp_path / "rows.jsonl", ResponseRow))


def test_every_digit_of_a_float64_survives(tmp_path: Path) -> None:
    """METHOD, consequence 7: scores are stored in float32 or wider."""
    values = [-math.pi * 1e3, -0.1 - 0.2, -5e-324, -500.01]
    with RowWriter(tmp_path / "rows.jsonl") as writer:
        writer.write(*(ScoreRow("d", value, 1, 2 * value, 1) for value in values))
    found = list(read_rows(tmp_path / "rows.jsonl", ScoreRow))
    assert [row.chosen_log_prob for row in found] == values
    assert [row.rejected_log_prob for row in found] == [2 * value for value in values]


def test_rows_reach_the_file_before_the_writer_closes(tmp_path: Path) -> None:
    with RowWriter(tmp_path / "rows.jsonl") as writer:
        writer.write(ROWS[3])
        assert list(read_rows(tmp_path / "rows.jsonl", ScoreRow)) == [ROWS[3]]


@pytest.mark.parametrize("kept", range(1, 12))
def test_C3_a_torn_last_line_is_dropped_wherever_it_was_cut(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "rows.jsonl"
    with RowWriter(path) as writer:
        writer.write(ROWS[0])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: kept * len(whole) // 12])  # some cuts fall inside a letter of several bytes
    with RowWriter(path) as writer:
        writer.write(ROWS[0])
    assert path.read_bytes() == whole * 2


def test_C3_a_file_with_nothing_but_a_torn_line_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"pair_id": "d"')
    with RowWriter(path) as writer:
        writer.write(ROWS[3])
    assert list(read_rows(path, ScoreRow)) == [ROWS[3]]


def test_C3_whole_lines_are_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for _ in range(3):
        with RowWriter(path) as writer:
            writer.write(ROWS[3])
    assert list(read_rows(path, ScoreRow)) == [ROWS[3]] * 3


def test_a_nan_is_not_written(tmp_path: Path) -> None:
    with RowWriter(tmp_path / "rows.jsonl") as writer, pytest.raises(ValueError, match="finite"):
        writer.write(ScoreRow("d", math.nan, 1, -1.0, 1))
    assert (tmp_path / "rows.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({**SCORE, "chosen_num_tokens": "2"}, "chosen_num_tokens"),
        ({**SCORE, "chosen_num_tokens": 2.5}, "chosen_num_tokens"),
        ({**SCORE, "chosen_log_prob": None}, "chosen_log_prob"),
        ({**SCORE, "chosen_logprob": -1.0}, "chosen_logprob"),
        ({key: value for key, value in SCORE.items() if key != "pair_id"}, "pair_id"),
        ('{"pair_id": "d", "chosen_log', "JSON"),
        ("[1, 2]", "ScoreRow|object|dict"),
    ],
)
def test_a_bad_line_is_named_by_file_line_and_field(tmp_path: Path, row: object, named: str) -> None:
    path = lines(tmp_path / "rows.jsonl", SCORE, "", row, SCORE)
    rows = read_rows(path, ScoreRow)
    assert next(rows) == ScoreRow("d", -1.0, 2, -2.0, 3)
    with pytest.raises(DataError, match=named) as refused:
        list(rows)
    assert str(refused.value).startswith(f"{path}:3: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_a_score_that_is_not_finite_is_refused_by_file_and_line(tmp_path: Path, text: str) -> None:
    path = lines(tmp_path / "rows.jsonl", json.dumps(SCORE).replace("-1.0", text))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*chosen_log_prob"):
        list(read_rows(path, ScoreRow))


def test_a_bad_field_inside_a_message_is_named_with_its_path(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"prompt_id": "p", "messages": [{"role": "robot", "content": "hi"}]})
    with pytest.raises(DataError, match=r"p\.jsonl:1: `messages\.0\.role`"):
        list(read_rows(path, PromptRow))


def test_bytes_that_are_not_utf_8_are_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(SCORE).encode() + b"\n" + b'{"pair_id": "\xff\xfe"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        list(read_rows(path, ScoreRow))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: no such file"):
        list(read_rows(tmp_path / "absent.jsonl", ScoreRow))


def test_a_finish_reason_is_stop_or_length(tmp_path: Path) -> None:
    with RowWriter(tmp_path / "r.jsonl") as writer:
        writer.write(ROWS[1])
    text = (tmp_path / "r.jsonl").read_text("utf-8").replace('"stop"', '"eos"')
    (tmp_path / "r.jsonl").write_text(text, "utf-8")
    with pytest.raises(DataError, match="finish_reason"):
        list(read_rows(tmp_path / "r.jsonl", ResponseRow))


def test_C2_a_digest_changes_with_every_part_and_knows_where_parts_end() -> None:
    base = content_digest([1, 2], [3], [4, 5])
    assert content_digest([1, 2], [3], [4, 5]) == base
    others = [
        content_digest([1, 2], [3], [4, 6]),
        content_digest([1, 2], [4, 5], [3]),  # chosen and rejected swapped
        content_digest([1], [2, 3], [4, 5]),  # the same ids, cut elsewhere
        content_digest([1, 2], [3, 4], [5]),
        content_digest([12], [3], [4, 5]),
        content_digest([2, 1], [3], [4, 5]),
    ]
    assert len({base, *others}) == 7
    assert len(base) == 16
    assert content_digest({"a": 1, "b": 2}) == content_digest({"b": 2, "a": 1})
