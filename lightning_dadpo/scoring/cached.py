"""An anchor that was scored before: a table of four numbers a pair, looked up by the pair's content."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import ScoreRow, read_rows
from lightning_dadpo.errors import ArtifactError
from lightning_dadpo.types import PairBatch, PairLogProbs, SequenceLogProbs

__all__ = ["CachedScorer"]


class CachedScorer:
    """Scores read from an artefact of the stage `score`.

    A pair's id is the digest of its token ids, so a score cannot land on other tokens than those it was made
    from, whatever the order of rows, of epochs or of ranks.

    Raises:
        ArtifactError: the folder is no finished scores artefact.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(folder, "scores")
        rows = list(read_rows(self.folder / "rows.jsonl", ScoreRow))
        self._row_of = {row.pair_id: index for index, row in enumerate(rows)}
        self._nats = torch.tensor([[row.chosen_log_prob, row.rejected_log_prob] for row in rows], dtype=torch.float32)
        self._tokens = torch.tensor([[row.chosen_num_tokens, row.rejected_num_tokens] for row in rows])

    def __contains__(self, pair_id: str) -> bool:
        return pair_id in self._row_of

    def score(self, batch: PairBatch) -> PairLogProbs:
        """See `Scorer.score`.

        Raises:
            ArtifactError: a pair of the batch was never scored, or with another number of tokens.
        """
        missing = [pair_id for pair_id in batch.pair_ids if pair_id not in self._row_of]
        if missing:
            raise ArtifactError(f"{self.folder}: has no scores for pair {missing[0]}; score these pairs first")
        index = torch.tensor([self._row_of[pair_id] for pair_id in batch.pair_ids])
        device = batch.sequences.input_ids.device
        nats, tokens = self._nats[index].to(device), self._tokens[index].to(device)
        return PairLogProbs(
            SequenceLogProbs(nats[:, 0], tokens[:, 0]),
            SequenceLogProbs(nats[:, 1], tokens[:, 1]),
        )
