"""How long an experiment will take here, before it begins: counted work over a rate measured just now.

Work is counted simply, as if the head ran on every token and no answer was dropped. What that overstates stands in the
shares of the matmul rate, which were measured with SmolLM2-135M on two CPU cores.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lightning_dadpo.cli.experiment import Experiment
from lightning_dadpo.cli.stages import Stage
from lightning_dadpo.models.spec import ModelSpec

__all__ = ["estimate_minutes"]

SHARE_OF_MATMUL_RATE = {"sample": 0.5, "score": 1.2, "train": 0.9, "evaluate": 0.55}
SECONDS_A_STAGE = 3.0
DEQUANTIZED_A_SECOND = 6e6
"""Parameters that are read from a GGUF file."""
PROMPT_TOKENS = 30
"""Of a prompt's own, short ones as shipped; what all begin with, a system prompt, is computed once."""
UNLIMITED = 256
"""Prompts of a file that is used whole, about as many as are shipped."""


@dataclass(frozen=True)
class _Work:
    """FLOPs of one stage, and which share of the matmul rate it runs at."""

    flops: float
    share: float


def estimate_minutes(experiment: Experiment, stages: list[Stage], waiting: list[Stage]) -> float | None:
    """Minutes for the stages that wait; None when the teacher's size cannot be read before it is loaded."""
    from lightning_dadpo.models.numerics import inference_precision, matmul_rate, training_precision

    size = _parameters(experiment.teacher)
    if size is None:
        return None
    rates = {"train": matmul_rate(training_precision()), "other": matmul_rate(inference_precision())}
    seconds = 0.0
    for stage in waiting:
        work = _work(experiment, stage, size)
        rate = rates["train" if stage.command == "fit" else "other"]
        seconds += SECONDS_A_STAGE + work.flops / (work.share * rate)
        if stage.name == "teacher" and experiment.teacher.gguf_file is not None:
            seconds += size / DEQUANTIZED_A_SECOND
    return seconds / 60


def _parameters(teacher: ModelSpec) -> float | None:
    """From the weights' size on disk; a 4-bit GGUF holds about 0.69 bytes a parameter, its embeddings included."""
    from pathlib import Path

    folder = Path(teacher.location())
    if teacher.gguf_file is not None and (folder / teacher.gguf_file).is_file():
        return (folder / teacher.gguf_file).stat().st_size / 0.69
    found = list(folder.glob("*.safetensors")) if folder.is_dir() else []
    return sum(file.stat().st_size for file in found) / 4 if found else None


def _work(experiment: Experiment, stage: Stage, size: float) -> _Work:
    response = experiment.sampling.max_new_tokens / 2
    row, pair = PROMPT_TOKENS + response, PROMPT_TOKENS + 2 * response
    limits = {split: file.limit or UNLIMITED for split, file in experiment.prompts.items()}
    drawn, again = limits["train"] + limits["validation"], _drawn_again(experiment, stage, limits["train"])
    student = size * (1 - experiment.prune.share) if experiment.prune is not None else size
    asked = size if stage.name.endswith("-teacher") else student
    shares = SHARE_OF_MATMUL_RATE
    if stage.command == "sample":
        rows = sum(file["limit"] or UNLIMITED for file in stage.settings["prompts"].values())
        rows *= stage.settings.get("responses_per_prompt", 1)
        return _Work(2 * asked * rows * row, shares["sample"])
    if stage.command == "score":  # what is known is not scored again: pairs of earlier rounds, by the same model
        scored = drawn + (0 if "known" in stage.settings else again)
        return _Work(2 * asked * pair * scored, shares["score"])
    if stage.command == "score-responses":
        return _Work(2 * asked * row * drawn * experiment.responses_per_prompt, shares["score"])
    if stage.command == "prune":
        assert experiment.prune is not None
        return _Work(2 * (size + student) * row * experiment.prune.rows, shares["score"])
    if stage.command == "evaluate":
        students = len(stage.settings["candidates"])
        read = PROMPT_TOKENS + (1 + students) * response  # by the teacher: everybody's at once
        return _Work(2 * (size * read + student * students * pair) * limits[experiment.evaluate_on], shares["evaluate"])
    if stage.command == "fit":
        epochs = stage.settings.get("trainer", {}).get("max_epochs", 1)
        tokens = row if stage.name == "dsft" else pair
        return _Work(6 * student * epochs * (limits["train"] + again) * tokens, shares["train"])
    return _Work(0.0, 1.0)


def _drawn_again(experiment: Experiment, stage: Stage, prompts: int) -> float:
    """Pairs of earlier rounds in a stage of a later one."""
    found = re.search(r"-round(\d+)$", stage.name)
    return 0.0 if found is None else (int(found[1]) - 1) * experiment.mix.earlier * prompts
