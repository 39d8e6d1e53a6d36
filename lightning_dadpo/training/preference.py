"""The LightningModule of daDPO: the student, the frozen anchors where they are live, and the objective."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.losses import PreferenceObjective, PreferenceOutcome, response_nll_per_token
from lightning_dadpo.models.log_probs import model_log_probs
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.scoring.base import Scorer
from lightning_dadpo.scoring.cached import CachedScorer
from lightning_dadpo.scoring.live import LiveScorer
from lightning_dadpo.training.metrics import pair_value_names, pair_values
from lightning_dadpo.training.normalisation import framework_divisor
from lightning_dadpo.training.optimization import Schedule
from lightning_dadpo.training.student import StudentModule
from lightning_dadpo.types import PairBatch, PairLogProbs

__all__ = ["AnchorSource", "PreferenceModule"]


@dataclass(frozen=True)
class AnchorSource:
    """Where the log-probs of one anchor come from: a scores folder, or a model that is kept in memory.

    Attributes:
        scores: a scores artefact of `dadpo score`.
        model: a frozen model, asked anew for every batch.
    """

    scores: str | None = None
    model: ModelSpec | None = None

    def __post_init__(self) -> None:
        if (self.scores is None) == (self.model is None):
            raise ConfigError(
                f"anchor: give `scores` or `model`, one of the two (scores: {self.scores}, model: {self.model})"
            )


class PreferenceModule(StudentModule):
    """Trains a student on preference pairs against weighted anchors.

    Args:
        student: the model that training starts from; in daDPO the student after dSFT, which is also the reference.
        loss: the objective, for example `DaDPO`; it says which anchors it needs.
        anchors: where the log-probs of each anchor come from, by name.
        optimizer: class and arguments; it is given the student's trainable parameters alone.
        schedule: warm-up and cosine.
        sft_weight: adds this many times the nats per token of the chosen response to each pair's loss.
    """

    def __init__(
        self,
        student: ModelSpec,
        loss: PreferenceObjective,
        anchors: dict[str, AnchorSource],
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        sft_weight: float = 0.0,
    ) -> None:
        missing = [name for name in loss.anchors if name not in anchors]
        if missing:
            raise ConfigError(
                f"model.anchors: {type(loss).__name__} needs {missing[0]!r}, and there is only {sorted(anchors)}; "
                f"add `{missing[0]}: {{scores: FOLDER}}` or `{missing[0]}: {{model: {{path: FOLDER}}}}`"
            )
        if sft_weight < 0:
            raise ConfigError(f"model.sft_weight {sft_weight}: expected a number >= 0")
        super().__init__(student, optimizer, schedule, pair_value_names(loss.anchors))
        self.loss = loss
        self.anchor_sources = {name: anchors[name] for name in loss.anchors}
        self.sft_weight = sft_weight
        self.scorers: dict[str, Scorer] = {}

    def configure_model(self) -> None:
        """Load the student, and what each anchor needs: a table of scores or a frozen model."""
        super().configure_model()
        for name, source in self.anchor_sources.items():
            if name in self.scorers:
                continue
            if source.scores is not None:
                self.scorers[name] = CachedScorer(Path(source.scores))
            elif source.model is not None:
                self.frozen[name] = self.load(source.model, trainable=False)
                self.scorers[name] = LiveScorer(self.frozen[name])

    def describe(self) -> dict[str, Any]:
        """See `StudentModule.describe`."""
        objective = {"name": type(self.loss).__name__, "betas": getattr(self.loss, "betas", {})}
        said = {"stage": "preference", "objective": objective | {"sft_weight": self.sft_weight}}
        return super().describe() | said | {"anchors": self._anchor_contents()}

    def _anchor_contents(self) -> dict[str, str]:
        """What each anchor says, as far as it can be known without asking: a digest of its scores, or its model."""
        return {
            name: source.model.path
            if source.model is not None
            else read_manifest(str(source.scores), "scores").files["rows.jsonl"]
            for name, source in self.anchor_sources.items()
        }

    def _continued_from(self, said: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """See `StudentModule`; an anchor that says something else would be another loss from here on."""
        was = said.get("anchors", {})
        anchors = {f"anchors.{name}": (was.get(name), now) for name, now in self._anchor_contents().items()}
        return super()._continued_from(said) | anchors

    def policy_log_probs(self, batch: PairBatch) -> PairLogProbs:
        """The student's own log-probs of a batch: the one place where they are made."""
        return PairLogProbs.split(model_log_probs(self.student, batch.sequences))

    def anchor_log_probs(self, batch: PairBatch) -> dict[str, PairLogProbs]:
        """Each anchor's log-probs of a batch, wherever they come from."""
        return {name: scorer.score(batch) for name, scorer in self.scorers.items()}

    def _evaluate(self, batch: PairBatch) -> tuple[PreferenceOutcome, dict[str, Tensor]]:
        policy, anchors = self.policy_log_probs(batch), self.anchor_log_probs(batch)
        outcome = self.loss(policy, anchors)
        if self.sft_weight:
            term = self.sft_weight * response_nll_per_token(policy.chosen)
            outcome = PreferenceOutcome(
                outcome.loss + term, outcome.margin, outcome.chosen_reward, outcome.rejected_reward
            )
        return outcome, pair_values(outcome, policy, anchors)

    def training_step(self, batch: PairBatch, batch_index: int) -> Tensor:
        """The sum over the micro-batch divided by the pairs of the whole step, frameworks' divisors undone."""
        outcome, values = self._evaluate(batch)
        self.training_means.update(values, batch.weights)
        self.log_training_means()
        return (outcome.loss * batch.weights).sum() / batch.pairs_in_step * framework_divisor(self.trainer)

    def validation_step(self, batch: PairBatch, batch_index: int) -> dict[str, Any]:
        """Values of each pair; callbacks may write them down."""
        _, values = self._evaluate(batch)
        self.evaluation_means.update(values, batch.weights)
        return {"pair_ids": batch.pair_ids, "weights": batch.weights, "values": values}

    def test_step(self, batch: PairBatch, batch_index: int) -> dict[str, Any]:
        """As in validation."""
        return self.validation_step(batch, batch_index)

    def predict_step(self, batch: PairBatch, batch_index: int) -> dict[str, Any]:
        """Log-probs of policy and anchors, margin and implicit rewards of each pair."""
        _, values = self._evaluate(batch)
        return {"pair_ids": batch.pair_ids, "weights": batch.weights, "values": values}
