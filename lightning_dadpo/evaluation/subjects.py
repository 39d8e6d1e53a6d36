"""What the stage `dadpo evaluate` compares: models with what they sampled, refused where no comparison is fair."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import ResponseRow, read_rows
from lightning_dadpo.errors import ArtifactError, DataError
from lightning_dadpo.models.loading import model_digest
from lightning_dadpo.models.spec import ModelSpec

__all__ = [
    "Candidate", "Subject", "read_subject", "without",
    "check_same_prompts", "check_vocabulary", "check_finite_weights",
]  # fmt: skip

Model = Any


@dataclass(frozen=True)
class Candidate:
    """A student to measure.

    Attributes:
        model: where it is.
        responses: artefact of what this very model sampled for the held-out prompts.
    """

    model: ModelSpec
    responses: str


@dataclass(frozen=True)
class Subject:
    """A model with what it sampled for the split, by prompt id."""

    name: str
    spec: ModelSpec
    digest: str
    folder: Path
    responses_digest: str
    sampler: dict[str, Any]
    rows: dict[str, ResponseRow]


def read_subject(name: str, spec: ModelSpec, responses: str, split: str) -> Subject:
    """A model and its responses of one split, the first one to each prompt.

    Args:
        name: what the summary calls it.
        spec: the model that the responses must come from.
        responses: artefact of kind "responses".
        split: which of its rows count.

    Raises:
        ArtifactError: the artefact is incomplete, another model sampled it, or it holds another tokenizer's ids.
        DataError: a prompt is answered twice or by nothing, or the split has no rows.
    """
    folder = Path(responses)
    manifest, digest = read_manifest(folder, "responses"), model_digest(spec)
    if manifest.made_from.get("model") != digest:
        raise ArtifactError(
            f"{folder}: was sampled by model {manifest.made_from.get('model')}, but {name} is {spec.path} "
            f"with digest {digest}; sample it again"
        )
    if "reread_by" in manifest.made_from:
        raise ArtifactError(
            f"{folder}: holds what {name} said in another tokenizer's ids (dadpo reread), which are other words to it; "
            "distances are measured token by token and need models that share a tokenizer"
        )
    path, rows = folder / "rows.jsonl", {}
    for row in read_rows(path, ResponseRow):
        if row.split == split and row.candidate == 0:  # the others are for pairing rules to choose among
            if row.prompt_id in rows:
                raise DataError(f"{path}: prompt {row.prompt_id!r} is answered twice in split {split!r}")
            if not row.token_ids:
                raise DataError(f"{path}: the response to prompt {row.prompt_id!r} is empty, expected at least 1 token")
            rows[row.prompt_id] = row
    if not rows:
        raise DataError(f"{path}: no response of split {split!r}")
    return Subject(name, spec, digest, folder, manifest.files[path.name], manifest.made_from.get("sampler", {}), rows)


def without(subject: Subject, prompts: Container[str]) -> Subject:
    """The subject without its responses to these prompts."""
    return replace(subject, rows={prompt: row for prompt, row in subject.rows.items() if prompt not in prompts})


def check_same_prompts(teacher: Subject, students: list[Subject]) -> None:
    """Refuse students that answered other prompts than the teacher, or the same ones rendered to other token ids.

    Other token ids mean another template or tokenizer; the distance would be that of two different questions.

    Raises:
        DataError: naming the student's folder and the first such prompt.
    """
    for student in students:
        if lacking := sorted(teacher.rows.keys() ^ student.rows.keys()):
            who, other = (student, teacher) if lacking[0] in teacher.rows else (teacher, student)
            raise DataError(
                f"{student.folder}: {student.name} answered other prompts than the teacher "
                f"({len(lacking)} differ; {lacking[0]!r} is in {other.folder}, not in {who.folder})"
            )
        for prompt, row in student.rows.items():
            if row.prompt_token_ids != teacher.rows[prompt].prompt_token_ids:
                raise DataError(
                    f"{student.folder}: prompt {prompt!r} has other token ids than in {teacher.folder}: "
                    "the two models need one tokenizer and one chat template"
                )


def check_vocabulary(name: str, model: Model, subjects: list[Subject]) -> None:
    """Refuse token ids that a model has no embedding for.

    Raises:
        DataError: naming the responses, the prompt, the id and the model's number of ids.
    """
    size = model.get_input_embeddings().num_embeddings
    for subject in subjects:
        for prompt, row in subject.rows.items():
            if (largest := max(row.prompt_token_ids + row.token_ids)) >= size:
                raise DataError(
                    f"{subject.folder}: prompt {prompt!r} holds token id {largest}, but {name} knows ids below {size}"
                )


def check_finite_weights(subject: Subject, model: Model) -> None:
    """Refuse a model that its training broke, before it spreads NaN over every number.

    Raises:
        DataError: naming the model and the weight.
    """
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise DataError(f"model {subject.name!r} ({subject.spec.path}): weight {name} holds NaN or infinity")
