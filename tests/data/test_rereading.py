"""Responses of another tokenizer's model in the student's ids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.chat import render_prompt
from lightning_dadpo.data.rereading import reread_responses
from lightning_dadpo.data.rows import FinishReason, Message, ResponseRow, read_rows
from lightning_dadpo.errors import ArtifactError, DataError
from tests.other import by_hand, other_tokenizer
from tests.scoring.example import write_artifact
from tests.tiny import END_OF_TURN, tiny_tokenizer

MADE_FROM = {"model": "0123", "sampler": {"temperature": 1.0}}


@pytest.fixture
def student(tmp_path: Path) -> Any:
    return tiny_tokenizer(tmp_path / "student")


@pytest.fixture
def teacher(tmp_path: Path) -> Any:
    return other_tokenizer(tmp_path / "teacher")


def response(teacher: Any, number: int, text: str, finish: FinishReason = "stop") -> ResponseRow:
    """As `dadpo sample` writes it, but that nothing was drawn."""
    prompt, ids = by_hand(teacher, f"question {number}?", text, finish == "stop")
    said = teacher.decode(ids, skip_special_tokens=True)
    messages = [Message("user", f"question {number}?")]
    return ResponseRow(f"p{number}", "train", messages, prompt, ids, said, finish, -3.5, candidate=number % 2)


def reread(rows: list[ResponseRow], tokenizer: Any, tmp_path: Path) -> list[ResponseRow]:
    source = write_artifact(tmp_path / "answers", "responses", rows, MADE_FROM)
    made = reread_responses(str(source), tokenizer, "digest", str(tmp_path / "reread"))
    return list(read_rows(made / "rows.jsonl", ResponseRow))


def test_A7_the_same_text_in_the_students_ids_its_end_of_turn_behind_finished_ones_alone(
    student: Any, teacher: Any, tmp_path: Path
) -> None:
    rows = [response(teacher, 0, "the answer"), response(teacher, 1, "Zürich, 🙂 cut", "length")]
    first, second = reread(rows, student, tmp_path)
    for found, row, end in ((first, rows[0], [END_OF_TURN]), (second, rows[1], [])):
        # without merges an id is a byte: 256 of them behind the three special tokens
        assert len(found.token_ids) == len(row.text.encode()) + len(end)
        assert found.token_ids[len(row.text.encode()) :] == end
        assert student.decode(found.token_ids, skip_special_tokens=True) == row.text == found.text
        assert found.prompt_token_ids == render_prompt(student, row.messages)
        kept = replace(found, prompt_token_ids=row.prompt_token_ids, token_ids=row.token_ids, log_prob=row.log_prob)
        assert kept == row, "everything else stays"
        assert found.log_prob is None, "no sampler saw these ids"
    counts = read_manifest(tmp_path / "reread", "responses").counts
    assert counts == {"responses": 2, "stopped": 1, "tokens": len(first.token_ids) + len(second.token_ids)}


def test_what_cannot_be_read_is_dropped_and_counted(student: Any, teacher: Any, tmp_path: Path) -> None:
    whole = response(teacher, 0, "the answer")
    torn = teacher.encode("é", add_special_tokens=False)[:1]
    broken = replace(whole, prompt_id="b", token_ids=torn, text=teacher.decode(torn), finish_reason="length")
    silent = replace(whole, prompt_id="s", token_ids=whole.token_ids[-1:], text="")
    assert [row.prompt_id for row in reread([whole, broken, silent], student, tmp_path)] == ["p0"]
    counts = read_manifest(tmp_path / "reread", "responses").counts
    assert (counts["dropped_broken_text"], counts["dropped_empty"]) == (1, 1)


def test_a_character_that_the_student_has_no_token_for_is_counted(
    student: Any, teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [response(teacher, 0, "the answer"), response(teacher, 1, "cut")]
    known = student.unk_token_id
    real = type(student).encode

    def lacks_c(self: Any, text: str, **given: Any) -> list[int]:
        lacking = student.convert_tokens_to_ids("c")
        return [known if index == lacking and "cut" in text else index for index in real(self, text, **given)]

    monkeypatch.setattr(type(student), "encode", lacks_c)
    assert [row.prompt_id for row in reread(rows, student, tmp_path)] == ["p0"]
    assert read_manifest(tmp_path / "reread").counts["dropped_unknown_characters"] == 1


def test_a_conversation_that_the_students_template_refuses_is_counted(teacher: Any, tmp_path: Path) -> None:
    plain = response(teacher, 0, "the answer")
    system = replace(plain, prompt_id="s", messages=[Message("system", "Be brief."), *plain.messages])
    assert [row.prompt_id for row in reread([plain, system], teacher, tmp_path)] == ["p0"]
    assert read_manifest(tmp_path / "reread").counts["dropped_no_place"] == 1


def test_nothing_left_is_refused_and_a_finished_one_is_left_as_it_is(
    student: Any, teacher: Any, tmp_path: Path
) -> None:
    row = response(teacher, 0, "the answer")
    reread([row], student, tmp_path)
    before = (tmp_path / "reread" / "manifest.json").stat().st_mtime_ns
    source = str(tmp_path / "answers")
    reread_responses(source, student, "digest", str(tmp_path / "reread"))
    assert (tmp_path / "reread" / "manifest.json").stat().st_mtime_ns == before
    made_from = read_manifest(tmp_path / "reread").made_from
    assert made_from == MADE_FROM | {"reread_from": read_manifest(source).files["rows.jsonl"], "reread_by": "digest"}
    with pytest.raises(ArtifactError, match="reread_by: 'digest' there, 'other' now"):
        reread_responses(source, student, "other", str(tmp_path / "reread"))
    empty = write_artifact(tmp_path / "empty", "responses", [replace(row, text="\ufffd")], MADE_FROM)
    with pytest.raises(DataError, match=r"none of its responses can be read .*\(dropped_broken_text 1\)"):
        reread_responses(str(empty), student, "digest", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
