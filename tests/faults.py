"""Faults at moments of a command's progress: a row, a checkpoint, a manifest, a micro-batch.

A process that has armed a fault is killed, or signalled, when it comes to that moment; what it has written until then
is what a kill from outside would leave.
"""

from __future__ import annotations

import io
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Fault", "arm", "watch", "EVENTS"]

EVENTS = ("micro-batch", "validation", "half a row", "half a file", "before a rename", "after a rename")
"""Kinds of moments; those of files are followed by the name of the file."""


@dataclass(frozen=True)
class Fault:
    """What happens when.

    Attributes:
        event: the beginning of an event's name, "" for any.
        number: which of those, from 1.
        signal: what is sent; SIGKILL and SIGTERM as numbers.
    """

    event: str
    number: int
    signal: int = int(signal.SIGKILL)


def arm(fault: Fault, under: Path, act: Callable[[], None] | None = None) -> None:
    """Let this process come to harm.

    Args:
        fault: when.
        under: files elsewhere are no events.
        act: instead of the signal.
    """
    seen = 0

    def happens(event: str) -> None:
        nonlocal seen
        if event.startswith(fault.event):
            seen += 1
            if seen == fault.number:
                act() if act is not None else os.kill(os.getpid(), fault.signal)

    watch(happens, under)


def record(out: Path, under: Path) -> None:
    """Write down what this process comes to, one event a line."""
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    watch(lambda event: os.write(descriptor, f"{event}\n".encode()), under)


def watch(happens: Callable[[str], Any], under: Path) -> None:
    """Call `happens` with every event of this process, from now on."""
    process = os.getpid()

    def here(event: str) -> None:
        if os.getpid() == process:  # what it forks comes to moments of its own
            happens(event)

    _watch_training(here)
    _watch_rows(here)
    _watch_files(here, under.resolve())


def _watch_training(happens: Callable[[str], Any]) -> None:
    from lightning_dadpo.training.preference import PreferenceModule
    from lightning_dadpo.training.supervised import SupervisedModule

    def before(function: Any, event: str) -> Any:
        def wrapped(*arguments: Any) -> Any:
            happens(event)
            return function(*arguments)

        return wrapped

    for module in (PreferenceModule, SupervisedModule):
        module.training_step = before(module.training_step, "micro-batch")  # type: ignore[method-assign]
        module.validation_step = before(module.validation_step, "validation")  # type: ignore[method-assign]


def _watch_rows(happens: Callable[[str], Any]) -> None:
    """A row reaches the file in two halves."""
    from lightning_dadpo.data.rows import RowWriter

    write = RowWriter.write

    def in_halves(writer: Any, *rows: Any) -> None:
        file, place = writer._file, writer._file.tell()
        write(writer, *rows)
        if rows:
            file.flush()
            end = file.tell()
            with writer.path.open("r+b") as again:
                again.seek(place)
                text = again.read()
                again.truncate(place + (end - place) // 2)
                happens("half a row")
                again.seek(place)
                again.write(text)

    RowWriter.write = in_halves  # type: ignore[method-assign]


def _watch_files(happens: Callable[[str], Any], under: Path) -> None:
    """Files reach the disk in two halves: checkpoints when they are saved, small ones when they are flushed."""
    import torch

    fsync, replace, save = os.fsync, os.replace, torch.save

    def flush(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_file() and path.is_relative_to(under):
            size = path.stat().st_size
            text = path.read_bytes()
            os.truncate(path, size // 2)
            happens(f"half a file {_kind(path)}")
            path.write_bytes(text)
        fsync(descriptor)

    def rename(source: Any, target: Any, *arguments: Any, **named: Any) -> None:
        ours = Path(target).absolute().is_relative_to(under)
        if ours:
            happens(f"before a rename {_kind(Path(target))}")
        replace(source, target, *arguments, **named)
        if ours:
            happens(f"after a rename {_kind(Path(target))}")

    def save_in_halves(content: Any, file: Any, *arguments: Any, **named: Any) -> None:
        if isinstance(file, str | Path) and Path(file).absolute().is_relative_to(under):
            buffer = io.BytesIO()
            save(content, buffer, *arguments, **named)
            half = buffer.getvalue()[: buffer.tell() // 2]
            Path(file).write_bytes(half)
            happens(f"half a file {_kind(Path(file))}")
        save(content, file, *arguments, **named)

    os.fsync, os.replace, torch.save = flush, rename, save_in_halves


def _kind(path: Path) -> str:
    """manifest.json of `.manifest.json.4711`, last.ckpt of `.last.ckpt.writing`; `folder` of a whole artefact."""
    for name in ("manifest.json", "begun.json", "last.ckpt", "best.ckpt", "summary.json", "experiment.json"):
        if name in path.name:
            return name
    return "folder" if path.is_dir() or not path.suffix else re.sub(r"\.[0-9]+$", "", path.name)[-5:]
