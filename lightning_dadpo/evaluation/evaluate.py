"""The stage `dadpo evaluate`: how far students are from their teacher on held-out prompts.

Two models are in memory at a time, the teacher and one student. The student reads both responses to a prompt in one
forward pass (`distances`), the teacher everybody's, once, as long as its states may be kept (`teacher_readings`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor

from lightning_dadpo.data.artifacts import draft, finished, write_atomically
from lightning_dadpo.data.rows import STRICT, ResponseRow, RowWriter, read_rows
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation.answers import check_same_sampler
from lightning_dadpo.evaluation.bootstrap import Interval, mean_interval, ratio_interval
from lightning_dadpo.evaluation.distances import BothAnswers, distance_sums, read_both
from lightning_dadpo.evaluation.left_out import leave_out, training_digests
from lightning_dadpo.evaluation.subjects import (
    Candidate,
    Subject,
    check_finite_weights,
    check_same_prompts,
    check_vocabulary,
    read_subject,
    without,
)
from lightning_dadpo.evaluation.teacher_readings import TeacherReadings
from lightning_dadpo.evaluation.text_statistics import distinct, text_statistics
from lightning_dadpo.evaluation.token_maps import TokenMaps
from lightning_dadpo.logprobs import Predictor
from lightning_dadpo.models.loading import autocast, count_parameters, load_frozen
from lightning_dadpo.models.log_probs import check_trunk_and_head
from lightning_dadpo.models.numerics import default_device, inference_precision
from lightning_dadpo.models.spec import ModelSpec, Precision
from lightning_dadpo.progress import progress

__all__ = ["Candidate", "EvaluationRow", "evaluate"]

TEACHER = "teacher"
Model = Any


@validated_dataclass(frozen=True, config=STRICT)
class EvaluationRow:
    """Sums and counts of one model on one prompt; estimates are ratios of their sums over prompts.

    Attributes:
        model: the candidate's name, or `teacher`.
        prompt_id: the held-out prompt.
        finished: its own sample ended by itself.
        tokens: tokens of its own sample, the emitted end-of-turn token included.
        repeated: 4-grams of its own sample that had occurred before in it.
        ngrams: 4-grams of its own sample.
        teacher_log_prob: the teacher's log-prob of its own sample, nats.
        reverse_kl: sum over its own sample of KL(model || teacher), nats.
        forward_kl: sum over the teacher's sample of KL(teacher || model), nats.
        teacher_tokens: tokens of the teacher's sample.
    """

    model: str
    prompt_id: str
    finished: bool
    tokens: int
    repeated: int
    ngrams: int
    teacher_log_prob: float
    reverse_kl: float
    forward_kl: float
    teacher_tokens: int


def evaluate(
    candidates: dict[str, Candidate],
    teacher: ModelSpec,
    teacher_responses: str,
    out: str,
    split: str = "heldout",
    batch_size: int = 8,
    precision: Precision | None = None,
    resamples: int = 2000,
    token_maps: int = 4,
    reference: str | None = None,
    trained_on: list[str] | None = None,
) -> Path:
    """Measure candidates against the teacher; a killed run goes on where it stopped.

    Makes an artefact of kind "evaluation": `rows.jsonl`, a row a model and prompt, and `summary.json`, a row a model
    with `model`, `parameters`, `prompts` and the estimates X = `finished`, `mean_tokens`, `repetition`, `distinct_1`,
    `distinct_2` (within a response: `text_statistics`), `teacher_nll`, `forward_kl`, `reverse_kl` (the last three in
    nats/token), each with `X_low` and `X_high`; and
    `token_maps.jsonl`, where teacher, reference and student differ on a few responses (`data.analysis.TokenMapRow`).

    Args:
        candidates: the students by name; `teacher` is added as the yardstick.
        teacher: the model that distances are measured to.
        teacher_responses: artefact of what the teacher sampled for the same prompts.
        out: folder to make; complete or absent.
        split: which prompts of the artefacts count.
        batch_size: prompts at a time.
        precision: number format; by default what this machine is fast in.
        resamples: bootstrap draws over prompts for the 95 % intervals.
        token_maps: prompts whose responses, the teacher's and each student's own, are kept token by token; the first
            ones of the teacher's file, 0 for none.
        reference: the candidate that preference trainings start from; asked about every such response.
        trained_on: what the models were trained on, prompt files (.jsonl) or artefacts of kind "responses" or "pairs";
            prompts that stand there too, exactly or nearly (`data.overlap`), are left out and counted.

    Raises:
        ConfigError: a name or a number is not usable.
        ArtifactError: an artefact is incomplete, or was sampled by another model than the one beside it.
        DataError: models answered different prompts or sampled under different settings, a number is not finite, or
            every prompt was trained on.
    """
    _check_arguments(candidates, batch_size, resamples)
    device = default_device()
    precision = precision or inference_precision(device)
    yardstick = read_subject(TEACHER, teacher, teacher_responses, split)
    students = [read_subject(name, one.model, one.responses, split) for name, one in candidates.items()]
    check_same_prompts(yardstick, students)
    check_same_sampler(students)
    made_from = {
        "models": {one.name: [one.digest, one.spec.attention, one.responses_digest] for one in [yardstick, *students]},
        "split": split,
        "batch_size": batch_size,
        "backend": f"{device.type} {precision}",
        "resamples": resamples,
        "token_maps": [token_maps, reference],
    } | ({"trained_on": training_digests(trained_on)} if trained_on else {})
    if finished(out, "evaluation", made_from):
        return Path(out)
    asked = {prompt: row.messages for prompt, row in yardstick.rows.items()}
    left_out = leave_out(asked, trained_on or [], f"prompts of split {split!r}")
    yardstick, *students = (without(subject, left_out) for subject in (yardstick, *students))
    maps = TokenMaps(yardstick, students, reference, token_maps)
    with draft(out, "evaluation", made_from) as work:
        measurement = _Measurement(work.path / "rows.jsonl", yardstick, precision, batch_size, resamples, maps)
        summary = measurement.run(students)
        _write_token_maps(work.path / "token_maps.jsonl", maps)
        write_atomically(work.path / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
        work.counts = {"models": len(summary), "prompts": len(yardstick.rows)}
        work.results = {
            "device": device.type,
            "precision": precision,
            "sampler": students[0].sampler,
            "teacher_sampler": yardstick.sampler,
        } | ({"left_out": {prompt: str(overlap) for prompt, overlap in left_out.items()}} if trained_on else {})
    return Path(out)


Record = Callable[[list[EvaluationRow]], None]
"""Keeps rows that were just measured."""


class _Measurement:
    """The teacher, loaded once, and the rows measured so far."""

    def __init__(
        self, path: Path, teacher: Subject, precision: Precision, batch_size: int, resamples: int, maps: TokenMaps
    ) -> None:
        self.path, self.teacher, self.precision, self.resamples = path, teacher, precision, resamples
        self.maps = maps
        # like lengths together; the same batches on every start, so that a resumed run gives the same numbers
        length = {name: len(row.prompt_token_ids) + len(row.token_ids) for name, row in teacher.rows.items()}
        self.prompts = sorted(teacher.rows, key=lambda name: (length[name], name))
        self.batches = [self.prompts[at : at + batch_size] for at in range(0, len(self.prompts), batch_size)]
        self.done: dict[tuple[str, str], EvaluationRow] = {}

    def run(self, students: list[Subject]) -> list[dict[str, Any]]:
        """Measure what is missing; the summary, the students first, then the teacher."""
        with RowWriter(self.path) as writer:
            self.done = {(row.model, row.prompt_id): row for row in read_rows(self.path, EvaluationRow)}
            total = len(self.prompts) * (len(students) + 1)
            with progress("evaluating (prompts x models)", total, len(self.done)) as bar:

                def record(rows: list[EvaluationRow]) -> None:
                    writer.write(*rows)
                    self.done |= {(row.model, row.prompt_id): row for row in rows}
                    bar.advance(len(rows))

                teacher_model = self._load(self.teacher)
                check_vocabulary(TEACHER, teacher_model, [self.teacher, *students])
                self.maps.ask(TEACHER, teacher_model, self.precision)
                readings = TeacherReadings(teacher_model, self.teacher, students, self.batches, self.precision)
                summary = [self._measure_student(student, readings, record) for student in students]
                return [*summary, self._measure(self.teacher, teacher_model, readings, record)]

    def _load(self, subject: Subject) -> Model:
        model = load_frozen(subject.spec, self.precision, default_device())
        check_finite_weights(subject, model)
        with autocast(self.precision, default_device()):  # as it will be read
            check_trunk_and_head(model, subject.name)
        return model

    def _measure_student(self, student: Subject, readings: TeacherReadings, record: Record) -> dict[str, Any]:
        """The student lives in this call alone, so that its memory is free before the next one is loaded."""
        model = self._load(student)
        check_vocabulary(student.name, model, [self.teacher, student])
        self.maps.ask(student.name, model, self.precision)
        return self._measure(student, model, readings, record)

    def _measure(self, subject: Subject, model: Model, readings: TeacherReadings, record: Record) -> dict[str, Any]:
        for number, prompts in enumerate(self.batches):
            missing = {prompt for prompt in prompts if (subject.name, prompt) not in self.done}
            if missing:
                # the whole batch again, also when only some rows are missing: its shape decides the last digits
                rows = self._measure_batch(subject, model, readings.of(number, subject), prompts)
                record([row for row in rows if row.prompt_id in missing])
        rows = [self.done[subject.name, prompt] for prompt in self.prompts]
        responses = [subject.rows[prompt].token_ids for prompt in self.prompts]
        summary = _summarise(subject.name, count_parameters(model), rows, responses, self.resamples)
        print(
            f"{subject.name}: forward KL {summary['forward_kl']:.3f}, reverse KL {summary['reverse_kl']:.3f}, "
            f"teacher {summary['teacher_nll']:.3f} nats/token",
            flush=True,
        )
        return summary

    def _measure_batch(
        self, subject: Subject, model: Model, teachers: list[Predictor], prompts: list[str]
    ) -> list[EvaluationRow]:
        own = [subject.rows[prompt] for prompt in prompts]
        of_teacher = [self.teacher.rows[prompt] for prompt in prompts]
        both = [_answers(*rows) for rows in zip(of_teacher, own, strict=True)]
        reading = teachers if subject is self.teacher else read_both(model, both, self.precision)
        sums = distance_sums(teachers, reading, both, self.precision)
        return [
            EvaluationRow(
                model=subject.name,
                prompt_id=prompt,
                **asdict(text_statistics(own[at])),
                teacher_log_prob=_finite(subject.name, prompt, "teacher_log_prob", sums.teacher_log_prob[at]),
                reverse_kl=_finite(subject.name, prompt, "reverse_kl", sums.reverse_kl[at]),
                forward_kl=_finite(subject.name, prompt, "forward_kl", sums.forward_kl[at]),
                teacher_tokens=int(sums.teacher_tokens[at]),
            )
            for at, prompt in enumerate(prompts)
        ]


def _write_token_maps(path: Path, maps: TokenMaps) -> None:
    path.unlink(missing_ok=True)  # a killed run may have left it
    with RowWriter(path) as writer:
        writer.write(*maps.rows())


def _answers(teacher: ResponseRow, student: ResponseRow) -> BothAnswers:
    """Both rows say the prompt's ids, and the same ones (`check_same_prompts`)."""
    return BothAnswers(teacher.prompt_token_ids, teacher.token_ids, student.token_ids)


