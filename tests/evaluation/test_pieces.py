"""Tokens against text: a character that several tokens spell must not shift the numbers beside it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_dadpo.data.analysis import Unit
from lightning_dadpo.evaluation.pieces import spell
from tests.tiny import END_OF_TURN, tiny_tokenizer


@pytest.fixture(scope="module")
def by_bytes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def across() -> Any:
    """Byte-level tokens that end one character and begin the next: [E2 82] [AC E2] [82 AC] spell two euro signs."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    first, second, third = _letters("€")
    merged = [first + second, third + first, second + third]
    core = Tokenizer(models.WordLevel({token: index for index, token in enumerate([*letters, *merged])}, letters[0]))
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.fixture(scope="module")
def with_spaces() -> Any:
    """A tokenizer in the manner of SentencePiece: a text's first space is not printed, rare bytes are tokens <0xNN>."""
    tokens = ["<unk>", "<s>", "</s>", "▁Hi", "▁there", "!", "<0xE2>", "<0x82>", "<0xAC>"]
    core = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, "<unk>"))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens([AddedToken(token, special=True) for token in tokens[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _letters(text: str) -> list[str]:
    """The letters that byte-level tokenizers write the bytes of a text with."""
    core = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ((letters, _),) = core.pre_tokenize_str(text)
    return list(letters)


def ids_of(data: bytes) -> list[int]:
    """One token a byte, also where the bytes are no text: <|im_end|> and the like are ids 0 to 2."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letter = {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    return [3 + letters.index(letter[byte]) for byte in data]


def test_whole_characters_with_the_number_of_their_tokens(by_bytes: Any) -> None:
    token_ids = ids_of("aé€😀b".encode())
    assert len(token_ids) == 11
    assert spell(by_bytes, [1], token_ids) == [
        Unit("a", 1, "text"), Unit("é", 2, "text"), Unit("€", 3, "text"), Unit("😀", 4, "text"), Unit("b", 1, "text"),
    ]  # fmt: skip


def test_bytes_that_are_no_character_are_marked_and_shift_nothing(by_bytes: Any) -> None:
    token_ids = [*ids_of(b"a\xff\xe2\x82b"), END_OF_TURN, *ids_of("é".encode() + b"\xf0\x9f")]
    assert spell(by_bytes, [1], token_ids) == [
        Unit("a", 1, "text"),
        Unit("\ufffd", 1, "broken"), Unit("\ufffd", 1, "broken"), Unit("\ufffd", 1, "broken"),
        Unit("b", 1, "text"),
        Unit("<|im_end|>", 1, "special"),
        Unit("é", 2, "text"),
        Unit("\ufffd", 1, "broken"), Unit("\ufffd", 1, "broken"),
    ]  # fmt: skip


def test_a_special_token_between_two_halves_keeps_them_apart(by_bytes: Any) -> None:
    first, second = ids_of("é".encode())
    kinds = [unit.kind for unit in spell(by_bytes, [1], [first, END_OF_TURN, second])]
    assert kinds == ["broken", "special", "broken"]


def test_text_that_spells_a_special_token_is_text(by_bytes: Any) -> None:
    units = spell(by_bytes, [1], ids_of(b"<|im_end|>"))
    assert "".join(unit.text for unit in units) == "<|im_end|>"
    assert {unit.kind for unit in units} == {"text"}


@pytest.mark.parametrize("seed", range(8))
def test_every_token_is_in_one_unit_and_the_text_is_the_decoded_one(by_bytes: Any, seed: int) -> None:
    noise = random.Random(seed)
    data = "".join(noise.choice("aé€😀 \n<漢") for _ in range(40)).encode()
    units = spell(by_bytes, [1], ids_of(data))
    assert sum(unit.tokens for unit in units) == len(data)
    assert "".join(unit.text for unit in units) == data.decode()
    noisy = bytes(noise.randrange(256) for _ in range(60))
    assert sum(unit.tokens for unit in spell(by_bytes, [1], ids_of(noisy))) == 60


def test_tokens_across_characters_are_shown_together(across: Any) -> None:
    size = len(across)
    units = spell(across, [], [across.convert_tokens_to_ids("A"), size - 3, size - 2, size - 1])
    assert units == [Unit("A", 1, "text"), Unit("€€", 3, "text")]


def test_the_space_before_a_word_is_kept(with_spaces: Any) -> None:
    hi, there, euro = 3, 4, [6, 7, 8]
    assert spell(with_spaces, [5], [hi, there, *euro, 5, 2]) == [
        Unit(" Hi", 1, "text"), Unit(" there", 1, "text"), Unit("€", 3, "text"), Unit("!", 1, "text"),
        Unit("</s>", 1, "special"),
    ]  # fmt: skip
    assert spell(with_spaces, [1, 3], [6, there]) == [Unit("\ufffd", 1, "broken"), Unit(" there", 1, "text")]


def test_an_empty_response_has_no_units(by_bytes: Any) -> None:
    assert spell(by_bytes, [1], []) == []
