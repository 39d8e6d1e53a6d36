"""An anchor that was scored before: read from an artefact of the stage `score`."""

from __future__ import annotations

from pathlib import Path

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import ScoreRow, read_rows
from lightning_dadpo.scoring.table import ScoreTable

__all__ = ["CachedScorer"]


class CachedScorer(ScoreTable):
    """A score table on disk.

    Attributes:
        manifest: which model scored which pairs, and how.

    Raises:
        ArtifactError: the folder is no finished scores artefact.
    """

    def __init__(self, folder: str | Path) -> None:
        self.manifest = read_manifest(folder, "scores")
        super().__init__(read_rows(Path(folder) / "rows.jsonl", ScoreRow), folder)
