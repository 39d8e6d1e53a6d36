"""The student that an experiment is about beside its other students, prompt by prompt, for the report's first page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import read_rows
from lightning_dadpo.errors import DataError
from lightning_dadpo.reports.inputs import Nearness
from lightning_dadpo.reports.reading import QUESTIONS
from lightning_dadpo.reports.table import TEACHER, main_student

__all__ = ["nearness"]


def nearness(evaluation: Path) -> list[Nearness]:
    """The main student's forward KL against every other student's, and what else the report asks.

    All of them read the same answers, the teacher's, so prompts are drawn in pairs and tokens count once.

    Args:
        evaluation: the evaluation artefact.

    Raises:
        ArtifactError, DataError: it is incomplete, or models were measured on different prompts.
    """
    from lightning_dadpo.evaluation.evaluate import EvaluationRow  # torch

    read_manifest(evaluation, "evaluation")
    distances: dict[str, dict[str, float]] = {}
    tokens: dict[str, int] = {}
    for row in read_rows(evaluation / "rows.jsonl", EvaluationRow):
        distances.setdefault(row.model, {})[row.prompt_id] = row.forward_kl
        tokens[row.prompt_id] = row.teacher_tokens
    main = main_student(list(distances))
    if main is None:
        return []
    wanted = [(main, other) for other in distances if other not in (main, TEACHER)]
    wanted += [(model, other) for model, other, _ in QUESTIONS if model in distances and other in distances]
    return [_compare(model, other, distances, tokens) for model, other in dict.fromkeys(wanted)]


def _compare(
    main: str, other: str, distances: Mapping[str, Mapping[str, float]], tokens: Mapping[str, int]
) -> Nearness:
    from lightning_dadpo.evaluation.bootstrap import ratio_interval

    mine, theirs = distances[main], distances[other]
    if mine.keys() != theirs.keys():
        raise DataError(f"evaluation: {main} and {other} were measured on different prompts")
    prompts = sorted(mine)
    differences = [mine[prompt] - theirs[prompt] for prompt in prompts]
    difference = ratio_interval(differences, [tokens[prompt] for prompt in prompts])
    share = ratio_interval([mine[prompt] for prompt in prompts], [theirs[prompt] for prompt in prompts])
    bounds = (difference.value, difference.low, difference.high, share.value, share.low, share.high)
    return Nearness(main, other, *bounds)
