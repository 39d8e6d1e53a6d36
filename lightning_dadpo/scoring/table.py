"""Four numbers a pair in memory, looked up by the pair's content."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from lightning_dadpo.data.rows import ScoreRow
from lightning_dadpo.errors import ArtifactError
from lightning_dadpo.types import PairBatch, PairLogProbs, SequenceLogProbs

__all__ = ["ScoreTable"]


class ScoreTable:
    """Scores of one anchor; itself a `Scorer`.

    A pair's id is the digest of its token ids, so a score cannot land on other tokens than those it was made
    from, whatever the order of rows, of epochs or of ranks (trap C2).
    """

    def __init__(self, rows: Iterable[ScoreRow], origin: str | Path) -> None:
        rows, self.origin = list(rows), origin
        self._row_of = {row.pair_id: index for index, row in enumerate(rows)}
        self._nats = torch.tensor([[row.chosen_log_prob, row.rejected_log_prob] for row in rows], dtype=torch.float32)
        self._tokens = torch.tensor([[row.chosen_num_tokens, row.rejected_num_tokens] for row in rows])

    def score(self, batch: PairBatch) -> PairLogProbs:
        """See `Scorer.score`.

        Raises:
            ArtifactError: a pair of the batch was never scored.
        """
        device = batch.sequences.token_ids.device
        index = torch.tensor([self._index(pair_id) for pair_id in batch.pair_ids])
        nats, tokens = self._nats[index].to(device), self._tokens[index].to(device)
        return PairLogProbs(
            SequenceLogProbs(nats[:, 0], tokens[:, 0]),
            SequenceLogProbs(nats[:, 1], tokens[:, 1]),
        )

    def _index(self, pair_id: str) -> int:
        try:
            return self._row_of[pair_id]
        except KeyError:
            raise ArtifactError(f"{self.origin}: has no scores for pair {pair_id}; score these pairs first") from None
