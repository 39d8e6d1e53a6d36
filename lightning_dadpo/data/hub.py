"""Data sets by name: whatever `datasets.load_dataset` takes, from the hub or a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning_dadpo.errors import DataError

__all__ = ["load_dataset", "first_line"]


def load_dataset(source: str, split: str, name: str | None = None) -> Any:
    """One split of a data set.

    Args:
        source: its name on the hub, or a folder.
        split: which split.
        name: which configuration.

    Raises:
        DataError: it cannot be loaded, in one line, or it holds no rows.
    """
    import datasets

    folder = Path(source).expanduser()
    try:
        return datasets.load_dataset(os.fspath(folder) if folder.is_dir() else source, name, split=split)
    except StopIteration as error:  # what `datasets` says of an empty file
        raise DataError(f"{source}: holds no rows") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source}: no such file, and datasets cannot load it (split {split!r}): {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """What an error says first."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
