"""Token-level distillation from a live teacher, on its samples and on the student's own."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_dadpo.data.packing import pack
from lightning_dadpo.data.rows import content_digest
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.losses import ResponseNLL, TokenDivergence, WeightedTerm, response_nll_per_token
from lightning_dadpo.models.loading import end_of_turn_ids, load_tokenizer
from lightning_dadpo.models.log_probs import log_probs_and_divergences, predictor
from lightning_dadpo.models.modes import in_eval_mode
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.sampling.on_policy import OnPolicy
from lightning_dadpo.sampling.transformers_sampler import TransformersSampler
from lightning_dadpo.scoring.routes import check_same_tokenizer
from lightning_dadpo.training.normalisation import framework_divisor
from lightning_dadpo.training.optimization import Schedule
from lightning_dadpo.training.sharding import weights_are_spread
from lightning_dadpo.training.student import StudentModule
from lightning_dadpo.types import ResponseBatch

__all__ = ["OnPolicy", "DistillationModule"]

TEACHER = "teacher"
DIVERGENCE = "divergence"
"""What the distance to the teacher is called among the parts of a sum."""


class DistillationModule(StudentModule):
    """Brings a student near to a teacher token by token; the loss of a response is the mean over its tokens.

    A step's loss is the mean over its responses, which is known before the student has sampled any of them.

    Args:
        student: the model that training starts from.
        teacher: a frozen model that is kept in memory; it must read token ids as the student does.
        loss: the distance, for example `ForwardKL`.
        optimizer: class and arguments; it is given the student's trainable parameters alone.
        schedule: warm-up and cosine.
        terms: further losses of the same responses, by a name for the logs, for example `ResponseNLL`, which counts on
            the data's responses alone.
        on_policy: let the student answer a share of the prompts itself; by default the data's responses alone.
        adapter: a LoRA adapter to train in place of the student's own weights.
    """

    trains_on = "responses"

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        loss: TokenDivergence,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        terms: dict[str, WeightedTerm] | None = None,
        on_policy: OnPolicy | None = None,
        adapter: AdapterSpec | None = None,
    ) -> None:
        self.terms = dict(terms or {})
        self._check_terms(on_policy)
        names = ["loss", "nll_per_token", "response_tokens"]
        names += ["own_samples"] if on_policy is not None else []
        names += [f"part/{part}" for part in (DIVERGENCE, *self.terms)] if self.terms else []
        super().__init__(student, optimizer, schedule, names, adapter)
        self.teacher_spec, self.loss, self.on_policy = teacher, loss, on_policy
        self._ends: tuple[int, ...] = ()

    def _check_terms(self, on_policy: OnPolicy | None) -> None:
        """Refuse a name that is taken, and a term that could never count.

        Raises:
            ConfigError: naming the term.
        """
        if DIVERGENCE in self.terms:
            raise ConfigError(f"model.terms.{DIVERGENCE}: that is what the loss itself is called in the logs")
        for name, one in self.terms.items():
            if on_policy is not None and on_policy.fraction == 1 and isinstance(one.term, ResponseNLL):
                raise ConfigError(
                    f"model.terms.{name}: ResponseNLL learns from the data's responses, and with "
                    "model.on_policy.fraction 1.0 there are none; expected a smaller fraction, or no such term"
                )

    def setup(self, stage: str) -> None:
        """See `StudentModule.setup`.

        Raises:
            ConfigError: the student is to answer and no rank holds the whole of it.
        """
        super().setup(stage)
        if self.on_policy is not None and weights_are_spread(self.trainer.strategy):
            raise ConfigError(
                f"model.on_policy: {type(self.trainer.strategy).__name__} shards the student, which then cannot answer "
                "by itself on a rank; expected ddp, DeepSpeed ZeRO-2 or one process"
            )

    def configure_model(self) -> None:
        """Load the student and the teacher."""
        if TEACHER not in self.frozen:
            instead = "a token-level distance needs one that shares it"
            check_same_tokenizer(self.student_spec, self.teacher_spec, "model.teacher", instead)
        super().configure_model()
        if TEACHER not in self.frozen:
            self.frozen[TEACHER] = self.load(self.teacher_spec, trainable=False)
        models: list[Any] = [self.student, self.frozen[TEACHER]]
        own, others = (len(model.get_output_embeddings().weight) for model in models)
        if self.on_policy is not None and own > others > 0:  # 0: spread over ranks, which is refused anyway
            raise ConfigError(
                f"model.on_policy: the student can say {own} ids and the teacher reads {others}; expected a teacher "
                "that knows every id of the student"
            )

    @property
    def longest_own_response(self) -> int:
        """Tokens that a response may come to whatever the data's has; 0 where the student answers nothing itself."""
        return 0 if self.on_policy is None else self.on_policy.sampler.max_new_tokens

    def describe(self) -> dict[str, Any]:
        """See `StudentModule.describe`."""
        terms = {
            name: {"weight": one.weight, "name": type(one.term).__name__} | vars(one.term)
            for name, one in self.terms.items()
        }
        objective = {"name": type(self.loss).__name__} | vars(self.loss) | {"terms": terms}
        if self.on_policy is not None:
            objective["on_policy"] = asdict(self.on_policy)
        said = {"stage": "distillation", "objective": objective}
        return super().describe() | said | {"teacher": asdict(self.teacher_spec)}

    def _continued_from(self, said: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """See `StudentModule`; another teacher would be another loss from here on."""
        was, now = said.get("teacher", {}), asdict(self.teacher_spec)
        same = {f"teacher.{name}": (was.get(name), now[name]) for name in ("path", "revision", "gguf_file", "quantize")}
        own = "on_policy" in said.get("objective", {}), self.on_policy is not None
        return super()._continued_from(said) | same | {"on_policy": own}

    def _evaluate(self, batch: ResponseBatch, own: Tensor) -> dict[str, Tensor]:
        """Everything that is said of each response, one number each; `own` is 1 where the student sampled it."""
        trees = batch.sequences
        kinds = {DIVERGENCE: self.loss} | {name: one.term for name, one in self.terms.items()}
        distant = {name: kind for name, kind in kinds.items() if isinstance(kind, TokenDivergence)}
        asked = predictor(self.frozen[TEACHER], trees)
        divergences = [kind.at_positions for kind in distant.values()]
        policy, sums = log_probs_and_divergences(self.student, trees, asked, divergences)
        distances = dict(zip(distant, sums, strict=True))
        parts = {name: kind(policy, distances.get(name)) for name, kind in kinds.items()}
        for name, kind in kinds.items():
            if isinstance(kind, ResponseNLL):  # its own samples would teach it nothing but its faults
                parts[name] = parts[name] * (1 - own)
        total = parts[DIVERGENCE]
        for name, one in self.terms.items():
            total = total + one.weight * parts[name]
        values = {"loss": total, "nll_per_token": response_nll_per_token(policy), "own_samples": own}
        values["response_tokens"] = policy.num_tokens.float()
        return values | {f"part/{name}": value for name, value in parts.items()}

    def training_step(self, batch: ResponseBatch, batch_index: int) -> Tensor:
        """The sum over the micro-batch divided by the responses of the whole step, frameworks' divisors undone."""
        batch, own = self._with_own_samples(batch)
        values = self._evaluate(batch, own)
        self.training_means.update(values, batch.weights)
        self.log_training_means()
        total = (values["loss"] * batch.weights).sum()
        return total / batch.responses_in_step * framework_divisor(self.trainer)

    def validation_step(self, batch: ResponseBatch, batch_index: int) -> None:
        """Means over the split's own responses."""
        self.evaluation_means.update(self._evaluate(batch, torch.zeros_like(batch.weights)), batch.weights)

    def test_step(self, batch: ResponseBatch, batch_index: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_index)

    def _with_own_samples(self, batch: ResponseBatch) -> tuple[ResponseBatch, Tensor]:
        """The batch with some responses replaced by what the student answers now, and which ones.

        Which ones and what is drawn follow from the sampler's seed, the step and the row, so that a run that goes on
        draws what it would have drawn.
        """
        own = torch.zeros_like(batch.weights)
        if self.on_policy is None or not batch.real_tokens:  # a filler stays as it is
            return batch, own
        step, seed = self.trainer.global_step, self.on_policy.sampler.seed
        keys = [f"step {step}, {name}" for name in batch.response_ids]
        drawn = [row for row, key in enumerate(keys) if _uniform(seed, key) < self.on_policy.fraction]
        if not drawn:
            return batch, own
        responses = [list(response) for _, response in batch.ids]
        answers = self._answers([batch.ids[row][0] for row in drawn], [keys[row] for row in drawn])
        for row, answer in zip(drawn, answers, strict=True):
            responses[row] = answer
            own[row] = 1.0
        prompts = [prompt for prompt, _ in batch.ids]
        batch.sequences = pack(prompts, [[response] for response in responses]).to(batch.weights.device)
        batch.real_tokens = sum(map(len, [*prompts, *responses]))
        return batch, own

    @torch.no_grad()
    def _answers(self, prompts: list[list[int]], keys: list[str]) -> list[list[int]]:
        """What the student, without dropout, answers to prompts."""
        assert self.on_policy is not None
        if not self._ends:
            self._ends = end_of_turn_ids(self.student, load_tokenizer(self.student_spec))
        with in_eval_mode(self.student):
            sampler = TransformersSampler(self.student, self._ends, self.on_policy.sampler, len(prompts))
            return [one.token_ids for one in sampler.sample(prompts, keys)]


def _uniform(seed: int, key: str) -> float:
    """A number in [0, 1) that nothing but the seed and the key decide."""
    return int(content_digest("on-policy", seed, key), 16) / 16**16
