"""Conversations to token ids through a tokenizer's chat template.

The template's own text may hold special tokens; what people and models wrote never becomes one (trap A13).
Tokenizers are passed in, so that this room needs no transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from lightning_dadpo.data.rows import Message
from lightning_dadpo.errors import DataError

__all__ = [
    "render_prompt", "render_conversation", "render_response", "render_turn", "RenderedTurn", "special_token_in",
    "is_broken", "UnplacedTextError",
]  # fmt: skip

Tokenizer = Any
Covers = dict[str, str]
"""Private character -> the special token's spelling that it stands for while the template is at work."""


class UnplacedTextError(DataError):
    """The chat template has no place for this one conversation; another one may do."""


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation up to and with the assistant header: what every model reads before it answers.

    They equal `tokenizer.apply_chat_template(..., add_generation_prompt=True)`'s, except where some content
    spells a special token: that text becomes ordinary tokens. Nothing is added in front (trap A1): a
    beginning-of-sequence token is there once, and only if the template prints it.

    Raises:
        DataError: the tokenizer has no chat template, or the template refuses the conversation (`UnplacedTextError`).
    """
    covers = _covers(tokenizer, [message.content for message in messages])
    return _encode(tokenizer, _render(tokenizer, messages, covers, header=True), covers)


def render_conversation(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of a whole conversation, all that the template prints behind its last turn included.

    Content that spells a special token becomes ordinary tokens, and nothing is added in front, as in `render_prompt`.

    Raises:
        DataError: as `render_prompt`.
    """
    covers = _covers(tokenizer, [message.content for message in messages])
    return _encode(tokenizer, _render(tokenizer, messages, covers, header=False), covers)


def render_response(
    tokenizer: Tokenizer, messages: Sequence[Message], response_text: str, finished: bool = True
) -> list[int]:
    """Ids of an assistant turn that this model did not sample: imported data, or another model's words.

    The turn is what the template prints between the assistant header and its end-of-turn token, that token
    included, once, and nothing behind it (traps A2, A12); a turn that was cut has no such token (trap A7). No
    token reaches across the boundary to the prompt (trap A4). What the template does to the content, such as
    trimming it, is done here too, for the model has only ever seen it done.

    Args:
        tokenizer: with a chat template.
        messages: the prompt.
        response_text: what the assistant said.
        finished: whether it ended its turn; no when a cap on the length cut it.

    Raises:
        UnplacedTextError: the template refuses this conversation, or begins a finished turn otherwise than with
            its own assistant header.
        DataError: the template does not end an assistant turn with a special token, or there is none.
    """
    return render_turn(tokenizer, messages, response_text, finished).response_token_ids


def is_broken(text: str) -> bool:
    """Whether decoded text holds U+FFFD, which stands for bytes that were no UTF-8: it is not what was sampled."""
    return "\N{REPLACEMENT CHARACTER}" in text


def special_token_in(tokenizer: Tokenizer, texts: Sequence[str]) -> str | None:
    """A special token of this tokenizer that one of the texts spells, if any does (trap A13)."""
    return next((token for token in _special_tokens(tokenizer) if any(token in text for text in texts)), None)


@dataclass(frozen=True)
class RenderedTurn:
    """A prompt and the assistant's turn behind it, as the template prints them.

    Attributes:
        prompt_text: up to and with the assistant header. response_text: the turn, with its end if it was finished.
            Whoever reads the two as text takes a special token's spelling for the token (see `special_token_in`).
        prompt_token_ids: what `render_prompt` gives. response_token_ids: what `render_response` gives.
    """

    prompt_text: str
    response_text: str
    prompt_token_ids: list[int]
    response_token_ids: list[int]


