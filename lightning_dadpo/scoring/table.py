"""Four numbers a pair in memory, looked up by the pair's content."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np
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
        self.origin = origin
        self._row_of: dict[str, int] = {}
        nats, tokens = array("f"), array("q")  # rows come one at a time and none is kept
        for row in rows:
            self._row_of[row.pair_id] = len(nats) // 2
            nats.extend((row.chosen_log_prob, row.rejected_log_prob))
            tokens.extend((row.chosen_num_tokens, row.rejected_num_tokens))
        self._nats = torch.from_numpy(np.array(nats, dtype=np.float32)).reshape(-1, 2)
        self._tokens = torch.from_numpy(np.array(tokens, dtype=np.int64)).reshape(-1, 2)

    def score(self, batch: PairBatch) -> PairLogProbs:
        """See `Scorer.score`.

        Raises:
            ArtifactError: a pair of the batch was never scored.
        """
        return self.look_up(batch.pair_ids).to(batch.sequences.token_ids.device)

    def look_up(self, pair_ids: Iterable[str]) -> PairLogProbs:
        """The scores of pairs by their ids, on the CPU.

        Raises:
            ArtifactError: a pair was never scored.
        """
        index = torch.tensor([self._index(pair_id) for pair_id in pair_ids], dtype=torch.long)
        nats, tokens = self._nats[index], self._tokens[index]
        return PairLogProbs(
            SequenceLogProbs(nats[:, 0], tokens[:, 0]),
            SequenceLogProbs(nats[:, 1], tokens[:, 1]),
        )

    def _index(self, pair_id: str) -> int:
        try:
            return self._row_of[pair_id]
        except KeyError:
            raise ArtifactError(f"{self.origin}: has no scores for pair {pair_id}; score these pairs first") from None
