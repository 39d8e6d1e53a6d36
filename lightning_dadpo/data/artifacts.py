"""Artefacts: folders that are complete or absent.

A stage works in `NAME.partial`, under a lock. Its last acts are to write `manifest.json` there and to rename
the folder to `NAME`. Whoever sees `NAME` therefore sees all of it, and a killed stage finds its rows again.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning_dadpo.errors import ArtifactError

__all__ = [
    "Manifest", "Draft", "draft", "finished", "read_manifest", "file_digest", "versions",
    "partial_of", "refuse_other", "plain",
]  # fmt: skip

MANIFEST = "manifest.json"
BEGUN = "begun.json"
LOCK = ".lock"
RANKS = ".ranks"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What a folder holds and what it was made from.

    Attributes:
        kind: responses, pairs, scores, model, evaluation ...
        made_from: everything that decides the content: settings, and digests of the inputs.
        counts: how many rows were made, dropped (by reason), and so on.
        results: numbers that the stage measured.
        files: SHA-256 of every row file.
        versions: the software that made it.
        seconds: wall-clock time of the process that finished it.
        resumed: an earlier process had begun it, so that `seconds` is not the time of everything in it.
        format: version of the layout.
    """

    kind: str
    made_from: dict[str, Any]
    counts: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    resumed: bool = False
    format: int = FORMAT


@dataclass
class Draft:
    """An artefact in the making; `path` is the folder to work in."""

    path: Path
    kind: str
    made_from: dict[str, Any]
    counts: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    resumed: bool = False


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("lightning-dadpo", "torch", "transformers", "lightning"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "not installed"
    return found


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def partial_of(folder: Path) -> Path:
    """Where an artefact is made."""
    return folder.with_name(folder.name + ".partial")


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON would give it back, so that what was written compares equal with what is meant now."""
    return dict(json.loads(json.dumps(value, sort_keys=True)))


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in keys)


def read_manifest(folder: str | Path, kind: str | None = None) -> Manifest:
    """The manifest of a complete artefact, its row files checked against their digests.

    Raises:
        ArtifactError: the folder is absent, incomplete, of another kind or changed since it was made.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        begun = partial_of(folder).exists()
        state = (
            "was begun but never finished: run its stage again" if begun else "is not an artefact (no manifest.json)"
        )
        raise ArtifactError(f"{folder}: {state}")
    try:
        manifest = Manifest(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: not a manifest of this version ({error})") from error
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{folder}: holds {manifest.kind}, expected {kind}")
    for name, digest in manifest.files.items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise ArtifactError(f"{folder / name}: missing or changed since the artefact was made; make it again")
    return manifest


def finished(folder: str | Path, kind: str, made_from: Mapping[str, Any]) -> bool:
    """True when this very artefact stands there already.

    Raises:
        ArtifactError: something else stands there; the message says in what it differs.
    """
    folder = Path(folder)
    if not folder.exists():
        return False
    manifest = read_manifest(folder, kind)
    if manifest.made_from != plain(made_from):
        raise ArtifactError(
            f"{folder}: was made from something else ({_difference(manifest.made_from, plain(made_from))}); "
            "choose another folder or remove it"
        )
    return True


@contextmanager
def draft(folder: str | Path, kind: str, made_from: Mapping[str, Any]) -> Iterator[Draft]:
    """Make an artefact: work in `.path`; leaving the block without an error completes it.

    An error or a kill leaves `FOLDER.partial`, and the next call with the same `made_from` goes on in it.

    Raises:
        ArtifactError: another process is at work there, or it was begun from something else.
    """
    folder, made_from, start = Path(folder), plain(made_from), time.monotonic()
    partial = partial_of(folder)
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(f"{partial}: another process is working there; wait for it or stop it") from None
        _refuse_existing(folder)
        resumed = _begin(partial, made_from)
        work = Draft(partial, kind, made_from, resumed=resumed)
        yield work
        _complete(work, folder, time.monotonic() - start)


def _begin(partial: Path, made_from: dict[str, Any]) -> bool:
    """Whether an earlier process had begun it."""
    begun = partial / BEGUN
    resumed = begun.exists()
    if not resumed:
        write_atomically(begun, json.dumps(made_from, indent=1))
    refuse_other(partial, made_from)
    return resumed


def refuse_other(partial: Path, made_from: Mapping[str, Any]) -> None:
    """Refuse to work on what was begun from something else.

    Raises:
        ArtifactError: naming what differs.
    """
    old = json.loads((partial / BEGUN).read_text("utf-8"))
    if old != made_from:
        raise ArtifactError(
            f"{partial}: was begun from something else ({_difference(old, made_from)}); "
            "choose another folder or remove it"
        )


def _complete(work: Draft, folder: Path, seconds: float) -> None:
    manifest = Manifest(
        kind=work.kind,
        made_from=work.made_from,
        counts=work.counts,
        results=work.results,
        files={path.name: file_digest(path) for path in sorted(work.path.glob("*.jsonl"))},
        versions=versions(),
        seconds=round(seconds, 1),
        resumed=work.resumed,
    )
    write_atomically(work.path / MANIFEST, json.dumps(asdict(manifest), indent=1, allow_nan=False))
    _refuse_existing(folder)
    os.replace(work.path, folder)
    # only now: a kill before the rename must leave what says what the rows were made from
    shutil.rmtree(folder / RANKS, ignore_errors=True)
    for name in (BEGUN, LOCK):
        (folder / name).unlink(missing_ok=True)


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise ArtifactError(f"{folder}: is there already; nothing was overwritten")


def write_atomically(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def discard(folder: str | Path) -> None:
    """Remove an artefact and what was begun of it."""
    folder = Path(folder)
    for path in (folder, partial_of(folder)):
        shutil.rmtree(path, ignore_errors=True)
