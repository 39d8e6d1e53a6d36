"""Reads what an offline run of wandb keeps: a log of protocol buffers in blocks, as LevelDB writes them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Kept", "artifacts_of"]

BLOCK = 32768
FILE_HEADER = 7
WHOLE, LAST = 1, 4


@dataclass(frozen=True)
class Kept:
    """An artefact that a run made, or used."""

    used: bool
    name: str
    kind: str
    digest: str
    metadata: str
    references: tuple[str, ...]
    uploads: tuple[str, ...]


def artifacts_of(path: Path) -> list[Kept]:
    """The artefacts of one run, in the order in which it named them."""
    found = [record.artifact for record in _records(path) if record.WhichOneof("record_type") == "artifact"]
    return [
        Kept(
            used=one.use_after_commit,
            name=one.name,
            kind=one.type,
            digest=one.digest,
            metadata=one.metadata,
            references=tuple(entry.ref for entry in one.manifest.contents if entry.ref),
            uploads=tuple(entry.local_path for entry in one.manifest.contents if entry.local_path),
        )
        for one in found
    ]


def _records(path: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), FILE_HEADER, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # no header fits there
            at += BLOCK - at % BLOCK
            continue
        _, size, part = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if part in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""
