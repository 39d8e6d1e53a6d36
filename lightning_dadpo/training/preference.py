"""The LightningModule of daDPO: the student, the frozen anchors where they are live, and the objective."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.losses import PreferenceObjective, PreferenceOutcome, response_nll_per_token
from lightning_dadpo.models.log_probs import model_log_probs
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.scoring.base import Scorer
from lightning_dadpo.scoring.cached import CachedScorer
from lightning_dadpo.scoring.live import LiveScorer, StartScorer
from lightning_dadpo.scoring.table import ScoreTable
from lightning_dadpo.training.metrics import pair_value_names, pair_values
from lightning_dadpo.training.normalisation import framework_divisor
from lightning_dadpo.training.optimization import Schedule
from lightning_dadpo.training.student import StudentModule
from lightning_dadpo.types import PairBatch, PairLogProbs

__all__ = ["AnchorSource", "PreferenceModule"]

REFERENCE = "reference"


@dataclass(frozen=True)
class AnchorSource:
    """Where the log-probs of one anchor come from: a scores folder, or a model that is kept in memory.

    Attributes:
        scores: a scores artefact of `dadpo score`.
        model: a frozen model, asked anew for every batch.
        adapter: the checkpoint of an adapter on that model, where the reference of a student that trains an adapter is
            one: the same as the student's `adapter.start`.
    """

    scores: str | None = None
    model: ModelSpec | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        if (self.scores is None) == (self.model is None):
            raise ConfigError(
                f"anchor: give `scores` or `model`, one of the two (scores: {self.scores}, model: {self.model})"
            )
        if self.adapter is not None and self.model is None:
            raise ConfigError(f"anchor: adapter {self.adapter}: needs the `model` that it was trained on")


class PreferenceModule(StudentModule):
    """Trains a student on preference pairs against weighted anchors.

    Args:
        student: the model that training starts from; in daDPO the student after dSFT, which is also the reference.
        loss: the objective, for example `DaDPO`; it says which anchors it needs.
        anchors: where the log-probs of each anchor come from, by name.
        optimizer: class and arguments; it is given the student's trainable parameters alone.
        schedule: warm-up and cosine.
        sft_weight: adds this many times the nats per token of the chosen response to each pair's loss.
        adapter: a LoRA adapter to train in place of the student's own weights. A live reference is then the student
            itself with that adapter off, so it must be what the student starts from.
    """

    def __init__(
        self,
        student: ModelSpec,
        loss: PreferenceObjective,
        anchors: dict[str, AnchorSource],
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        sft_weight: float = 0.0,
        adapter: AdapterSpec | None = None,
    ) -> None:
        missing = [name for name in loss.anchors if name not in anchors]
        if missing:
            raise ConfigError(
                f"model.anchors: {type(loss).__name__} needs {missing[0]!r}, and there is only {sorted(anchors)}; "
                f"add `{missing[0]}: {{scores: FOLDER}}` or `{missing[0]}: {{model: {{path: FOLDER}}}}`"
            )
        if sft_weight < 0:
            raise ConfigError(f"model.sft_weight {sft_weight}: expected a number >= 0")
        super().__init__(student, optimizer, schedule, pair_value_names(loss.anchors), adapter)
        self.loss = loss
        self.anchor_sources = {name: anchors[name] for name in loss.anchors}
        self._check_adapters()
        self.sft_weight = sft_weight
        self.scorers: dict[str, Scorer] = {}

    def _check_adapters(self) -> None:
        """Refuse a live reference that the student does not start from (trap D7), and adapters that nobody would ask.

        Raises:
            ConfigError: naming both models, or the anchor.
        """
        for name, source in self.anchor_sources.items():
            if source.model is None:
                continue
            if name == REFERENCE and self.adapter is not None:
                start = self.student_spec, self.adapter.start
                if _start_of(*start) != _start_of(source.model, source.adapter):
                    raise ConfigError(
                        f"model.anchors.{name}: {_named(source.model, source.adapter)} is not what the student starts "
                        f"from: {_named(*start)}; a live reference is the student, its adapter off, so give the same"
                    )
            elif source.adapter is not None:
                raise ConfigError(
                    f"model.anchors.{name}.adapter {source.adapter}: expected only under `reference`, beside "
                    "`model.adapter`; elsewhere name the folder that `dadpo export` makes of it"
                )

    def configure_model(self) -> None:
        """Load the student, and what each anchor needs: a table of scores or a frozen model."""
        super().configure_model()
        for name, source in self.anchor_sources.items():
            if name in self.scorers:
                continue
            if source.scores is not None:
                self.scorers[name] = CachedScorer(Path(source.scores))
            elif name == REFERENCE and self.adapter is not None:
                self.scorers[name] = StartScorer(self.student)
            elif source.model is not None:
                self.frozen[name] = self.load(source.model, trainable=False)
                self.scorers[name] = LiveScorer(self.frozen[name])

    def describe(self) -> dict[str, Any]:
        """See `StudentModule.describe`."""
        objective = {"name": type(self.loss).__name__} | self.loss.settings
        said = {"stage": "preference", "objective": objective | {"sft_weight": self.sft_weight}}
        return super().describe() | said | {"anchors": self._anchor_contents()}

    def _anchor_contents(self) -> dict[str, str]:
        """What each anchor says, as far as it can be known without asking: a digest of its scores, or its model."""
        return {
            name: f"{source.model.path} {source.adapter or ''}".rstrip()
            if source.model is not None
            else read_manifest(str(source.scores), "scores").files["rows.jsonl"]
            for name, source in self.anchor_sources.items()
        }

    def _continued_from(self, said: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """See `StudentModule`; an anchor that says something else would be another loss from here on."""
        was = said.get("anchors", {})
        anchors = {f"anchors.{name}": (was.get(name), now) for name, now in self._anchor_contents().items()}
        return super()._continued_from(said) | anchors

    @property
    def live(self) -> set[str]:
        """Names of the anchors that are asked anew for every batch."""
        return {name for name, scorer in self.scorers.items() if not isinstance(scorer, ScoreTable)}

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
            outcome = replace(outcome, loss=outcome.loss + term)
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


def _start_of(model: ModelSpec, adapter: str | None) -> tuple[ModelSpec, Path | None]:
    return model.resolved(), None if adapter is None else Path(adapter).resolve()


def _named(model: ModelSpec, adapter: str | None) -> str:
    """A model by its path and whatever else was said of it."""
    usual = asdict(ModelSpec(model.path))
    said = [f"{name} {value}" for name, value in asdict(model).items() if value != usual[name]]
    said += [] if adapter is None else [f"adapter {adapter}"]
    return f"{model.path!r} ({', '.join(said)})" if said else repr(model.path)
