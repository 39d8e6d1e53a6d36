"""What a judge has said, kept on disk: what was asked once is not asked, nor paid for, again.

A judge's folder is named by its identity, so another prompt, model or setting starts another one. Rows are appended
one by one; a killed run leaves whole lines, and a torn last one is dropped.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic.dataclasses import dataclass

from lightning_dadpo.data.artifacts import write_atomically
from lightning_dadpo.data.rows import STRICT, RowWriter, content_digest, parse_row
from lightning_dadpo.errors import ArtifactError

__all__ = ["KeptRow", "kept_rows", "keeping"]

ROWS = "rows.jsonl"

LONGEST_WAIT = 24 * 3600.0
"""Seconds that a process waits for another one that asks the same judge: only one that hangs takes longer."""

BETWEEN_LOOKS = 1.0
"""Seconds."""


@dataclass(frozen=True, config=STRICT)
class KeptRow:
    """What every row begins with.

    Attributes:
        key: digest of what was asked.
    """

    key: str


Row = TypeVar("Row", bound=KeptRow)


def _folder(cache: str, identity: Mapping[str, Any]) -> Path:
    return Path(cache) / f"{identity['judge']}-{content_digest(identity)}"


def kept_rows(cache: str | None, identity: Mapping[str, Any], row_type: type[Row]) -> dict[str, Row]:
    """What this judge said before, by key; nothing is written.

    Args:
        cache: the folder of all judges, or None for none. identity: the judge's. row_type: of its rows.

    Raises:
        DataError: a line is not such a row (file:line first).
    """
    path = None if cache is None else _folder(cache, identity) / ROWS
    if path is None or not path.is_file():
        return {}
    whole = path.read_bytes().split(b"\n")[:-1]  # what stands behind the last line's end was torn by a kill
    rows = [parse_row(line, row_type, f"{path}:{number}") for number, line in enumerate(whole, 1)]
    return {row.key: row for row in rows}


@contextmanager
def keeping(cache: str | None, identity: Mapping[str, Any]) -> Iterator[Callable[[Any], None]]:
    """Keep rows, each as soon as it is given; one process at a time asks a judge, the others wait and say so.

    What the process before has kept is there then, so `kept_rows` is to be read again inside: nothing is asked twice.

    Args:
        cache: the folder of all judges, made where it is missing; None keeps nothing.
        identity: the judge's; it is written beside its rows, for whoever looks there.

    Raises:
        ArtifactError: another process has been asking the same judge for `LONGEST_WAIT`, or the folder cannot be made.
    """
    if cache is None:
        yield lambda row: None
        return
    folder = _folder(cache, identity)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ArtifactError(f"judge.cache {cache}: cannot be written ({error.strerror})") from error
    with lock:
        _wait_for(lock, folder)
        if not (folder / "judge.json").exists():
            write_atomically(folder / "judge.json", json.dumps(identity, indent=1, ensure_ascii=False) + "\n")
        with RowWriter(folder / ROWS) as writer:
            yield writer.write


def _wait_for(lock: IO[str], folder: Path) -> None:
    until, said = time.monotonic() + LONGEST_WAIT, False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise ArtifactError(
                    f"{folder}: another process has been asking this judge for {LONGEST_WAIT / 3600:g} hours; stop it"
                ) from None
        if not said:
            print(f"{folder}: another process is asking this judge; waiting for it", flush=True)
            said = True
        time.sleep(BETWEEN_LOOKS)
