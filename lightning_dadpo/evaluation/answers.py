"""What a model said to the prompts of a split, and whether models were asked in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import ResponseRow, read_rows
from lightning_dadpo.errors import DataError

__all__ = ["Answers", "Respondent", "read_answers", "check_same_sampler"]

DECIDES_THE_TEXT = ("temperature", "top_p", "max_new_tokens")
"""Sampler settings that move every number and every verdict; a seed does not."""


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


@runtime_checkable
class Respondent(Protocol):
    """Anybody whose answers are compared."""

    @property
    def name(self) -> str:
        """Who answered."""

    @property
    def folder(self) -> Path:
        """Where the answers are, or what draws them."""

    @property
    def sampler(self) -> Mapping[str, Any]:
        """Settings that they were drawn under."""


def check_same_sampler(respondents: Sequence[Respondent]) -> None:
    """Refuse to compare answers that were drawn under different settings; seeds may differ.

    Raises:
        DataError: naming the place, the setting and both values.
    """
    first = respondents[0]
    for other in respondents[1:]:
        for setting in DECIDES_THE_TEXT:
            expected, found = first.sampler.get(setting), other.sampler.get(setting)
            if found != expected:
                raise DataError(
                    f"{other.folder}: sampler setting {setting} is {found} for {other.name} but {expected} for "
                    f"{first.name}; expected the same"
                )
