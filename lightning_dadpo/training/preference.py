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
from lightning_dadpo.losses import PairTerm, PreferenceObjective, PreferenceOutcome, TokenDivergence
from lightning_dadpo.models.log_probs import (
    log_probs_and_divergences,
    model_log_probs,
    predictor,
    predictor_log_probs,
)
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.scoring.base import Scorer
from lightning_dadpo.scoring.cached import CachedScorer
from lightning_dadpo.scoring.live import LiveScorer, StartScorer
from lightning_dadpo.scoring.routes import check_same_tokenizer
from lightning_dadpo.scoring.table import ScoreTable
from lightning_dadpo.training.metrics import pair_value_names, pair_values
from lightning_dadpo.training.normalisation import framework_divisor
from lightning_dadpo.training.optimization import Schedule
from lightning_dadpo.training.student import StudentModule
from lightning_dadpo.types import PairBatch, PairLogProbs

__all__ = ["AnchorSource", "PairTerm", "PreferenceModule"]

REFERENCE, TEACHER = "reference", "teacher"
PREFERENCE = "preference"
"""What the objective itself is called among the parts of a sum."""


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
        terms: what is added to each pair's loss, by a name for the logs: SFT on the chosen response (`ResponseNLL`), or
            a token-level distance to the teacher (`ReverseKL` and others), which needs the anchor `teacher` live.
        adapter: a LoRA adapter to train in place of the student's own weights. A live reference is then the student
            itself with that adapter off, so it must be what the student starts from.
    """

    trains_on = "pairs"

    def __init__(
        self,
        student: ModelSpec,
        loss: PreferenceObjective,
        anchors: dict[str, AnchorSource],
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        terms: dict[str, PairTerm] | None = None,
        adapter: AdapterSpec | None = None,
    ) -> None:
        missing = [name for name in loss.anchors if name not in anchors]
        if missing:
            raise ConfigError(
                f"model.anchors: {type(loss).__name__} needs {missing[0]!r}, and there is only {sorted(anchors)}; "
                f"add `{missing[0]}: {{scores: FOLDER}}` or `{missing[0]}: {{model: {{path: FOLDER}}}}`"
            )
        self.terms = dict(terms or {})
        divergent = [name for name, one in self.terms.items() if isinstance(one.term, TokenDivergence)]
        needed = dict.fromkeys([*loss.anchors, *([TEACHER] if divergent else [])])
        parts = [PREFERENCE, *self.terms] if self.terms else []
        super().__init__(student, optimizer, schedule, pair_value_names(list(needed), parts), adapter)
        self.loss, self._divergent = loss, divergent
        self._check_terms(anchors)
        self.anchor_sources = {name: anchors[name] for name in needed}
        self._check_adapters()
        self.scorers: dict[str, Scorer] = {}

    def _check_terms(self, anchors: dict[str, AnchorSource]) -> None:
        """Refuse a token-level distance to a teacher that is not there to be asked.

        Raises:
            ConfigError: naming the term and what to add.
        """
        if PREFERENCE in self.terms:
            raise ConfigError(f"model.terms.{PREFERENCE}: that is what the objective itself is called in the logs")
        for name in self._divergent:
            if TEACHER not in anchors or anchors[TEACHER].model is None:
                raise ConfigError(
                    f"model.terms.{name}: {type(self.terms[name].term).__name__} needs the teacher's logits, of which "
                    "scores on disk are sums; keep it in memory: anchors: {teacher: {model: {path: FOLDER}}}"
                )

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
        for name, source in self.anchor_sources.items():
            if source.model is not None and name not in self.scorers:
                check_same_tokenizer(self.student_spec, source.model, f"model.anchors.{name}")
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
        terms = {
            name: {"weight": one.weight, "response": one.response, "name": type(one.term).__name__} | vars(one.term)
            for name, one in self.terms.items()
        }
        said = {"stage": "preference", "objective": objective | {"terms": terms}}
        return super().describe() | said | {"anchors": self._anchor_contents()}

    def _anchor_contents(self) -> dict[str, str]:
        """What each anchor says, as far as it can be known without asking: a digest of its scores, or its model."""
        return {
            name: _contents(source.model, source.adapter)
            if source.model is not None
            else read_manifest(str(source.scores), "scores").files["rows.jsonl"]
            for name, source in self.anchor_sources.items()
        }

    def _continued_from(self, said: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """See `StudentModule`; an anchor that says something else would be another loss from here on."""
        was = said.get("anchors", {})
        now = self._anchor_contents()
        anchors = {f"anchors.{name}": (was.get(name), now.get(name)) for name in [*now, *(set(was) - set(now))]}
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

    def _ask(self, batch: PairBatch) -> tuple[PairLogProbs, dict[str, PairLogProbs], dict[str, Tensor]]:
        """Policy, anchors, and each token-level term's sums over the responses, all chosen ones first.

        Where a term needs the teacher's logits, the same pass through the teacher gives its log-probs too.
        """
        if not self._divergent:
            return self.policy_log_probs(batch), self.anchor_log_probs(batch), {}
        trees = batch.sequences
        teacher = predictor(self.frozen[TEACHER], trees)
        kinds = [self.terms[name].term for name in self._divergent]
        divergences = [kind.at_positions for kind in kinds if isinstance(kind, TokenDivergence)]
        policy, sums = log_probs_and_divergences(self.student, trees, teacher, divergences)
        with torch.no_grad():
            teachers = PairLogProbs.split(predictor_log_probs(teacher, trees))
        others = {name: scorer.score(batch) for name, scorer in self.scorers.items() if name != TEACHER}
        anchors = {name: others.get(name, teachers) for name in self.scorers}
        return PairLogProbs.split(policy), anchors, dict(zip(self._divergent, sums, strict=True))

    def _evaluate(self, batch: PairBatch) -> tuple[PreferenceOutcome, dict[str, Tensor]]:
        policy, anchors, distances = self._ask(batch)
        outcome = self.loss(policy, anchors)
        parts, total = {PREFERENCE: outcome.loss}, outcome.loss
        for name, one in self.terms.items():
            side = slice(len(batch)) if one.response == "chosen" else slice(len(batch), None)
            responses = policy.chosen if one.response == "chosen" else policy.rejected
            parts[name] = one.term(responses, distances[name][side] if name in distances else None)
            total = total + one.weight * parts[name]
        outcome = replace(outcome, loss=total)
        said = {f"part/{name}": value for name, value in parts.items()} if self.terms else {}
        return outcome, pair_values(outcome, policy, anchors) | said

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


def _contents(model: ModelSpec, adapter: str | None) -> str:
    """What decides a live anchor's numbers, as far as it is said."""
    parts = (model.path, model.revision, model.gguf_file, model.quantize, adapter)
    return " ".join(part for part in parts if part is not None)


def _named(model: ModelSpec, adapter: str | None) -> str:
    """A model by its path and whatever else was said of it."""
    usual = asdict(ModelSpec(model.path))
    said = [f"{name} {value}" for name, value in asdict(model).items() if value != usual[name]]
    said += [] if adapter is None else [f"adapter {adapter}"]
    return f"{model.path!r} ({', '.join(said)})" if said else repr(model.path)
