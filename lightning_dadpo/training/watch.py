"""How far the student is from the teacher, and what a judge prefers, measured on fresh samples while it trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_dadpo.data.artifacts import read_manifest, write_atomically
from lightning_dadpo.data.rows import Message, ResponseRow, content_digest, read_rows
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation.asking import both_orders
from lightning_dadpo.evaluation.distances import BothAnswers, distance_sums, read_both
from lightning_dadpo.evaluation.judges import Judge
from lightning_dadpo.evaluation.preference_rate import Verdict
from lightning_dadpo.evaluation.subjects import Subject, check_vocabulary, read_subject
from lightning_dadpo.models.loading import autocast, end_of_turn_ids, load_frozen, load_tokenizer
from lightning_dadpo.models.log_probs import check_trunk_and_head
from lightning_dadpo.models.numerics import inference_precision
from lightning_dadpo.models.spec import ModelSpec, Precision
from lightning_dadpo.sampling.base import Sampled, SamplerSettings
from lightning_dadpo.sampling.transformers_sampler import TransformersSampler
from lightning_dadpo.training.distillation import DistillationModule
from lightning_dadpo.training.fresh_samples import (
    check_drawn_alike,
    comparisons,
    text_values,
    verdict_values,
    verdicts,
)
from lightning_dadpo.training.loggers import ExperimentLogger
from lightning_dadpo.training.preference import PreferenceModule
from lightning_dadpo.training.sharding import weights_are_spread
from lightning_dadpo.training.student import StudentModule, in_eval_mode

__all__ = ["WatchDistances"]

SPLIT = "validation"
SAMPLES = "samples.jsonl"


class WatchDistances(L.Callback):
    """Lets the student answer a few validation prompts, and logs how far it is from the teacher.

    `val/forward_kl` is KL(teacher || student) on the teacher's responses, `val/reverse_kl` KL(student || teacher) and
    `val/teacher_nll` the teacher's nats on the student's fresh samples: nats per token, ratios of sums. A margin can
    improve while the student breaks; these show it, so `ModelCheckpoint` and `EarlyStopping` may monitor them. Of the
    same samples it logs `val/repetition` (share of 4-grams that occurred before), `val/finished` (share that ended by
    itself) and `val/mean_tokens`.

    A judge says besides how often it prefers the fresh samples to the teacher's responses: `val/win`, `val/tie`,
    `val/lose`, `val/preference_rate` (win less lose, in [-1, 1]) and `val/longer_wins`, the rate of a judge that
    prefers whoever wrote more. Each pair is judged in both orders, a disagreement is a tie. Give it more prompts than
    four: over n prompts the rate moves by about 1 / sqrt(n). A judge that shares its taste with the teacher or the loss
    tells nothing new.

    When: before the first step (`at_start`), after every validation, and after the last step when no validation fell
    there. So how often is set by the trainer's `val_check_interval`: a share of an epoch, or a whole number of
    micro-batches (of which a step takes `accumulate_grad_batches`), alongside the validation loss. What is measured
    before the first and after the last step is logged, but comes too late for a monitor.

    On the axis of the curves stands the index of the last step, from 0, as for all that Lightning logs. The texts go
    to `samples.jsonl` in `trainer.default_root_dir`, whose `step` counts the steps done, and as a table to an
    `ExperimentLogger`.

    The student runs in the trainer's precision. The teacher is loaded once, in this machine's fast number format, and
    stays in memory during the fit; a live anchor `teacher` of the same model is used instead. Training is not
    disturbed: random states and modes are put back (trap C4).

    Only rank 0 measures and asks the judge, the other ranks wait; what stops it stops them all. Sharded students (FSDP,
    ModelParallelStrategy, DeepSpeed ZeRO-3) are refused: there every rank has to take part in every forward pass of
    `generate` (synced generation).

    Args:
        teacher: the model to be near to.
        teacher_responses: artefact of what it sampled; the split `validation` is used.
        reference_responses: artefact of what the reference sampled for the same prompts, to show beside the student's.
        prompts: how many prompts, at most; always the same ones, drawn by the sampler's seed.
        sampler: how the student answers; the same draws on every occasion.
        at_start: measure before the first step too.
        judge: whom to ask; the sampler then draws as the teacher's responses were drawn.
    """

    def __init__(
        self,
        teacher: ModelSpec,
        teacher_responses: str,
        reference_responses: str | None = None,
        prompts: int = 4,
        sampler: SamplerSettings | None = None,
        at_start: bool = True,
        judge: Judge | None = None,
    ) -> None:
        if prompts < 1:
            raise ConfigError(f"WatchDistances: prompts {prompts}, expected at least 1")
        self.teacher, self.teacher_responses, self.reference_responses = teacher, teacher_responses, reference_responses
        self.prompts, self.sampler, self.at_start = prompts, sampler or SamplerSettings(), at_start
        self.judge, self._cost_said = judge, False
        self._subject: Subject | None = None
        self._rows: list[ResponseRow] = []
        self._reference: dict[str, str] = {}
        self._loaded: Any = None
        self._measured_at: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the responses, so that a mistake shows before anything trains.

        Raises:
            ConfigError: the strategy shards the student, the module has none, or another one watches too.
            ArtifactError, DataError: the responses are not the teacher's, or do not fit one another; or a judge would
                compare what was drawn under different settings.
        """
        if stage not in ("fit", "validate"):
            return
        _refuse_sharded(trainer)
        if sum(isinstance(callback, WatchDistances) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise ConfigError("trainer.callbacks: WatchDistances twice; `dadpo run` brings its own, expected one")
        if not isinstance(pl_module, StudentModule):
            raise ConfigError(f"WatchDistances: {type(pl_module).__name__} trains no student")
        if trainer.is_global_zero and self._subject is None:
            self._subject = read_subject("teacher", self.teacher, self.teacher_responses, SPLIT)
            if self.judge is not None:
                check_drawn_alike(self._subject, self.sampler)
                self.judge.identity()  # a model that is not there is missed now, not after half an epoch
            chosen = sorted(self._subject.rows, key=lambda prompt: content_digest(self.sampler.seed, prompt))
            self._rows = [self._subject.rows[prompt] for prompt in chosen[: self.prompts]]
            if self.reference_responses is not None:
                self._reference = _texts(self.reference_responses, self._rows)

    def on_train_start(self, trainer: L.Trainer, pl_module: StudentModule) -> None:  # type: ignore[override]
        """A fresh run begins its samples anew; a resumed one goes on."""
        if trainer.global_step == 0:
            if trainer.is_global_zero:
                (Path(trainer.default_root_dir) / SAMPLES).unlink(missing_ok=True)
            if self.at_start:
                self._log_directly(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: StudentModule) -> None:  # type: ignore[override]
        """Log beside the other validation values, in time for `monitor`."""
        if not trainer.sanity_checking:
            pl_module.log_dict(self._measure(trainer, pl_module), sync_dist=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: StudentModule) -> None:  # type: ignore[override]
        """Measure the final student, unless the last validation just did."""
        if self._measured_at != trainer.global_step:
            self._log_directly(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Free the teacher."""
        self._loaded = None

    def _log_directly(self, trainer: L.Trainer, module: StudentModule) -> None:
        """Where `log` would only speak at the end of the epoch, or not at all."""
        values = self._measure(trainer, module)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=_axis(trainer))
            logger.save()

    def _measure(self, trainer: L.Trainer, module: StudentModule) -> dict[str, float]:
        """All values, the same on every rank; rank 0 writes the texts.

        One broadcast a rank, also where rank 0 fails: the others would wait for it until their network gives up.

        Raises:
            DataError: rank 0 failed, which raises the error itself.
        """
        self._measured_at = trainer.global_step
        values: dict[str, float] = {}
        failure: Exception | None = None
        if trainer.is_global_zero:
            try:
                values = self._measure_here(trainer, module)
            except Exception as error:
                failure = error
        values, stopped = trainer.strategy.broadcast((values, None if failure is None else str(failure)))
        if failure is not None:
            raise failure
        if stopped is not None:
            raise DataError(f"WatchDistances: rank 0 could not measure: {stopped}")
        return values

    def _measure_here(self, trainer: L.Trainer, module: StudentModule) -> dict[str, float]:
        said = None
        with isolate_rng(), in_eval_mode(module.student):
            drawn, values = self._distances(module, cast(Precision, str(trainer.precision)))
            tokenizer = load_tokenizer(module.student_spec)
            values |= text_values(drawn)
            texts = [str(tokenizer.decode(one.token_ids, skip_special_tokens=True)) for one in drawn]
            if self.judge is not None:
                asked = comparisons(self._rows, texts)
                if not self._cost_said:
                    print(f"{self.judge.name}, each time: {self.judge.cost(both_orders(asked))}", flush=True)
                    self._cost_said = True
                said = verdicts(self.judge, asked)
                values |= verdict_values(said, asked)
        self._record(trainer, texts, said)
        return values

    def _distances(self, module: StudentModule, precision: Precision) -> tuple[list[Sampled], dict[str, float]]:
        """Fresh samples and the three distances."""
        student = module.student
        tokenizer = load_tokenizer(module.student_spec)
        sampler = TransformersSampler(student, end_of_turn_ids(student, tokenizer), self.sampler)
        prompt_ids = [row.prompt_token_ids for row in self._rows]
        with autocast(precision, module.device):
            teacher = self._teacher_model(module)  # which is checked as it will be read
            drawn = sampler.sample(prompt_ids, [row.prompt_id for row in self._rows])
        both = [
            BothAnswers(row.prompt_token_ids, row.token_ids, one.token_ids)
            for row, one in zip(self._rows, drawn, strict=True)
        ]
        teachers, students = (read_both(model, both, precision) for model in (teacher, student))
        sums = distance_sums(teachers, students, both, precision)
        values = {
            "val/forward_kl": float(sums.forward_kl.sum() / sums.teacher_tokens.sum()),
            "val/reverse_kl": float(sums.reverse_kl.sum() / sums.student_tokens.sum()),
            "val/teacher_nll": float(-sums.teacher_log_prob.sum() / sums.student_tokens.sum()),
        }
        return drawn, values

    def _teacher_model(self, module: StudentModule) -> Any:
        live = None
        if isinstance(module, DistillationModule):
            live = module.teacher_spec
        elif isinstance(module, PreferenceModule) and "teacher" in module.frozen:
            live = module.anchor_sources["teacher"].model
        if live == self.teacher:
            return module.frozen["teacher"]
        if self._loaded is None:
            assert self._subject is not None
            teacher = load_frozen(self.teacher, inference_precision(module.device), module.device)
            check_trunk_and_head(teacher, self.teacher.path)
            check_vocabulary("the teacher", teacher, [self._subject])
            check_vocabulary("the student", module.student, [self._subject])
            self._loaded = teacher
        return self._loaded

    def _record(self, trainer: L.Trainer, students: list[str], said: list[Verdict] | None) -> None:
        """The rows of this step behind those of earlier ones; a resumed run repeats a step without doubling it."""
        step = trainer.global_step
        rows = [
            {
                "step": step,
                "prompt_id": row.prompt_id,
                "prompt": _shown(row.messages),
                "teacher": row.text,
                "reference": self._reference.get(row.prompt_id),
                "student": student,
            }
            for row, student in zip(self._rows, students, strict=True)
        ]
        if said is not None:
            rows = [row | {"verdict": verdict} for row, verdict in zip(rows, said, strict=True)]
        path = Path(trainer.default_root_dir) / SAMPLES
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [line for line in _lines(path) if json.loads(line)["step"] < step]
        write_atomically(path, "".join(lines + [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]))
        for logger in trainer.loggers:
            if isinstance(logger, ExperimentLogger):
                logger.log_samples(rows, _axis(trainer))


def _axis(trainer: L.Trainer) -> int:
    """Where Lightning puts what a validation logs now."""
    return max(0, trainer.global_step - 1)


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return list(file)


def _shown(messages: list[Message]) -> str:
    """The prompt as a person reads it; with its roles when it has several turns."""
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


def _texts(folder: str, rows: list[ResponseRow]) -> dict[str, str]:
    """What the reference answered to these prompts, by prompt id."""
    read_manifest(folder, "responses")
    path = Path(folder) / "rows.jsonl"
    texts = {row.prompt_id: row.text for row in read_rows(path, ResponseRow) if row.candidate == 0}
    for row in rows:
        if row.prompt_id not in texts:
            raise DataError(f"{path}: no response to prompt {row.prompt_id!r}, which the teacher answers")
    return texts


def _refuse_sharded(trainer: L.Trainer) -> None:
    strategy = trainer.strategy
    if weights_are_spread(strategy):
        raise ConfigError(
            f"WatchDistances: {type(strategy).__name__} shards the student, and sampling from it needs synced "
            "generation on every rank; remove the callback, or use ddp or DeepSpeed ZeRO-2"
        )
