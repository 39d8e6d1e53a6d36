"""Preference data that users already have, in TRL's format, as pairs.

A row has `chosen`, `rejected` and, unless the two begin with it, `prompt`. Conversational rows hold lists of
`{"role", "content"}`. Standard rows hold plain strings; a chat model needs turns, so their prompt becomes one
user turn and their responses become assistant turns, all rendered by the chat template. (TRL itself applies no
template to standard rows.)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import file_digest
from lightning_dadpo.data.chat import render_prompt, render_response
from lightning_dadpo.data.hub import first_line, load_dataset
from lightning_dadpo.data.prompts import conversation_fault
from lightning_dadpo.data.rows import Message, PairRow, content_digest
from lightning_dadpo.errors import ConfigError, DataError

__all__ = ["PreferenceSource", "Imported", "import_preferences", "source_identity"]

SUFFIXES = (".jsonl", ".json", ".parquet")
COLUMNS = ("prompt", "chosen", "rejected")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class PreferenceSource:
    """Preference data and what of it to use.

    Attributes:
        path: a .jsonl, .json or .parquet file, or any name or folder that datasets.load_dataset takes.
        split: split of a data set; a file has none.
        name: configuration of a data set.
        max_prompt_tokens: longer prompts are dropped, never cut.
        max_response_tokens: longer responses are dropped with their pair, never cut; the end of turn counts.
        strict: refuse the first row that cannot be used, instead of dropping and counting such rows.
    """

    path: str
    split: str = "train"
    name: str | None = None
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 1024
    strict: bool = False

    def __post_init__(self) -> None:
        for key in ("max_prompt_tokens", "max_response_tokens"):
            if getattr(self, key) < 1:
                raise ConfigError(f"preferences {self.path}: {key} {getattr(self, key)}: expected at least 1")
        if self.name is not None and self.file() is not None:
            raise ConfigError(f"preferences {self.path}: a file has no configuration, but name is {self.name!r}")

    def file(self) -> Path | None:
        """The file that this names; None for what `datasets` is asked for."""
        path = Path(self.path).expanduser()
        return path if path.suffix in SUFFIXES or path.is_file() else None


@dataclass(frozen=True)
class Imported:
    """Pairs in the order of their rows, and how many rows were dropped, by reason.

    The reasons: missing_column, wrong_type, last_turn_not_assistant, prompts_differ, empty, identical, over_long.
    """

    pairs: list[PairRow]
    dropped: dict[str, int]


class _UnusableRowError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def import_preferences(source: PreferenceSource, tokenizer: Any, split_name: str) -> Imported:
    """Read preference data as pairs; each usable row gives exactly one, also where prompts repeat (trap C2).

    Args:
        source: what to read.
        tokenizer: whose chat template renders it: the student's.
        split_name: the split that the pairs are to belong to.

    Raises:
        DataError: the source cannot be read or has no usable row; a line is not JSON; the template cannot
            render a row; or, under `strict`, a row cannot be used (file:line or row number first).
    """
    pairs: list[PairRow] = []
    dropped: Counter[str] = Counter()
    for place, row in _rows(source):
        try:
            pairs.append(_pair(row, tokenizer, split_name, source))
        except _UnusableRowError as error:
            if source.strict:
                raise DataError(f"{place}: {error}") from error
            dropped[error.reason] += 1
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
    if not pairs and not dropped:
        raise DataError(f"{source.path}: holds no rows")
    if not pairs:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))
        raise DataError(f"{source.path}: none of its {dropped.total()} rows can be used ({reasons})")
    return Imported(pairs, dict(sorted(dropped.items())))


def source_identity(source: PreferenceSource) -> dict[str, str | None]:
    """What decides the source's rows: the digest of a file or folder; the name of a data set on a hub."""
    file, folder = source.file(), Path(source.path).expanduser()
    if file is not None:
        return {"sha256": file_digest(_existing(file)), "format": file.suffix}
    if not folder.is_dir():
        return {"dataset": source.path, "name": source.name, "split": source.split}
    inside = sorted(path for path in folder.rglob("*") if path.is_file())
    digest = content_digest([[path.relative_to(folder).as_posix(), file_digest(path)] for path in inside])
    return {"folder": digest, "name": source.name, "split": source.split}


# --- reading rows


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    return file


def _rows(source: PreferenceSource) -> Iterator[tuple[str, Any]]:
    """Every row with its place: file:line, or the row's number counted from 1."""
    file = source.file()
    if file is None:
        return _numbered(source.path, _dataset_rows(source))
    _existing(file)
    if file.suffix == ".parquet":
        return _numbered(str(file), _parquet_rows(file))
    if file.suffix not in SUFFIXES:
        raise DataError(f"{file}: expected a file that ends in {', '.join(SUFFIXES)}")
    if file.suffix == ".json" and file.read_bytes().lstrip()[:1] == b"[":
        return _numbered(str(file), _json(file.read_bytes(), str(file)))
    return _json_lines(file)


