"""Prompt files: conversations that wait for an answer, one a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_dadpo.data.rows import Message, PromptRow, parse_row
from lightning_dadpo.errors import ConfigError, DataError

__all__ = ["PromptFile", "conversation_fault", "read_prompts"]


@dataclass(frozen=True)
class PromptFile:
    """A JSONL file of prompts and how much of it to use.

    Attributes:
        path: the file; each line an object with `prompt_id`, `messages` and, if one likes, `source`.
        limit: use the first so many prompts; all of them by default.
    """

    path: str
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"prompts {self.path}: limit {self.limit}: expected at least 1")


def conversation_fault(messages: Sequence[Message]) -> str | None:
    """What is wrong with a conversation that should wait for an answer; None when nothing is."""
    if not messages:
        return "the conversation is empty"
    for number, message in enumerate(messages, 1):
        if not message.content.strip():
            return f"message {number} ({message.role}) has no text"
    first_turn = 1 if messages[0].role == "system" else 0
    for number, turn in enumerate(messages[first_turn:], first_turn + 1):
        if turn.role == "system":
            return f"message {number} is a system message; only the first one may be"
        expected = ("user", "assistant")[(number - first_turn - 1) % 2]
        if turn.role != expected:
            return f"message {number} is the {turn.role}'s, expected the {expected}'s: turns alternate, the user begins"
    if messages[-1].role != "user":
        return f"the last message is the {messages[-1].role}'s, expected the user's"
    return None


def read_prompts(files: Mapping[str, PromptFile]) -> list[tuple[str, PromptRow]]:
    """Every prompt with the name of its split, in the order of the files and of their lines.

    A whole file is checked, also what stands behind its limit. The same conversation may stand twice within
    one split, but not in two: a held-out prompt that was trained on proves nothing (trap E1). Conversations
    are compared without regard to case and spacing.

    Raises:
        ConfigError: a limit is larger than its file.
        DataError: a line is no valid prompt, or repeats one that must not be repeated (file:line first).
    """
    prompts: list[tuple[str, PromptRow]] = []
    place_of_id: dict[str, str] = {}
    place_of_text: dict[tuple[tuple[str, str], ...], tuple[str, str]] = {}
    for split, file in files.items():
        found = list(_read(file))
        for place, row in found:
            if row.prompt_id in place_of_id:
                raise DataError(f"{place}: prompt_id {row.prompt_id!r} stands already at {place_of_id[row.prompt_id]}")
            place_of_id[row.prompt_id] = place
            other_split, other_place = place_of_text.setdefault(_text_key(row.messages), (split, place))
            if other_split != split:
                raise DataError(
                    f"{place}: this conversation of split {split!r} stands in split {other_split!r} too ({other_place})"
                )
        prompts += [(split, row) for _, row in found[: file.limit]]
    return prompts


def _read(file: PromptFile) -> Iterator[tuple[str, PromptRow]]:
    path = Path(file.path).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a JSONL file of prompts")
    count = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                place = f"{path}:{number}"
                row = parse_row(line, PromptRow, place)
                if not row.prompt_id.strip():
                    raise DataError(f"{place}: `prompt_id` is empty")
                if (fault := conversation_fault(row.messages)) is not None:
                    raise DataError(f"{place}: {fault}")
                count += 1
                yield place, row
    if count == 0:
        raise DataError(f"{path}: holds no prompts")
    if file.limit is not None and file.limit > count:
        raise ConfigError(f"{path}: limit {file.limit} is more than the {count} prompts of the file")


def _text_key(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((message.role, " ".join(message.content.casefold().split())) for message in messages)
