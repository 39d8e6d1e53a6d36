"""How long an experiment will take here, before it begins: counted work over a rate measured just now.

Work is counted simply, as if the head ran on every token and no answer was dropped. What that overstates stands in the
shares of the matmul rate, which were measured with SmolLM2-135M on two CPU cores.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_dadpo.cli.experiment import Experiment, FitRecipe
from lightning_dadpo.cli.recipe import merged_settings
from lightning_dadpo.cli.stages import Stage
from lightning_dadpo.errors import DataError
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
class _Sizes:
    """Parameters of models.

    Attributes:
        teacher: of the teacher.
        student: of every model that the experiment makes itself, and of the one that it starts from.
        frozen: by path, of the teacher and of further anchors.
    """

    teacher: float
    student: float
    frozen: dict[str, float]

    def of(self, model: dict[str, Any]) -> float:
        """Of the model that a stage's settings name."""
        return self.frozen.get(model["path"], self.student)


@dataclass(frozen=True)
class _Work:
    """FLOPs of one stage, and which share of the matmul rate it runs at."""

    flops: float
    share: float


def estimate_minutes(experiment: Experiment, stages: list[Stage], waiting: list[Stage]) -> float | None:
    """Minutes for the stages that wait; None when the size of a model cannot be read before it is loaded."""
    from lightning_dadpo.models.numerics import inference_precision, matmul_rate, training_precision

    sizes = _sizes(experiment, stages)
    if sizes is None:
        return None
    rates = {"train": matmul_rate(training_precision()), "other": matmul_rate(inference_precision())}
    seconds = 0.0
    for stage in waiting:
        work = _work(experiment, stage, sizes)
        rate = rates["train" if stage.command == "fit" else "other"]
        seconds += SECONDS_A_STAGE + work.flops / (work.share * rate)
        if stage.name == "teacher" and experiment.teacher.gguf_file is not None:
            seconds += sizes.teacher / DEQUANTIZED_A_SECOND
    return seconds / 60


def _sizes(experiment: Experiment, stages: list[Stage]) -> _Sizes | None:
    """The models of an experiment; None when one is not here to be measured."""
    models = (experiment.teacher, *experiment.anchors.values())
    frozen = {model.path: size for model in models if (size := _parameters(model)) is not None}
    if any(model.path not in frozen for model in models):
        return None
    teacher = frozen[experiment.teacher.path]
    frozen |= {str(stage.folder): teacher for stage in stages if stage.name == "teacher"}  # it as a folder
    if experiment.prune is not None:
        return _Sizes(teacher, teacher * (1 - experiment.prune.share), frozen)
    assert experiment.student is not None
    student = _parameters(experiment.student)
    return None if student is None else _Sizes(teacher, student, frozen)


def _parameters(model: ModelSpec) -> float | None:
    """As the headers of its weight files count them; a 4-bit GGUF holds about 0.69 bytes each, embeddings included."""
    from lightning_dadpo.reports.weights import read_weights

    folder = Path(model.location())
    if model.gguf_file is not None and (folder / model.gguf_file).is_file():
        return (folder / model.gguf_file).stat().st_size / 0.69
    try:
        return float(sum(read_weights(folder).formats.values()))
    except DataError:
        return None


def _work(experiment: Experiment, stage: Stage, sizes: _Sizes) -> _Work:
    response = experiment.sampling.max_new_tokens / 2
    row, pair = PROMPT_TOKENS + response, PROMPT_TOKENS + 2 * response
    limits = {split: file.limit or UNLIMITED for split, file in experiment.prompts.items()}
    drawn, again = limits["train"] + limits["validation"], _drawn_again(experiment, stage, limits["train"])
    shares = SHARE_OF_MATMUL_RATE
    if stage.command == "sample":
        rows = sum(file["limit"] or UNLIMITED for file in stage.settings["prompts"].values())
        rows *= stage.settings.get("responses_per_prompt", 1)
        return _Work(2 * sizes.of(stage.settings["model"]) * rows * row, shares["sample"])
    if stage.command == "score":  # what is known is not scored again: pairs of earlier rounds, by the same model
        scored = drawn + (0 if "known" in stage.settings else again)
        return _Work(2 * sizes.of(stage.settings["model"]) * pair * scored, shares["score"])
    if stage.command == "score-responses":
        rows = drawn * experiment.responses_per_prompt
        return _Work(2 * sizes.of(stage.settings["model"]) * row * rows, shares["score"])
    if stage.command == "prune":
        assert experiment.prune is not None
        return _Work(2 * (sizes.teacher + sizes.student) * row * experiment.prune.rows, shares["score"])
    if stage.command == "evaluate":
        students = len(stage.settings["candidates"])
        read = PROMPT_TOKENS + (1 + students) * response  # by the teacher: everybody's at once
        both = sizes.teacher * read + sizes.student * students * pair
        return _Work(2 * both * limits[experiment.evaluate_on], shares["evaluate"])
    if stage.command == "fit":
        on_pairs = stage.settings["model"]["class_path"] == "PreferenceModule"
        tokens = (limits["train"] + again) * (pair if on_pairs else row)
        return _Work(_a_token(stage, sizes) * tokens * _epochs(stage), shares["train"])
    return _Work(0.0, 1.0)


def _a_token(stage: Stage, sizes: _Sizes) -> float:
    """FLOPs of a training for each token: the student's passes, and the forward passes of models that are live."""
    said = stage.settings["model"]["init_args"]
    asked = [said.get("teacher"), *(source.get("model") for source in said.get("anchors", {}).values())]
    return 6 * sizes.student + 2 * sum(sizes.of(model) for model in asked if model is not None)


def _epochs(stage: Stage) -> int:
    """Of a training, as its files and its settings over them say."""
    said = merged_settings(FitRecipe(list(stage.configs), stage.settings))
    epochs: int = said.get("trainer", {}).get("max_epochs", 1)
    return epochs


def _drawn_again(experiment: Experiment, stage: Stage, prompts: int) -> float:
    """Pairs of earlier rounds in a stage of a later one."""
    found = re.search(r"-round(\d+)$", stage.name)
    return 0.0 if found is None else (int(found[1]) - 1) * experiment.mix.earlier * prompts
