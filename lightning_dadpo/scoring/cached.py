"""An anchor that was scored before: read from an artefact of the stage `score`."""

from __future__ import annotations

from pathlib import Path

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import ScoreRow, read_rows
from lightning_dadpo.errors import ArtifactError
from lightning_dadpo.scoring.table import ScoreTable

__all__ = ["CachedScorer", "left_out_of"]


class CachedScorer(ScoreTable):
    """A score table on disk.

    Attributes:
        manifest: which model scored which pairs, and how.
        left_out: why a pair has no scores, by its id: one that the model could not be asked about.

    Raises:
        ArtifactError: the folder is no finished scores artefact.
    """

    def __init__(self, folder: str | Path) -> None:
        self.manifest = read_manifest(folder, "scores")
        self.left_out: dict[str, str] = self.manifest.results.get("left_out", {})
        super().__init__(read_rows(Path(folder) / "rows.jsonl", ScoreRow), folder)

    def _index(self, pair_id: str) -> int:
        if pair_id in self.left_out:
            raise ArtifactError(
                f"{self.origin}: pair {pair_id} was left out of these scores ({self.left_out[pair_id]}); leave it out "
                f"of the data too: add `scored_by: [{self.origin}]` beside the pairs' `folder`"
            )
        return super()._index(pair_id)


def left_out_of(folder: str | Path) -> dict[str, str]:
    """Why pairs were left out of a scores artefact, by their ids; no score is read.

    Raises:
        ArtifactError: the folder is no finished scores artefact.
    """
    found: dict[str, str] = read_manifest(folder, "scores").results.get("left_out", {})
    return found
