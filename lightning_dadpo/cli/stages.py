"""An experiment as a list of stages, each a command with its settings and a folder named by what it is made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_dadpo.cli.experiment import Experiment, FitRecipe
from lightning_dadpo.cli.recipe import merge, merged_settings, shards_the_student
from lightning_dadpo.data.rows import content_digest
from lightning_dadpo.models.spec import ModelSpec

__all__ = ["Stage", "plan_stages", "CODE_FORMAT"]

CODE_FORMAT = 2
"""Raised when what a stage computes changes, so that old folders are not taken for new ones."""


@dataclass(frozen=True)
class Stage:
    """One arrow of the pipeline.

    Attributes:
        name: what it is called: `sample-teacher`, `dsft`, `score-reference` ...
        command: the dadpo command that makes it.
        settings: its YAML; for `fit`, what is laid over the recipe's files.
        configs: the recipe's files, for `fit`.
        folder: what it makes.
    """

    name: str
    command: str
    settings: dict[str, Any]
    folder: Path
    configs: tuple[str, ...] = ()


class _Planner:
    """Adds stages one after another; a later one names the folders of earlier ones."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.root = Path(experiment.folder)
        self.stages: list[Stage] = []

    def add(self, name: str, command: str, settings: dict[str, Any], outside: Any = None, configs: Any = ()) -> str:
        """A stage whose folder's name changes with its settings, its inputs' names and the files it reads."""
        inside = yaml.safe_dump(settings).replace(str(self.root), "ROOT")
        files = [Path(file).read_text("utf-8") for file in configs]
        key = content_digest(CODE_FORMAT, command, inside, outside, files)[:8]
        folder = self.root / f"{name}-{key}"
        self.stages.append(Stage(name, command, settings, folder, tuple(configs)))
        return str(folder)

    def sample(self, name: str, model: ModelSpec | str, splits: list[str], seed: int) -> str:
        spec = model if isinstance(model, ModelSpec) else ModelSpec(model)
        prompts = {split: asdict(self.experiment.prompts[split]) for split in splits}
        contents = {split: _text(self.experiment.prompts[split].path) for split in splits}
        settings = {
            "model": asdict(spec),
            "prompts": prompts,
            "settings": asdict(self.experiment.sampling) | {"seed": seed},
            "batch_size": self.experiment.batch_size,
            "backend": self.experiment.backend,
        }
        return self.add(f"sample-{name}", "sample", settings, outside=[contents, _identity(spec, self.root)])

    def fit(self, name: str, recipe: FitRecipe, overlay: dict[str, Any], made_with: list[str]) -> str:
        """A training and its export; the exported folder."""
        trained = self.add(name, "fit", merge(recipe.settings, overlay), configs=tuple(recipe.configs))
        checkpoint = f"{trained}/checkpoints/{recipe.checkpoint}.ckpt"
        said = {"teacher": self.experiment.teacher.path, "made_with": made_with}
        return self.add(f"model-{name}", "export", {"checkpoint": checkpoint, **said})


def _text(path: str) -> str:
    return Path(path).read_text("utf-8") if Path(path).is_file() else ""


def _identity(spec: ModelSpec, root: Path) -> Any:
    """Sizes and times of a local model's files: a folder that was trained anew is another model.

    What the experiment itself makes is known by its folder's name, and may not be there yet.
    """
    folder = Path(spec.path)
    if folder.is_relative_to(root) or not folder.is_dir():
        return None
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.glob("*.safetensors"))]


