"""dSFT: supervised fine-tuning of the student on the teacher's responses."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_dadpo.losses import response_nll
from lightning_dadpo.models.log_probs import model_log_probs
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.training.normalisation import framework_divisor
from lightning_dadpo.training.optimization import Schedule
from lightning_dadpo.training.student import StudentModule
from lightning_dadpo.types import ResponseBatch

__all__ = ["SupervisedModule"]


class SupervisedModule(StudentModule):
    """Trains a student to imitate responses; the loss is nats per response token of the optimizer step.

    Args:
        student: the model that training starts from.
        optimizer: class and arguments; it is given the student's trainable parameters alone.
        schedule: warm-up and cosine.
        adapter: a LoRA adapter to train in place of the student's own weights.
    """

    trains_on = "responses"

    def __init__(
        self,
        student: ModelSpec,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        adapter: AdapterSpec | None = None,
    ) -> None:
        super().__init__(student, optimizer, schedule, ["loss"], adapter)

    def describe(self) -> dict[str, Any]:
        """See `StudentModule.describe`."""
        return super().describe() | {"stage": "sft", "objective": {"name": "dSFT"}}

    def _nll(self, batch: ResponseBatch) -> tuple[Tensor, Tensor]:
        """Nats and tokens of each response, fillers counting nothing."""
        responses = model_log_probs(self.student, batch.sequences)
        return response_nll(responses) * batch.weights, responses.num_tokens * batch.weights

    def training_step(self, batch: ResponseBatch, batch_index: int) -> Tensor:
        """Nats of the micro-batch divided by the response tokens of the whole step."""
        nats, tokens = self._nll(batch)
        self.training_means.update({"loss": nats / tokens.clamp_min(1)}, tokens)
        self.log_training_means()
        return nats.sum() / batch.tokens_in_step * framework_divisor(self.trainer)

    def validation_step(self, batch: ResponseBatch, batch_index: int) -> None:
        """Nats per token over the split: a ratio of sums."""
        nats, tokens = self._nll(batch)
        self.evaluation_means.update({"loss": nats / tokens.clamp_min(1)}, tokens)

    def test_step(self, batch: ResponseBatch, batch_index: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_index)
