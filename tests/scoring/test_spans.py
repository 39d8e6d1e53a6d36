"""Finding the response in what servers return: by hand, token by token."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_dadpo.models.completions import Answer, _Completion
from lightning_dadpo.scoring.reading import Reading
from lightning_dadpo.scoring.spans import Misread, Vocabulary, response_log_probs
from tests.tiny import END_OF_TURN, tiny_tokenizer

START = 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def reading(tokenizer: Any) -> Reading:
    """<|im_start|>u, then the response "aé" and its end of turn; é is two tokens of half a character each."""
    return Reading("<|im_start|>u", "aé<|im_end|>", ids(tokenizer, "<|im_start|>u"), ids(tokenizer, "aé<|im_end|>"))


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def answer(
    tokens: list[str] | None,
    log_probs: list[float | None] | None = None,
    sent: int | None = 6,
    drawn: int | None = 0,
    by_id: list[Any] | None = None,
) -> Answer:
    said = (
        None
        if tokens is None
        else {"tokens": tokens, "token_logprobs": log_probs or [-float(n) for n, _ in enumerate(tokens)]}
    )
    choice = {"text": "", "logprobs": said, "prompt_logprobs": by_id}
    usage = None if sent is None else {"prompt_tokens": sent, "completion_tokens": drawn}
    return Answer(_Completion.model_validate({"choices": [choice], "usage": usage}))


def found(tokenizer: Any, reading: Reading, given: Answer) -> list[float]:
    values = response_log_probs(given, reading, Vocabulary(tokenizer))
    assert isinstance(values, list), values
    return values


def refused(tokenizer: Any, reading: Reading, given: Answer) -> Misread:
    values = response_log_probs(given, reading, Vocabulary(tokenizer))
    assert isinstance(values, Misread), values
    return values


def test_what_this_file_takes_for_granted(reading: Reading) -> None:
    assert len(reading.prompt_token_ids) == 2
    assert len(reading.response_token_ids) == 4
    assert reading.response_token_ids[-1] == END_OF_TURN


@pytest.mark.parametrize(
    ("tokens", "drawn", "expected"),
    [
        (["u", "a", "", "", ""], 0, [-1.0, -2.0, -3.0, -4.0]),  # llama-cpp-python: no start of turn, specials empty
        (["u", "a", "", "", "", "z"], 1, [-1.0, -2.0, -3.0, -4.0]),  # and a token that it drew
        (["", "u", "a", "", "", ""], 0, [-2.0, -3.0, -4.0, -5.0]),
        (["<|im_start|>", "u", "a", "�", "�", "<|im_end|>", "z"], 1, [-2.0, -3.0, -4.0, -5.0]),  # vLLM's `echo`
        (["<|im_start|>", "u", "a", "bytes:\\xc3", "bytes:\\xa9", "<|im_end|>"], 0, [-2.0, -3.0, -4.0, -5.0]),
        (["<|im_start|>", "u", "a", "Ã", "©", "<|im_end|>"], 0, [-2.0, -3.0, -4.0, -5.0]),  # as in the vocabulary
    ],
)
def test_A5_the_span_is_found_from_the_end(
    tokenizer: Any, reading: Reading, tokens: list[str], drawn: int, expected: list[float]
) -> None:
    assert found(tokenizer, reading, answer(tokens, drawn=drawn)) == expected


def test_without_counts_the_drawn_token_is_told_by_the_spelling(tokenizer: Any, reading: Reading) -> None:
    assert found(tokenizer, reading, answer(["u", "a", "", "", "", "z"], sent=None)) == [-1.0, -2.0, -3.0, -4.0]
    assert found(tokenizer, reading, answer(["u", "a", "", "", ""], sent=None)) == [-1.0, -2.0, -3.0, -4.0]


def test_where_both_would_fit_nobody_guesses(tokenizer: Any) -> None:
    cut = Reading("<|im_start|>aa", "aa", ids(tokenizer, "<|im_start|>aa"), ids(tokenizer, "aa"))
    assert found(tokenizer, cut, answer(["a", "a", "a", "a"], sent=5)) == [-2.0, -3.0]
    assert found(tokenizer, cut, answer(["a", "a", "a", "a", "a"], sent=5, drawn=1)) == [-2.0, -3.0]
    two = Reading("<|im_start|>", "<|im_end|>", [START], [END_OF_TURN])
    assert "whether its last token was sent or drawn" in refused(tokenizer, two, answer(["", ""], sent=None)).detail


@pytest.mark.parametrize(
    ("tokens", "drawn"),
    [
        (["u", "a", "", "", "", "z"], 0),  # a drawn token that is said to be sent: everything is one off
        (["u", "a", "", "", ""], 1),  # the other way round
        (["u", "b", "", "", ""], 0),  # other words
        (["v", "a", "", "", ""], 0),  # another prompt
        (["u", "aé", "", ""], 0),  # tokens joined
        (["u", "a", "", ""], 0),  # the end of turn is missing
        ([], 0),
    ],
)
def test_A4_pieces_that_are_not_the_sent_ones_are_refused(
    tokenizer: Any, reading: Reading, tokens: list[str], drawn: int
) -> None:
    assert refused(tokenizer, reading, answer(tokens, drawn=drawn)).reason == "other tokens"


def test_A7_a_missing_end_of_turn_is_not_made_up(tokenizer: Any) -> None:
    plain = Reading("<|im_start|>u", "a<|im_end|>", ids(tokenizer, "<|im_start|>u"), ids(tokenizer, "a<|im_end|>"))
    assert found(tokenizer, plain, answer(["u", "a", ""], sent=4)) == [-1.0, -2.0]
    assert refused(tokenizer, plain, answer(["u", "a"], sent=4)).reason == "other tokens"


def test_A1_another_count_of_tokens_is_refused_with_both(tokenizer: Any, reading: Reading) -> None:
    misread = refused(tokenizer, reading, answer(["u", "a", "", "", ""], sent=7))
    assert misread.reason == "another number of tokens"
    assert "counts 7 tokens where its tokenizer counts 6" in misread.detail
    assert "aé<|im_end|>" in misread.detail


@pytest.mark.parametrize("value", [None, float("-inf"), float("nan"), -9999.0, 0.5])
def test_what_is_no_log_prob_is_refused(tokenizer: Any, reading: Reading, value: float | None) -> None:
    misread = refused(tokenizer, reading, answer(["u", "a", "", "", ""], [-1.0, -1.0, value, -1.0, -1.0]))
    assert misread.reason == "a token without a log-prob"


def test_no_log_probs_at_all(tokenizer: Any, reading: Reading) -> None:
    assert refused(tokenizer, reading, answer(None)).reason == "no log-probs"


def test_ids_are_taken_at_their_word(tokenizer: Any, reading: Reading) -> None:
    expected = reading.prompt_token_ids + reading.response_token_ids
    by_id: list[Any] = [
        None,
        *({str(token): {"logprob": -float(place)}} for place, token in enumerate(expected[1:], 1)),
    ]
    assert found(tokenizer, reading, answer(None, by_id=by_id)) == [-2.0, -3.0, -4.0, -5.0]
    assert "reads 5 tokens" in refused(tokenizer, reading, answer(None, by_id=by_id[1:])).detail
    by_id[3] = {"77": {"logprob": -0.1}}
    assert "other ids at place 3: ['77']" in refused(tokenizer, reading, answer(None, by_id=by_id)).detail
