"""The rows that artefacts hold, as dataclasses; JSONL on disk, validated line by line.

JSONL rather than Parquet because a stage appends to it, a killed stage goes on behind the last whole line, a
person can read it, and `repr` keeps every digit of a float64.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from lightning_dadpo.errors import DataError

__all__ = [
    "Message", "PromptRow", "ResponseRow", "PairRow", "ScoreRow", "ResponseScoreRow", "FinishReason",
    "content_digest", "response_id", "read_rows", "RowWriter",
]  # fmt: skip

Row = TypeVar("Row")
FinishReason = Literal["stop", "length"]
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, config=STRICT)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, config=STRICT)
class PromptRow:
    """A conversation that waits for an answer: the last turn is the user's."""

    prompt_id: str
    messages: list[Message]
    source: str = ""


@dataclass(frozen=True, config=STRICT)
class ResponseRow:
    """One sampled response.

    Attributes:
        prompt_id: the prompt it answers.
        split: which part of the data the prompt belongs to: train, validation or heldout.
        messages: the prompt as people read it.
        prompt_token_ids: the prompt as the model read it, up to and with the assistant header.
        token_ids: what the model sampled, its end-of-turn token included when it sampled one.
        text: the response decoded, without special tokens.
        finish_reason: "stop" when the model ended its turn, "length" when the cap cut it.
        log_prob: log pi(y|x) of the raw model (temperature 1, nothing cut off) in nats, as the sampler saw it;
            None where it could not see it, as behind a server.
        candidate: its number among the responses that this model gave to this prompt, from 0.
    """

    prompt_id: str
    split: str
    messages: list[Message]
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    log_prob: float | None
    candidate: int = 0


@dataclass(frozen=True, config=STRICT)
class PairRow:
    """A prompt with a chosen and a rejected response.

    Attributes:
        pair_id: digest of the three id lists; scores are looked up by it, so they cannot land on another row.
        prompt_id: the prompt's name.
        split: train, validation or heldout.
        messages: the prompt as people read it.
        prompt_token_ids: the prompt as the models read it.
        chosen_token_ids: y_w. chosen_text: the same, decoded. chosen_finish_reason: how it ended.
        rejected_token_ids: y_l. rejected_text: the same, decoded. rejected_finish_reason: how it ended.
        chosen_log_prob: raw log-prob in nats that the sampler of y_w saw; None for imported data, and behind a server.
        rejected_log_prob: the same for y_l.
    """

    pair_id: str
    prompt_id: str
    split: str
    messages: list[Message]
    prompt_token_ids: list[int]
    chosen_token_ids: list[int]
    chosen_text: str
    chosen_finish_reason: FinishReason
    rejected_token_ids: list[int]
    rejected_text: str
    rejected_finish_reason: FinishReason
    chosen_log_prob: float | None = None
    rejected_log_prob: float | None = None


@dataclass(frozen=True, config=STRICT)
class ScoreRow:
    """What one anchor gives to one pair: two sums in nats and the tokens in them."""

    pair_id: str
    chosen_log_prob: float
    chosen_num_tokens: int
    rejected_log_prob: float
    rejected_num_tokens: int


@dataclass(frozen=True, config=STRICT)
class ResponseScoreRow:
    """What one model gives to one response, whoever sampled it.

    Attributes:
        response_id: digest of the prompt's and the response's ids.
        log_prob: log pi(y|x) of the raw model, nats. num_tokens: the tokens in it.
    """

    response_id: str
    log_prob: float
    num_tokens: int


def content_digest(*parts: Any) -> str:
    """Sixteen hex digits that change when any part changes; parts are whatever JSON can write."""
    return sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def response_id(row: ResponseRow) -> str:
    """What a response is called: the same tokens behind the same prompt are the same response."""
    return content_digest(row.prompt_token_ids, row.token_ids)


@lru_cache
def _adapter(row_type: Any) -> TypeAdapter[Any]:
    return TypeAdapter(row_type)


def parse_row(line: str | bytes, row_type: type[Row], place: str) -> Row:
    """One line of JSON as a row.

    Raises:
        DataError: naming `place`, the field and what was expected there.
    """
    try:
        row: Row = _adapter(cast(Any, row_type)).validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{place}: {f'`{field}`: ' if field else ''}{first['msg']}") from error
    return row


def read_rows(path: str | Path, row_type: type[Row]) -> Iterator[Row]:
    """The rows of a JSONL file, one at a time; blank lines are skipped.

    Raises:
        DataError: the file is missing, or a line is not such a row (file:line first).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield parse_row(line, row_type, f"{path}:{number}")


class RowWriter:
    """Appends rows to a JSONL file; reopened after a kill, it drops a torn last line and goes on behind it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and path.stat().st_size:
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        self._file = path.open("a", encoding="utf-8")

    def write(self, *rows: Any) -> None:
        """Write rows and hand them to the operating system."""
        for row in rows:
            self._file.write(json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
