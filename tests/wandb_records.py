"""Reads what an offline run of wandb keeps, a log of protocol buffers in LevelDB's blocks; and kills what keeps it."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Kept", "artifacts_of", "history_of", "kill_service"]

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


def history_of(path: Path, name: str) -> list[float]:
    """The values that one run logged under a name."""
    items = [item for record in _records(path) for item in record.history.item]
    return [float(item.value_json) for item in items if name in (item.key, *item.nested_key)]


def kill_service() -> None:
    """Kill, as the kernel does when memory runs out, the process that wandb has beside this one."""
    import wandb

    service = wandb.setup()._connection._proc._process  # what it started; there is no public way to it
    service.kill()
    service.wait()
    time.sleep(0.2)  # until the lost connection has been noticed


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
