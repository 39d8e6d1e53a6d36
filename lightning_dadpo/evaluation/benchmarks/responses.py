"""What candidates answered to a benchmark's prompts, refused where no comparison is fair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import ResponseRow, read_rows
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation.bootstrap import Interval

__all__ = ["Answers", "read_answers", "check_one_sampler", "with_interval"]

DECIDES_THE_TEXT = ("temperature", "top_p", "max_new_tokens")
"""Sampler settings that move every score; seeds may differ."""


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


def check_one_sampler(candidates: list[Answers]) -> None:
    """Refuse candidates that were sampled in different ways, or that answered different prompts.

    Raises:
        ConfigError: there is none.
        DataError: naming the folder, and the setting with both values or the first such prompt.
    """
    if not candidates:
        raise ConfigError("candidates: none given, expected at least one")
    first = candidates[0]
    for other in candidates[1:]:
        for setting in DECIDES_THE_TEXT:
            values = first.sampler.get(setting), other.sampler.get(setting)
            if values[0] != values[1]:
                raise DataError(
                    f"{other.folder}: sampler setting {setting} is {values[1]} for {other.name} but {values[0]} for "
                    f"{first.name}; expected the same"
                )
        if lacking := sorted(first.rows.keys() ^ other.rows.keys()):
            has, lacks = (first, other) if lacking[0] in first.rows else (other, first)
            raise DataError(
                f"{lacks.folder}: {lacks.name} answered other prompts than {has.name} "
                f"({len(lacking)} differ; {lacking[0]!r} is in {has.folder}, not in {lacks.folder})"
            )


def with_interval(estimates: Mapping[str, Interval | None]) -> dict[str, float | None]:
    """Every estimate X as X, X_low and X_high; null where there was nothing to estimate it from."""
    found: dict[str, float | None] = {}
    for name, one in estimates.items():
        values = (None, None, None) if one is None else (one.value, one.low, one.high)
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
    return found
