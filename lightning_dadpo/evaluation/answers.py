"""What a model said to the prompts of a split: what judges and benchmarks read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import ResponseRow, read_rows
from lightning_dadpo.errors import DataError

__all__ = ["Answers", "read_answers"]


@dataclass(frozen=True)
class Answers:
    """One model's first response to each prompt of a split, by prompt id."""

    name: str
    folder: Path
    digest: str
    sampler: dict[str, Any]
    rows: dict[str, ResponseRow]


def read_answers(name: str, responses: str | Path, split: str) -> Answers:
    """The responses of one split.

    Raises:
        ArtifactError: the folder is not a complete artefact of responses.
        DataError: a prompt is answered twice, or the split has no rows.
    """
    folder = Path(responses)
    manifest, path = read_manifest(folder, "responses"), folder / "rows.jsonl"
    rows: dict[str, ResponseRow] = {}
    for row in read_rows(path, ResponseRow):
        if row.split == split and row.candidate == 0:  # the others are for pairing rules to choose among
            if row.prompt_id in rows:
                raise DataError(f"{path}: prompt {row.prompt_id!r} is answered twice in split {split!r}")
            rows[row.prompt_id] = row
    if not rows:
        raise DataError(f"{path}: no response of split {split!r}")
    return Answers(name, folder, manifest.files[path.name], manifest.made_from.get("sampler", {}), rows)
