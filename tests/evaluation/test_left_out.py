from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data.artifacts import draft, file_digest
from lightning_dadpo.data.overlap import Overlap
from lightning_dadpo.data.rows import Message, PairRow, ResponseRow, RowWriter
from lightning_dadpo.errors import ArtifactError, ConfigError, DataError
from lightning_dadpo.evaluation.left_out import leave_out, training_digests

CALLED = "prompts of split 'heldout'"
ASKED = {"h0": [Message("user", "How do I boil an egg?")], "h1": [Message("user", "Why is the sea salty?")]}


def prompt_file(path: Path, *texts: str) -> str:
    rows = [{"prompt_id": f"t{at}", "messages": [{"role": "user", "content": text}]} for at, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def responses(folder: Path, *asked: tuple[str, str]) -> str:
    with draft(folder, "responses", {}) as work, RowWriter(work.path / "rows.jsonl") as writer:
        for at, (split, text) in enumerate(asked):
            writer.write(ResponseRow(f"r{at}", split, [Message("user", text)], [1], [2], "", "stop", None))
    return str(folder)


def pairs(folder: Path, *asked: tuple[str, str]) -> str:
    with draft(folder, "pairs", {}) as work, RowWriter(work.path / "rows.jsonl") as writer:
        for at, (split, text) in enumerate(asked):
            turns = [Message("user", text)]
            writer.write(PairRow(f"{at}", f"p{at}", split, turns, [1], [2], "", "stop", [3], "", "length"))
    return str(folder)


def test_E1_a_prompt_file_is_read_and_one_line_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = prompt_file(tmp_path / "train.jsonl", "Hello", "how do i boil an egg")
    assert leave_out(ASKED, [trained], CALLED) == {"h0": Overlap("exact", "t1", 1.0)}
    assert capsys.readouterr().out == (
        "left out 1 of 2 prompts of split 'heldout' that stand in the training data (1 exactly, 0 nearly): "
        "h0: the same words as t1\n"
    )


@pytest.mark.parametrize("make", [responses, pairs])
def test_E1_of_an_artefact_the_training_split_counts(tmp_path: Path, make: Any) -> None:
    folder = make(tmp_path / "made", ("heldout", "Why is the sea salty?"), ("train", "Please: how do I boil an egg?"))
    found = leave_out(ASKED, [folder], CALLED)
    assert [(name, one.reason, one.with_id[1:]) for name, one in found.items()] == [("h0", "near", "1")]


def test_several_sources_are_one(tmp_path: Path) -> None:
    sources = [prompt_file(tmp_path / "a.jsonl", "Hello"), responses(tmp_path / "b", ("train", "why is the sea salty"))]
    assert list(leave_out(ASKED, sources, CALLED)) == ["h1"]


def test_nothing_is_read_or_said_when_nothing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave_out(ASKED, [], CALLED) == {}
    assert capsys.readouterr().out == ""


def test_that_none_was_found_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave_out(ASKED, [prompt_file(tmp_path / "train.jsonl", "Hello")], CALLED) == {}
    assert capsys.readouterr().out == "none of the 2 prompts of split 'heldout' stands in the training data\n"


def test_E1_no_prompt_left_is_refused(tmp_path: Path) -> None:
    trained = prompt_file(tmp_path / "train.jsonl", *(turns[0].content for turns in ASKED.values()))
    with pytest.raises(DataError) as caught:
        leave_out(ASKED, [trained], CALLED)
    assert str(caught.value) == (
        f"trained_on {trained}: all 2 prompts of split 'heldout' stand there too (h0: the same words as t0); "
        "expected some that were not trained on"
    )


def test_training_data_is_named_by_its_content(tmp_path: Path) -> None:
    file = prompt_file(tmp_path / "train.jsonl", "Hello")
    folder = responses(tmp_path / "made", ("train", "Hello"))
    digests = [file_digest(tmp_path / "train.jsonl"), file_digest(tmp_path / "made" / "rows.jsonl")]
    assert training_digests([file, folder]) == digests


def test_refuses_what_is_no_training_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trained_on nowhere: expected a prompt file \(\.jsonl\) or a folder"):
        training_digests(["nowhere"])
    with draft(tmp_path / "scores", "scores", {}):
        pass
    with pytest.raises(ArtifactError, match="scores: holds scores, expected responses or pairs"):
        training_digests([str(tmp_path / "scores")])
    with pytest.raises(DataError, match="made: no row of split 'train', expected what was trained on"):
        leave_out(ASKED, [responses(tmp_path / "made", ("heldout", "Hello"))], CALLED)
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"bad\.jsonl:1: `prompt_id`: Field required"):
        leave_out(ASKED, [str(tmp_path / "bad.jsonl")], CALLED)