def render_turn(
    tokenizer: Tokenizer, messages: Sequence[Message], response_text: str, finished: bool = True
) -> RenderedTurn:
    """Prompt and response at once, as text and as ids; see `render_response`.

    Raises:
        UnplacedTextError, DataError: as `render_response`.
    """
    texts = [*(message.content for message in messages), response_text]
    covers = _covers(tokenizer, texts)
    probe = next(_private_characters([*texts, *covers]))
    prompt = _render(tokenizer, messages, covers, header=True)
    answered, probed = (
        _render(tokenizer, [*messages, Message("assistant", text)], covers, header=False)
        for text in (response_text, probe)
    )
    _, found, tail = probed.partition(probe)
    ending = _end_of_turn(tokenizer, tail)
    if not (found and answered.startswith(prompt) and answered.endswith(tail)):
        raise UnplacedTextError(
            "the chat template prints a finished assistant turn otherwise than its assistant header followed by the "
            "content, so imported responses cannot be placed; use a template for plain chat"
        )
    response = answered[len(prompt) : len(answered) - len(tail)] + (ending if finished else "")
    prompt_ids = _encode(tokenizer, prompt, covers)
    return RenderedTurn(
        _uncover(prompt, covers),
        _uncover(response, covers),
        prompt_ids,
        _encode_behind(tokenizer, prompt, prompt_ids, response, covers),
    )


def _end_of_turn(tokenizer: Tokenizer, tail: str) -> str:
    """What the template prints from the end of the content to the end-of-turn token: that token, after blanks at most.

    It is read from the template, never from `eos_token` or `pad_token` (trap A11): chat templates end turns
    with tokens that are neither.
    """
    blanks = tail[: len(tail) - len(tail.lstrip())]
    for token in _special_tokens(tokenizer):
        if tail.startswith(token, len(blanks)):
            return blanks + token
    raise DataError(
        f"the chat template prints {tail[:20]!r} after an assistant turn, expected a single end-of-turn token such as "
        f"the tokenizer's eos token {tokenizer.eos_token!r}"
    )


def _render(tokenizer: Tokenizer, messages: Sequence[Message], covers: Covers, *, header: bool) -> str:
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template; "
            "put a chat_template.jinja beside its tokenizer.json"
        )
    turns = [{"role": message.role, "content": _cover(message.content, covers)} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=header, tokenize=False))
    except TemplateError as error:
        raise UnplacedTextError(f"the chat template refuses the conversation: {error}") from error


def _encode(tokenizer: Tokenizer, text: str, covers: Covers) -> list[int]:
    """Ids of rendered text; a stretch between two special tokens that held covered text knows no special tokens.

    Text is handed over in the longest pieces possible: some tokenizers treat the start of a piece differently.
    """
    if not any(character in text for character in covers):
        return list(tokenizer.encode(text, add_special_tokens=False))
    ids: list[int] = []
    waiting = ""
    for piece in re.split(f"({'|'.join(map(re.escape, _special_tokens(tokenizer)))})", text):
        if not any(character in piece for character in covers):
            waiting += piece
            continue
        ids += tokenizer.encode(waiting, add_special_tokens=False)
        waiting = ""
        ids += tokenizer.encode(_uncover(piece, covers), add_special_tokens=False, split_special_tokens=True)
    return ids + list(tokenizer.encode(waiting, add_special_tokens=False))


def _encode_behind(
    tokenizer: Tokenizer, prompt: str, prompt_ids: list[int], response: str, covers: Covers
) -> list[int]:
    """Ids of a response that stands behind a prompt.

    Some tokenizers (SentencePiece's) put a space before whatever they are given first, and here that is not the
    response. So both are encoded, and the prompt's ids taken off; where a token would reach across the boundary
    (trap A4), the response is encoded apart.
    """
    together = _encode(tokenizer, prompt + response, covers)
    if together[: len(prompt_ids)] == prompt_ids:
        return together[len(prompt_ids) :]
    return _encode(tokenizer, response, covers)


def _special_tokens(tokenizer: Tokenizer) -> list[str]:
    """Spellings of all special tokens, longest first, so that one that begins another does not hide it."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(added | set(tokenizer.all_special_tokens), key=lambda token: (-len(token), token))


def _covers(tokenizer: Tokenizer, texts: Sequence[str]) -> Covers:
    spelled = [token for token in _special_tokens(tokenizer) if any(token in text for text in texts)]
    return dict(zip(_private_characters(texts), spelled, strict=False))


def _private_characters(texts: Iterable[str]) -> Iterator[str]:
    """Characters of Unicode's private plane 15 that stand in none of the texts."""
    taken = set().union(*texts)
    return (character for character in map(chr, range(0xF0000, 0xFFFFE)) if character not in taken)


def _cover(text: str, covers: Covers) -> str:
    for character, token in covers.items():
        text = text.replace(token, character)
    return text


def _uncover(text: str, covers: Covers) -> str:
    for character, token in covers.items():
        text = text.replace(character, token)
    return text