def plan_stages(experiment: Experiment) -> list[Stage]:
    """The stages of an experiment in order; nothing is run, and only prompts and YAML files are read.

    The teacher is sampled before it is pruned, because its answers are what the layers are measured on.
    """
    planner, seed = _Planner(experiment), experiment.sampling.seed
    teacher = _teacher(planner)
    answers = planner.sample("teacher", teacher, ["train", "validation", "heldout"], seed)
    if experiment.prune is not None:
        settings = {"model": asdict(teacher), "calibration": answers} | asdict(experiment.prune)
        initial = ModelSpec(planner.add("pruned", "prune", settings))
    else:
        assert experiment.student is not None
        initial = experiment.student
    dsft = planner.fit("dsft", experiment.dsft, _supervised(initial, answers, experiment.keep_cut), [answers])
    rejected_by = ModelSpec(dsft) if experiment.rejected_from == "dsft" else initial
    rejected = planner.sample("rejected", rejected_by, ["train", "validation"], seed + 1)
    pairs = planner.add(
        "pairs", "pair", {"chosen": answers, "rejected": rejected, "keep_cut_chosen": experiment.keep_cut}
    )
    scores = {
        anchor: planner.add(
            f"score-{anchor}",
            "score",
            {
                "model": asdict(model),
                "pairs": pairs,
                "anchor": anchor,
                "tokens_per_batch": experiment.tokens_per_batch,
            },
        )
        for anchor, model in {"teacher": teacher, "reference": ModelSpec(dsft)}.items()
    }
    students = {experiment.initial_name: initial, "dsft": ModelSpec(dsft)}
    for name, recipe in experiment.objectives.items():
        overlay = _preference(dsft, pairs, scores) | _callbacks(teacher, answers, rejected, recipe)
        students[name] = ModelSpec(planner.fit(name, recipe, overlay, [answers, rejected, pairs]))
    _evaluation(planner, teacher, answers, students, seed + 1)
    return planner.stages


def _teacher(planner: _Planner) -> ModelSpec:
    """A teacher that is not a plain folder yet is made one, once."""
    teacher = planner.experiment.teacher
    if teacher.gguf_file is None:
        return teacher
    return ModelSpec(planner.add("teacher", "export", {"model": asdict(teacher)}))


def _supervised(initial: ModelSpec, answers: str, keep_cut: bool) -> dict[str, Any]:
    return {
        "model": {"class_path": "SupervisedModule", "init_args": {"student": asdict(initial)}},
        "data": {
            "class_path": "SupervisedData",
            "init_args": {
                "train": {"folder": answers, "split": "train", "keep_cut": keep_cut},
                "validation": {"folder": answers, "split": "validation", "keep_cut": keep_cut},
            },
        },
    }


def _preference(dsft: str, pairs: str, scores: dict[str, str]) -> dict[str, Any]:
    anchors = {anchor: {"scores": folder} for anchor, folder in scores.items()}
    return {
        "model": {
            "class_path": "PreferenceModule",
            "init_args": {"student": asdict(ModelSpec(dsft)), "anchors": anchors},
        },
        "data": {
            "class_path": "PreferenceData",
            "init_args": {
                "train": {"folder": pairs, "split": "train"},
                "validation": {"folder": pairs, "split": "validation"},
            },
        },
    }


def _callbacks(teacher: ModelSpec, answers: str, rejected: str, recipe: FitRecipe) -> dict[str, Any]:
    """What only the pipeline can fill in: the teacher that is audited and the answers to compare with.

    A student that is spread over devices cannot be sampled on the way, so nothing is watched there.
    """
    callbacks: list[dict[str, Any]] = [{"class_path": "CheckScores", "init_args": {"teacher": asdict(teacher)}}]
    if not shards_the_student(merged_settings(recipe)):
        watch = {"teacher": asdict(teacher), "teacher_responses": answers, "reference_responses": rejected}
        callbacks.append({"class_path": "WatchDistances", "init_args": watch})
    return {"trainer": {"callbacks+": callbacks}}


def _evaluation(planner: _Planner, teacher: ModelSpec, answers: str, students: dict[str, ModelSpec], seed: int) -> None:
    candidates = {
        name: {"model": asdict(model), "responses": planner.sample(f"heldout-{name}", model, ["heldout"], seed)}
        for name, model in students.items()
    }
    settings = {"candidates": candidates, "teacher": asdict(teacher), "teacher_responses": answers}
    planner.add("evaluation", "evaluate", settings)
