"""What an experiment lays over its training recipes: the models, data and checks that only the pipeline knows."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from lightning_dadpo.cli.experiment import FitRecipe
from lightning_dadpo.cli.recipe import merge, merged_settings, shards_the_student
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling.base import SamplerSettings

__all__ = ["supervised", "distillation", "preference", "check_scores", "callbacks"]


def supervised(initial: ModelSpec, answers: str, keep_cut: bool) -> dict[str, Any]:
    """Fine-tuning on the teacher's answers."""
    return {
        "model": {"class_path": "SupervisedModule", "init_args": {"student": asdict(initial)}},
        "data": _responses(answers, keep_cut),
    }


def distillation(start: ModelSpec, teacher: ModelSpec, answers: str, keep_cut: bool) -> dict[str, Any]:
    """Token by token, with the teacher in memory."""
    models = {"student": asdict(start), "teacher": asdict(teacher)}
    return {
        "model": {"class_path": "DistillationModule", "init_args": models},
        "data": _responses(answers, keep_cut),
    }


def _responses(answers: str, keep_cut: bool) -> dict[str, Any]:
    return {
        "class_path": "SupervisedData",
        "init_args": {
            "train": {"folder": answers, "split": "train", "keep_cut": keep_cut},
            "validation": {"folder": answers, "split": "validation", "keep_cut": keep_cut},
        },
    }


def preference(start: ModelSpec, pairs: str, anchors: dict[str, Any], scored_by: list[str]) -> dict[str, Any]:
    """Training on pairs.

    Args:
        start: the model that training starts from.
        pairs: the pairs folder.
        anchors: where each anchor's log-probs come from.
        scored_by: scores that may have left pairs out, since another tokenizer could not read them.
    """
    sources = {split: {"folder": pairs, "split": split} for split in ("train", "validation")}
    data = {split: source | ({"scored_by": scored_by} if scored_by else {}) for split, source in sources.items()}
    return {
        "model": {"class_path": "PreferenceModule", "init_args": {"student": asdict(start), "anchors": anchors}},
        "data": {"class_path": "PreferenceData", "init_args": data},
    }


def check_scores(teacher: ModelSpec, starts_at_reference: bool, chosen_from_teacher: bool) -> dict[str, Any]:
    """The checks before the first step; what is usual is not said."""
    said: dict[str, Any] = {"teacher": asdict(teacher)}
    if not starts_at_reference:
        said["starts_at_reference"] = False
    if not chosen_from_teacher:
        said["chosen_from_teacher"] = False
    return {"class_path": "CheckScores", "init_args": said}


def callbacks(
    checks: list[dict[str, Any]],
    teacher: ModelSpec,
    answers: str,
    rejected: str | None,
    recipe: FitRecipe,
    sampling: SamplerSettings,
) -> dict[str, Any]:
    """What only the pipeline can fill in: the teacher that is audited, the answers to compare with, and how to draw.

    A student is watched as the evaluation will sample it, with the seed of students, so that the two can be compared.
    One that is spread over devices cannot be sampled on the way, so nothing is watched there.
    """
    said = list(checks)
    if not shards_the_student(merged_settings(recipe)):
        watch = {
            "teacher": asdict(teacher),
            "teacher_responses": answers,
            "reference_responses": rejected,
            "sampler": asdict(replace(sampling, seed=sampling.seed + 1)),
        }
        said.append({"class_path": "WatchDistances", "init_args": merge(watch, recipe.watch)})
    return {"trainer": {"callbacks+": said}}
