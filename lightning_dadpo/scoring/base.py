"""The seam between the loss and wherever an anchor's log-probs come from."""

from __future__ import annotations

from typing import Protocol

from lightning_dadpo.types import PairBatch, PairLogProbs

__all__ = ["Scorer"]


class Scorer(Protocol):
    """Supplies log pi_k(y|x) of one anchor k."""

    def score(self, batch: PairBatch) -> PairLogProbs:
        """Log-probs in nats of the batch's chosen and rejected responses, outside autograd, on the batch's device."""
