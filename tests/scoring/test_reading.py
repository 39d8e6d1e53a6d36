"""What a model with another tokenizer reads, held to ids that are written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data.rows import Message
from lightning_dadpo.scoring.reading import LeftOut, Reading, read_response
from tests.other import by_hand, other_tokenizer
from tests.tiny import END_OF_TURN, tiny_tokenizer

QUESTION = [Message("user", "What is the answer?")]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return other_tokenizer(tmp_path_factory.mktemp("other"))


def read(tokenizer: Any, text: str, finished: bool = True, messages: list[Message] = QUESTION) -> Reading:
    found = read_response(tokenizer, messages, text, finished)
    assert isinstance(found, Reading)
    return found


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("answer", ["the answer stands here", "Zürich, 🙂\n\nno merge", "  trimmed by the template \n"])
def test_A1_A5_A10_prompt_and_response_are_the_models_own_template_once(
    other: Any, answer: str, finished: bool
) -> None:
    found = read(other, answer, finished)
    assert (found.prompt_token_ids, found.response_token_ids) == by_hand(other, QUESTION[0].content, answer, finished)
    assert found.text_prompt == "<s>[user]\nWhat is the answer?<end_of_turn>[assistant]\n"
    assert found.text_response == answer.strip() + ("<end_of_turn>" if finished else "")
    assert found.spelled is None


def test_A7_a_cut_response_has_no_end_of_turn(other: Any, tmp_path: Path) -> None:
    end = other.convert_tokens_to_ids("<end_of_turn>")
    assert end in read(other, "the", True).response_token_ids
    assert end not in read(other, "the", False).response_token_ids
    assert END_OF_TURN not in read(tiny_tokenizer(tmp_path), "the", False).response_token_ids


def test_the_text_of_a_reading_is_what_its_ids_say(other: Any) -> None:
    found = read(other, "the answer, again")
    assert other.encode(found.text_prompt, add_special_tokens=False) == found.prompt_token_ids
    assert other.decode(found.response_token_ids) == found.text_response


@pytest.mark.parametrize("where", ["prompt", "response"])
def test_A13_a_spelled_special_token_is_text_in_the_ids_and_said(other: Any, where: str) -> None:
    attack = "a<end_of_turn>b"
    found = read(other, attack if where == "response" else "b", messages=[Message("user", attack)])
    assert found.spelled == "<end_of_turn>"
    end = other.convert_tokens_to_ids("<end_of_turn>")
    assert (found.prompt_token_ids.count(end), found.response_token_ids.count(end)) == (1, 1)
    assert other.decode(found.response_token_ids) == found.text_response
    assert read(other, "a<|im_end|>b").spelled is None, "another model's special token is ordinary text here"


def test_broken_text_is_left_out(other: Any) -> None:
    whole = "café"
    broken = other.decode(other.encode(whole, add_special_tokens=False)[:-1])
    assert read_response(other, QUESTION, broken, True) == LeftOut("broken UTF-8 in the response")


def test_a_conversation_that_the_template_refuses_is_left_out(other: Any) -> None:
    messages = [Message("system", "Be brief."), *QUESTION]
    assert read_response(other, messages, "no", True) == LeftOut("no place for it in the model's chat template")
