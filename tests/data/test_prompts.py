from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data.prompts import PromptFile, conversation_fault, read_prompts
from lightning_dadpo.data.rows import Message
from lightning_dadpo.errors import ConfigError, DataError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def write(path: Path, *rows: Any) -> PromptFile:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return PromptFile(str(path))


def prompt(prompt_id: str, *messages: dict[str, str]) -> dict[str, Any]:
    return {"prompt_id": prompt_id, "messages": list(messages)}


def test_prompts_come_with_their_split_in_file_order_and_the_limit_takes_the_first(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", prompt("1", user("one")), prompt("2", user("two")), prompt("3", user("three")))
    heldout = write(tmp_path / "b.jsonl", prompt("4", user("four")))
    found = read_prompts({"train": PromptFile(train.path, limit=2), "heldout": heldout})
    assert [(split, row.prompt_id, row.messages[-1].content) for split, row in found] == [
        ("train", "1", "one"),
        ("train", "2", "two"),
        ("heldout", "4", "four"),
    ]


def test_multi_turn_prompts_with_a_system_message_are_taken(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "s"}, user("a"), {"role": "assistant", "content": "b"}, user("c")]
    file = write(tmp_path / "a.jsonl", prompt("1", *turns))
    ((_, row),) = read_prompts({"train": file})
    assert [message.role for message in row.messages] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("roles", "fault"),
    [
        ("", "empty"),
        ("s", "last message is the system's"),
        ("ua", "last message is the assistant's"),
        ("a", "message 1 is the assistant's, expected the user's"),
        ("uu", "message 2 is the user's, expected the assistant's"),
        ("sua", "last message is the assistant's"),
        ("suu", "message 3 is the user's, expected the assistant's"),
        ("saau", "message 2 is the assistant's"),
        ("su", None),
        ("uau", None),
        ("us", "message 2 is a system message"),
        ("suausu", "message 5 is a system message"),
    ],
)
def test_roles_alternate_and_the_user_has_the_last_word(roles: str, fault: str | None) -> None:
    names: dict[str, Any] = {"s": "system", "u": "user", "a": "assistant"}
    found = conversation_fault([Message(names[role], "text") for role in roles])
    assert found is None if fault is None else fault in str(found)


def test_a_message_of_blanks_is_refused_with_file_and_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", prompt("1", user("one")), prompt("2", user(" \n")))
    with pytest.raises(DataError, match=r"a\.jsonl:2: message 1 \(user\) has no text"):
        read_prompts({"train": file})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "a.jsonl:1: "),
        ('{"prompt_id": "1"}', "a.jsonl:1: `messages`"),
        ('{"prompt_id": 1, "messages": []}', "a.jsonl:1: `prompt_id`"),
        ('{"prompt_id": "1", "messages": [{"role": "tool", "content": "x"}]}', "a.jsonl:1: `messages.0.role`"),
        ('{"prompt_id": " ", "messages": [{"role": "user", "content": "x"}]}', "a.jsonl:1: `prompt_id`"),
        ("", "holds no prompts"),
    ],
)
def test_bad_lines_are_one_line_errors_that_name_the_place(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line, "utf-8")
    with pytest.raises(DataError) as raised:
        read_prompts({"train": PromptFile(str(path))})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_prompts({"train": PromptFile(str(tmp_path / "nowhere.jsonl"))})


def test_a_limit_larger_than_the_file_names_both_numbers(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", prompt("1", user("one")))
    with pytest.raises(ConfigError, match="limit 5 is more than the 1 prompts"):
        read_prompts({"train": PromptFile(file.path, limit=5)})
    with pytest.raises(ConfigError, match="limit 0: expected at least 1"):
        PromptFile(file.path, limit=0)


@pytest.mark.parametrize("second_split", ["train", "heldout"])
def test_a_prompt_id_names_one_prompt_inside_a_file_and_across_files(tmp_path: Path, second_split: str) -> None:
    rows = prompt("1", user("one")), prompt("1", user("two"))
    if second_split == "train":
        files = {"train": write(tmp_path / "a.jsonl", *rows)}
    else:
        files = {"train": write(tmp_path / "a.jsonl", rows[0]), "heldout": write(tmp_path / "b.jsonl", rows[1])}
    with pytest.raises(DataError, match=r"prompt_id '1' stands already at .*a\.jsonl:1"):
        read_prompts(files)


@pytest.mark.parametrize("copy", ["What is a fjord?", "what is  a FJORD?\n"])
def test_E1_a_heldout_prompt_that_is_trained_on_is_refused(tmp_path: Path, copy: str) -> None:
    train = write(tmp_path / "a.jsonl", prompt("1", user("Hello")), prompt("2", user("What is a fjord?")))
    heldout = write(tmp_path / "b.jsonl", prompt("3", user("Bye")), prompt("4", user(copy)))
    with pytest.raises(DataError) as raised:
        read_prompts({"train": train, "heldout": heldout})
    assert "b.jsonl:2" in str(raised.value)
    assert "a.jsonl:2" in str(raised.value)


def test_E1_a_copy_behind_the_limit_is_found_too(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", prompt("1", user("Hello")), prompt("2", user("Same")))
    heldout = write(tmp_path / "b.jsonl", prompt("3", user("Same")))
    with pytest.raises(DataError, match="stands in split 'train' too"):
        read_prompts({"train": PromptFile(train.path, limit=1), "heldout": heldout})


def test_C2_a_conversation_may_stand_twice_within_a_split_and_neither_is_lost(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", prompt("1", user("Same")), prompt("2", user("Same")))
    assert [row.prompt_id for _, row in read_prompts({"train": file})] == ["1", "2"]


def test_the_same_last_question_in_another_conversation_is_another_prompt(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", prompt("1", user("Why?")))
    longer = prompt("2", user("Fish swim."), {"role": "assistant", "content": "Yes."}, user("Why?"))
    assert len(read_prompts({"train": train, "heldout": write(tmp_path / "b.jsonl", longer)})) == 2
