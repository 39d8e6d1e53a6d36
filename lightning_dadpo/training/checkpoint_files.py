"""Checkpoints on disk: a name leads to a whole checkpoint at every moment, also while the next one is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy

__all__ = ["WholeFiles", "write_whole_files", "free_version", "lead_to"]


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its name, and renames it when all of it is on the disk.

    Lightning itself makes a copy in memory, writes it to the machine's temporary folder and moves it from there: where
    that is another file system, which is usual on clusters, moving means copying over the old checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """See Lightning; what is no local file is left to it."""
        if not _is_local_file_protocol(str(path)):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.writing")  # found again by nobody, and written over next time
        try:
            torch.save(checkpoint, beside)
            _flush(beside)
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        _flush(path.parent)


def write_whole_files(strategy: Strategy) -> None:
    """Every checkpoint that is one file is written whole, whoever saves it; a writer that a person chose is kept."""
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeFiles()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_version(link: Path) -> Path:
    """An empty place to write a folder to: the one of two that the link does not lead to."""
    places = [link.with_name(f".{link.stem}-{letter}{link.suffix}") for letter in "ab"]
    free = places[1] if link.resolve() == places[0].resolve() else places[0]
    if free.exists():
        shutil.rmtree(free)  # what a kill has left
    return free


def lead_to(link: Path, version: Path) -> None:
    """Let the name lead to the version that is whole now, and remove the one before."""
    before = link.resolve() if link.is_symlink() else version
    moved = link.with_name(f".{link.name}.new")
    moved.unlink(missing_ok=True)
    moved.symlink_to(version.name)
    os.replace(moved, link)
    if before.name.startswith(f".{link.stem}-") and before.name != version.name:
        shutil.rmtree(before, ignore_errors=True)
