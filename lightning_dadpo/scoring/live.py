"""An anchor that is asked anew for every batch: a frozen model in memory."""

from __future__ import annotations

from typing import Any

import torch

from lightning_dadpo.models.adapters import as_it_started
from lightning_dadpo.models.loading import autocast
from lightning_dadpo.models.log_probs import model_log_probs
from lightning_dadpo.models.spec import Precision
from lightning_dadpo.types import PairBatch, PairLogProbs

__all__ = ["LiveScorer", "StartScorer", "AutocastScorer"]


class LiveScorer:
    """Scores with a model in eval mode that needs no gradients (trap B6: a frozen model must not drop out)."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def score(self, batch: PairBatch) -> PairLogProbs:
        """See `Scorer.score`; runs under the caller's autocast."""
        assert not self.model.training, "a frozen anchor must be in eval mode"
        return PairLogProbs.split(model_log_probs(self.model, batch.sequences))


class StartScorer:
    """Scores with a student as it was before its training: the adapter that is trained is off while it is asked."""

    def __init__(self, student: Any) -> None:
        self.student = student

    @torch.no_grad()
    def score(self, batch: PairBatch) -> PairLogProbs:
        """See `Scorer.score`; runs under the caller's autocast."""
        with as_it_started(self.student):
            return PairLogProbs.split(model_log_probs(self.student, batch.sequences))


class AutocastScorer:
    """A live scorer in a number format of its own, where no training loop has opened one."""

    def __init__(self, scorer: LiveScorer, precision: Precision) -> None:
        self.scorer, self.precision = scorer, precision

    def score(self, batch: PairBatch) -> PairLogProbs:
        """See `Scorer.score`."""
        device = batch.sequences.token_ids.device
        with torch.autocast(device.type, enabled=False), autocast(self.precision, device):
            return self.scorer.score(batch)