def _summarise(
    name: str, parameters: int, rows: list[EvaluationRow], responses: list[list[int]], resamples: int
) -> dict[str, Any]:
    """One row of `summary.json`: ratios of sums over prompts, with intervals."""
    tokens, teacher_tokens = [row.tokens for row in rows], [row.teacher_tokens for row in rows]
    estimates: dict[str, Interval] = {
        "finished": mean_interval([row.finished for row in rows], resamples=resamples),
        "mean_tokens": mean_interval(tokens, resamples=resamples),
        "repetition": ratio_interval([row.repeated for row in rows], [row.ngrams for row in rows], resamples=resamples),
        "distinct_1": _distinct(responses, 1, resamples),
        "distinct_2": _distinct(responses, 2, resamples),
        "teacher_nll": ratio_interval([-row.teacher_log_prob for row in rows], tokens, resamples=resamples),
        "forward_kl": ratio_interval([row.forward_kl for row in rows], teacher_tokens, resamples=resamples),
        "reverse_kl": ratio_interval([row.reverse_kl for row in rows], tokens, resamples=resamples),
    }
    summary: dict[str, Any] = {"model": name, "parameters": parameters, "prompts": len(rows)}
    for estimate, interval in estimates.items():
        summary |= {estimate: interval.value, f"{estimate}_low": interval.low, f"{estimate}_high": interval.high}
    return summary


def _distinct(responses: list[list[int]], order: int, resamples: int) -> Interval:
    new, total = zip(*(distinct(token_ids, order) for token_ids in responses), strict=True)
    return ratio_interval(new, total, resamples=resamples)


def _finite(model: str, prompt: str, name: str, value: Tensor) -> float:
    """The number, which must be one: an infinite distance is a defect to name, not a row to write."""
    number = float(value)
    if not math.isfinite(number):
        raise DataError(f"model {model!r}, prompt {prompt!r}: {name} is {number}, expected a finite number")
    return number


def _check_arguments(candidates: dict[str, Candidate], batch_size: int, resamples: int) -> None:
    if not candidates:
        raise ConfigError("candidates: none given, expected at least one")
    if TEACHER in candidates:
        raise ConfigError(f"candidates: the name {TEACHER!r} is kept for the yardstick, choose another")
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size}: expected at least 1")
    if resamples < 1:
        raise ConfigError(f"resamples {resamples}: expected at least 1")
