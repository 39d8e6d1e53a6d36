"""The response inside what a completions server returns: found from the end, and only where every token fits.

Servers differ in what they return. Seen with llama-cpp-python: beginning-of-sequence tokens are missing from `tokens`
wherever they stand, other special tokens and halves of characters come back as empty strings, and one token that was
drawn stands at the end. vLLM says ids (`prompt_logprobs`). So the served model's own tokenizer says what must stand
there, and an answer that reads otherwise is refused rather than guessed at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_dadpo.models.completions import Answer
from lightning_dadpo.scoring.reading import Reading

__all__ = ["Misread", "Vocabulary", "response_log_probs"]

LOWEST_LOG_PROB = -9000.0
"""vLLM writes -9999 for minus infinity."""
ROUNDING = 1e-4
LONGEST_TEXT = 120


@dataclass(frozen=True)
class Misread:
    """An answer that cannot be held to what was sent.

    Attributes:
        reason: in a few words, to count by.
        detail: what was sent and what came back.
    """

    reason: str
    detail: str


class Vocabulary:
    """How a token may be spelled by a server, id by id.

    Args:
        tokenizer: the served model's own.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids) | {
            number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._spellings: dict[int, frozenset[str]] = {}

    def is_special(self, token: int) -> bool:
        """Whether it is a special token."""
        return token in self._special

    def spellings(self, token: int) -> frozenset[str]:
        """As decoded, as in the vocabulary, as vLLM names ids, and as nothing where llama-cpp-python gives nothing."""
        if token not in self._spellings:
            decoded = str(self._tokenizer.decode([token]))
            stored = str(self._tokenizer.convert_ids_to_tokens(token))
            found = {decoded, stored, stored.replace("\N{LOWER ONE EIGHTH BLOCK}", " "), f"token_id:{token}"}
            if "\N{REPLACEMENT CHARACTER}" in decoded:  # bytes that are no whole character
                found.add(decoded.replace("\N{REPLACEMENT CHARACTER}", ""))
            if self.is_special(token):
                found.add("")
            self._spellings[token] = frozenset(found)
        return self._spellings[token]

    def fits(self, token: int, piece: str) -> bool:
        """Whether a server may mean this token by this piece of text."""
        spellings = self.spellings(token)
        return piece in spellings or (piece.startswith("bytes:") and "" in spellings)


def response_log_probs(answer: Answer, reading: Reading, vocabulary: Vocabulary) -> list[float] | Misread:
    """What the server gave to each token of the response that it was sent, in nats.

    Args:
        answer: to `to_read(text_prompt + text_response)`.
        reading: what was sent, with the ids that the served model's tokenizer makes of it.
        vocabulary: of that tokenizer.
    """
    expected = [*reading.prompt_token_ids, *reading.response_token_ids]
    if answer.prompt_tokens not in (None, len(expected)):
        return Misread(
            "another number of tokens",
            f"the server counts {answer.prompt_tokens} tokens where its tokenizer counts {len(expected)} "
            f"for {_short(reading.text_prompt + reading.text_response)}",
        )
    size = len(reading.response_token_ids)
    if answer.by_id is not None:
        found = _by_id(answer.by_id, expected, size)
    elif answer.tokens is None or answer.log_probs is None or len(answer.tokens) != len(answer.log_probs):
        return Misread("no log-probs", f"no log-prob for every token of {_short(reading.text_response)}")
    else:
        found = _by_piece(answer, expected, size, vocabulary)
    if isinstance(found, str):
        return Misread("other tokens", f"sent {_short(reading.text_response)}, {found}")
    if not all(value is not None and LOWEST_LOG_PROB < value <= ROUNDING for value in found):
        return Misread("a token without a log-prob", f"{_short(reading.text_response)} got {found}")
    return [float(value) for value in found if value is not None and math.isfinite(value)]


def _by_id(by_id: list[dict[str, float]], expected: Sequence[int], size: int) -> list[float | None] | str:
    if len(by_id) != len(expected):
        return f"the server reads {len(by_id)} tokens, its tokenizer {len(expected)}"
    for place, (token, at) in enumerate(zip(expected, by_id, strict=True)):
        if place > 0 and str(token) not in at:
            return f"the server reads other ids at place {place}: {sorted(at)} where its tokenizer has {token}"
    return [at[str(token)] for token, at in zip(expected[-size:], by_id[-size:], strict=True)]


def _by_piece(answer: Answer, expected: Sequence[int], size: int, vocabulary: Vocabulary) -> list[float | None] | str:
    """Without a count of drawn tokens there is none or one at the end; where both fit, nobody can tell."""
    assert answer.tokens is not None
    assert answer.log_probs is not None
    numbers = [0, 1] if answer.drawn_tokens is None else [answer.drawn_tokens]
    ends = [len(answer.tokens) - drawn for drawn in numbers if len(answer.tokens) - drawn >= size]
    fitting = [end for end in ends if _fits(answer.tokens[:end], expected, size, vocabulary)]
    if len(fitting) > 1:
        return "the server does not say (`usage`) whether its last token was sent or drawn"
    if not fitting:
        pieces = answer.tokens[: ends[0]][-size:] if ends else answer.tokens
        return f"the server's tokens spell {_short(''.join(pieces))} ({_short(str(pieces))})"
    return answer.log_probs[: fitting[0]][-size:]


def _fits(pieces: Sequence[str], expected: Sequence[int], size: int, vocabulary: Vocabulary) -> bool:
    """From the end, every piece is the token that stands there; a special token of the prompt may be missing."""
    left = list(pieces)
    for place, token in enumerate(reversed(expected)):
        if left and vocabulary.fits(token, left[-1]):
            left.pop()
        elif place < size or not vocabulary.is_special(token):
            return False
    return not left


def _short(text: str) -> str:
    return repr(text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT // 2]} ... {text[-LONGEST_TEXT // 2 :]}")
