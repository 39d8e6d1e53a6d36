"""Which tokens of a response spell which characters.

A token is bytes, not letters: one emoji may be three tokens. Decoded one at a time they would be marks of broken bytes,
and the text would be shifted against the numbers that stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_dadpo.data.analysis import Unit

__all__ = ["spell"]

Tokenizer = Any
BROKEN = "\ufffd"
MOST_TOKENS = 8
"""A character has four bytes at most, so four tokens; more where one token ends a character and begins another."""


def spell(tokenizer: Tokenizer, prompt_token_ids: Sequence[int], token_ids: Sequence[int]) -> list[Unit]:
    """A response as units of whole characters, in order; every token is in exactly one of them.

    Args:
        tokenizer: of the model that wrote it.
        prompt_token_ids: what stands before; some tokenizers drop a space at the very beginning of a text.
        token_ids: the response.
    """
    special = _special_ids(tokenizer)
    before = list(prompt_token_ids[-1:])
    units: list[Unit] = []
    start = 0
    while start < len(token_ids):
        if token_ids[start] in special:
            units.append(Unit(str(tokenizer.convert_ids_to_tokens(int(token_ids[start]))), 1, "special"))
            start += 1
            continue
        unit = _next_unit(tokenizer, before, _until_special(token_ids[start : start + MOST_TOKENS], special))
        if unit.kind == "text":
            before = list(token_ids[start : start + unit.tokens])
        units.append(unit)
        start += unit.tokens
    return units


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def _until_special(token_ids: Sequence[int], special: frozenset[int]) -> Sequence[int]:
    end = next((place for place, token in enumerate(token_ids) if token in special), len(token_ids))
    return token_ids[:end]


def _next_unit(tokenizer: Tokenizer, before: list[int], token_ids: Sequence[int]) -> Unit:
    """The fewest tokens from the first on that spell whole characters; the first alone, marked, if none do."""
    for count in range(1, len(token_ids) + 1):
        text = _behind(tokenizer, before, list(token_ids[:count]))
        if BROKEN not in text:
            return Unit(text, count, "text")
    return Unit(BROKEN, 1, "broken")


def _behind(tokenizer: Tokenizer, before: list[int], token_ids: list[int]) -> str:
    known, whole = _decode(tokenizer, before), _decode(tokenizer, before + token_ids)
    return whole[len(known) :] if whole.startswith(known) and BROKEN not in known else _decode(tokenizer, token_ids)


def _decode(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
