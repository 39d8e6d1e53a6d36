"""Scores that an earlier round or another objective has paid for: taken over by pair id, never made twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import ScoreRow, read_rows
from lightning_dadpo.errors import ConfigError

__all__ = ["known_scores"]

WHO = ("anchor", "model")
"""What must be the same, or the scores are somebody else's."""

ASIDE = ("pairs", "tokens_per_batch")
"""What may differ: a pair's score does not depend on the pairs beside it but for the rounding of its batch."""


def known_scores(
    folders: Sequence[str], made_from: Mapping[str, Any], wanted: Collection[str], say: bool
) -> dict[str, ScoreRow]:
    """Rows for pairs that stand in earlier scores artefacts of the same anchor.

    A pair's id is the digest of its token ids, so a row fits whatever artefact it comes from (trap C2). Rows that were
    made in another number format or by another kernel are not taken: no artefact mixes two (trap B8).

    Args:
        folders: scores artefacts.
        made_from: what the artefact in the making is made from.
        wanted: ids of its pairs.
        say: whether this process prints.

    Returns:
        The rows by pair id, in the order of the folders.

    Raises:
        ArtifactError: a folder is no finished scores artefact.
        ConfigError: it holds another anchor's or another model's scores.
    """
    ids, found = set(wanted), dict[str, ScoreRow]()
    for folder in folders:
        said = read_manifest(folder, "scores").made_from
        for key in WHO:
            if said.get(key) != made_from[key]:
                raise ConfigError(f"known {folder}: scores of {key} {said.get(key)!r}, expected {made_from[key]!r}")
        other = [key for key in {**said, **made_from} if key not in ASIDE and said.get(key) != made_from.get(key)]
        if other:
            if say:
                print(f"{folder}: was made with {other[0]} {said.get(other[0])!r}; its scores are made again here")
            continue
        for row in read_rows(Path(folder) / "rows.jsonl", ScoreRow):
            if row.pair_id in ids:
                found.setdefault(row.pair_id, row)
    return found