def _numbered(name: str, rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{name}: row {number}", row) for number, row in enumerate(rows, 1))


def _json(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # also what is not UTF-8
        raise DataError(f"{place}: not JSON ({error})") from error


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    # not through `datasets`: it takes wrongly typed rows in silence and cannot say on which line it failed
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{path}:{number}", _json(line, f"{path}:{number}")


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            present = [column for column in COLUMNS if column in file.schema_arrow.names]
            for batch in file.iter_batches(columns=present):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file ({first_line(error)})") from error


def _dataset_rows(source: PreferenceSource) -> Iterable[Any]:
    loaded = load_dataset(source.path, source.split, source.name)
    return loaded.select_columns([column for column in COLUMNS if column in loaded.column_names])  # type: ignore[no-any-return]


# --- one row


def _pair(row: Any, tokenizer: Any, split: str, source: PreferenceSource) -> PairRow:
    messages, chosen, rejected = _conversation(row)
    if (fault := conversation_fault(messages)) is not None:
        blank = any(not message.content.strip() for message in messages)
        raise _UnusableRowError("empty" if blank or not messages else "wrong_type", f"prompt: {fault}")
    for column, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise _UnusableRowError("empty", f"`{column}` has no text")
    prompt_ids = render_prompt(tokenizer, messages)
    chosen_ids, rejected_ids = (render_response(tokenizer, messages, text) for text in (chosen, rejected))
    if chosen_ids == rejected_ids:
        raise _UnusableRowError("identical", "`chosen` and `rejected` are the same tokens")
    for name, ids, most in (
        ("the prompt", prompt_ids, source.max_prompt_tokens),
        ("`chosen`", chosen_ids, source.max_response_tokens),
        ("`rejected`", rejected_ids, source.max_response_tokens),
    ):
        if len(ids) > most:
            raise _UnusableRowError("over_long", f"{name} has {len(ids)} tokens, at most {most} are allowed")
    return PairRow(
        pair_id=content_digest(prompt_ids, chosen_ids, rejected_ids),
        prompt_id=content_digest([[message.role, message.content] for message in messages]),
        split=split,
        messages=messages,
        prompt_token_ids=prompt_ids,
        chosen_token_ids=chosen_ids,
        chosen_text=chosen,
        chosen_finish_reason="stop",
        rejected_token_ids=rejected_ids,
        rejected_text=rejected,
        rejected_finish_reason="stop",
    )


def _conversation(row: Any) -> tuple[list[Message], str, str]:
    """Prompt, chosen and rejected response of a row in any of the formats."""
    if not isinstance(row, dict):
        raise _UnusableRowError("wrong_type", f"expected an object, found {type(row).__name__}")
    prompt, chosen, rejected = (row.get(column) for column in COLUMNS)
    for column in ("chosen", "rejected"):
        if row.get(column) is None:
            raise _UnusableRowError("missing_column", f"`{column}` is missing")
    if isinstance(chosen, str) and isinstance(rejected, str):
        chosen, rejected = _text(chosen, "`chosen`"), _text(rejected, "`rejected`")
        if prompt is None:
            prompt, chosen, rejected = _split_text(chosen, rejected)
        return _prompt_turns(prompt), chosen, rejected
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _split_turns(prompt, _turns(chosen, "chosen"), _turns(rejected, "rejected"))
    raise _UnusableRowError("wrong_type", "`chosen` and `rejected`: expected two strings or two lists of messages")


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _UnusableRowError("wrong_type", f"{what}: expected a string")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _UnusableRowError("wrong_type", f"{what}: holds half a surrogate pair, which is no text")
    return value


def _prompt_turns(prompt: Any) -> list[Message]:
    return [Message("user", _text(prompt, "`prompt`"))] if isinstance(prompt, str) else _turns(prompt, "prompt")


def _turns(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list):
        raise _UnusableRowError("wrong_type", f"`{column}`: expected a string or a list of messages")
    turns = []
    for number, turn in enumerate(value, 1):
        what = f"`{column}`, message {number}"
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            raise _UnusableRowError("wrong_type", f"{what}: expected an object with a role ({', '.join(ROLES)})")
        turns.append(Message(turn["role"], _text(turn.get("content"), f"{what}, content")))
    return turns


def _split_turns(prompt: Any, chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    """The response is the last turn; all before it, behind an explicit prompt if there is one, is the prompt.

    Responses that repeat the explicit prompt are understood. So are rows with a string beside whole
    conversations, where the string only repeats their first question and is passed over, as TRL does.
    """
    for column, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns:
            raise _UnusableRowError("empty", f"`{column}` has no messages")
        if turns[-1].role != "assistant":
            raise _UnusableRowError("last_turn_not_assistant", f"`{column}` ends with the {turns[-1].role}'s turn")
    repeated = prompt is None or (isinstance(prompt, str) and len(chosen) > 1)
    opening = [] if repeated else _prompt_turns(prompt)
    chosen, rejected = (turns if turns[: len(opening)] == opening else opening + turns for turns in (chosen, rejected))
    if chosen[:-1] != rejected[:-1]:
        raise _UnusableRowError("prompts_differ", "`chosen` and `rejected` differ before their last turn")
    return chosen[:-1], chosen[-1].content, rejected[-1].content


def _split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two strings where they part: at the last white space of their longest common beginning.

    Whole words stay whole: "The sky is blue" and "The sky is black" share "The sky is", not "The sky is bl".
    The white space at the split belongs to neither side. A response keeps at least one word, so a string that
    goes on where the other one ends gives its last shared word back.
    """
    if chosen == rejected:
        raise _UnusableRowError("identical", "`chosen` and `rejected` are the same text")
    both = zip(chosen, rejected, strict=False)
    parting = next((index for index, (a, b) in enumerate(both) if a != b), min(len(chosen), len(rejected)))
    shared = chosen[:parting]
    boundary = next((index for index in reversed(range(len(shared))) if shared[index].isspace()), 0)
    if not shared[:boundary].strip():
        raise _UnusableRowError("prompts_differ", "no `prompt`, and `chosen` and `rejected` begin with no common word")
    return shared[:boundary].strip(), chosen[boundary:].strip(), rejected[boundary:].strip()
