"""Stages added one after another, each with a folder named by what it is made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_dadpo.cli.experiment import Experiment, FitRecipe
from lightning_dadpo.cli.recipe import merge
from lightning_dadpo.data.prompts import PromptFile
from lightning_dadpo.data.rows import content_digest
from lightning_dadpo.models.spec import ModelSpec

__all__ = ["Stage", "Planner", "CODE_FORMAT", "judging_model", "values_of"]

CODE_FORMAT = 3
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


class Planner:
    """Adds stages one after another; a later one names the folders of earlier ones.

    Attributes:
        stages: in the order in which they run.
        scored: by anchor and model, the scores folders that are there already when a stage begins.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.root = Path(experiment.folder)
        self.stages: list[Stage] = []
        self.scored: dict[tuple[str, str], list[str]] = {}

    def add(
        self,
        name: str,
        command: str,
        settings: dict[str, Any],
        outside: Any = None,
        configs: Any = (),
        aside: dict[str, Any] | None = None,
    ) -> str:
        """A stage whose folder's name changes with its settings, its inputs' names and what the files it reads say.

        Args:
            name: the stage's.
            command: what makes it.
            settings: everything that decides what it holds.
            outside: what else does.
            configs: files of a training.
            aside: further settings that save work and decide nothing.
        """
        inside = yaml.safe_dump(settings).replace(str(self.root), "ROOT")
        key = content_digest(CODE_FORMAT, command, inside, outside, [values_of(file) for file in configs])[:8]
        folder = self.root / f"{name}-{key}"
        self.stages.append(Stage(name, command, settings | (aside or {}), folder, tuple(configs)))
        return str(folder)

    def sample(self, name: str, model: ModelSpec, splits: list[str], seed: int, candidates: int = 1) -> str:
        """Responses of a model; a stage of one response a prompt says nothing of their number."""
        prompts = {split: self.experiment.prompts[split] for split in splits}
        return self.answer(name, model, prompts, seed, {"responses_per_prompt": candidates} if candidates > 1 else {})

    def answer(
        self, name: str, model: ModelSpec, prompts: dict[str, PromptFile], seed: int, more: dict[str, Any] | None = None
    ) -> str:
        """Responses of a model to any prompts, drawn as everywhere in the experiment.

        Args:
            name: the stage's, behind `sample-`.
            model: who answers.
            prompts: by split.
            seed: of the draws.
            more: further settings.
        """
        contents = {split: _text(file.path) for split, file in prompts.items()}
        settings = {
            "model": asdict(model),
            "prompts": {split: asdict(file) for split, file in prompts.items()},
            "settings": asdict(self.experiment.sampling) | {"seed": seed},
            "batch_size": self.experiment.batch_size,
            "backend": self.experiment.backend,
        } | (more or {})
        return self.add(f"sample-{name}", "sample", settings, outside=[contents, self.identity(model)])

    def score(self, name: str, anchor: str, model: ModelSpec, pairs: str, tokenizer: ModelSpec | None = None) -> str:
        """An anchor's scores of pairs; what earlier stages have scored for it is taken over.

        Args:
            name: the stage's.
            anchor: what the model is to the objectives.
            model: who scores.
            pairs: the pairs folder.
            tokenizer: whose ids the pairs hold, for a model that may have another one.
        """
        settings: dict[str, Any] = {
            "model": asdict(model),
            "pairs": pairs,
            "anchor": anchor,
            "tokens_per_batch": self.experiment.tokens_per_batch,
        }
        if tokenizer is not None:
            settings["tokenizer"] = asdict(tokenizer)
        known = self.scored.setdefault((anchor, model.path), [])
        aside = {"known": list(known)} if known else None
        folder = self.add(name, "score", settings, self.identity(model), aside=aside)
        known.append(folder)
        return folder

    def fit(self, name: str, recipe: FitRecipe, overlay: dict[str, Any], made_with: list[str]) -> tuple[str, str]:
        """A training and its export; both folders."""
        settings = merge(recipe.settings, overlay)
        watching = judging_model(recipe.watch.get("judge") or {})
        outside = self._identities(overlay["model"]["init_args"], watching)
        trained = self.add(name, "fit", settings, outside, recipe.configs)
        checkpoint = f"{trained}/checkpoints/{recipe.checkpoint}.ckpt"
        said = {"teacher": self.experiment.teacher.path, "made_with": made_with}
        return trained, self.add(f"model-{name}", "export", {"checkpoint": checkpoint, **said})

    def _identities(self, model: dict[str, Any], watching: dict[str, Any] | None) -> Any:
        """Of the models that a training loads: the student it starts from, and those that are asked live.

        Args:
            model: the arguments of a training's module.
            watching: the model of a judge whose verdicts may choose the checkpoint.

        Returns:
            One for each; None where the experiment makes all of them itself.
        """
        anchors = [source.get("model") for source in model.get("anchors", {}).values()]
        loaded = [one for one in (model["student"], model.get("teacher"), *anchors, watching) if one is not None]
        found = [self.identity(ModelSpec(**one)) for one in loaded]
        return found if any(found) else None

    def identity(self, spec: ModelSpec) -> Any:
        """Sizes and times of a local model's files: a folder that was trained anew is another model.

        What the experiment itself makes is known by its folder's name, and may not be there yet.
        """
        folder = Path(spec.path).expanduser()
        if folder.is_relative_to(self.root) or not folder.is_dir():
            return None
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.gguf")])
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def judging_model(judge: dict[str, Any]) -> dict[str, Any] | None:
    """The model whose weights decide a judge's verdicts; None for one behind a server, whose name is all we know."""
    model = judge.get("init_args", {}).get("model")
    return model if isinstance(model, dict) else None


def values_of(file: str) -> str:
    """What a YAML file says: neither its comments nor the order of its keys."""
    return yaml.safe_dump(yaml.safe_load(Path(file).read_text("utf-8")))


def _text(path: str) -> str:
    return Path(path).read_text("utf-8") if Path(path).is_file() else ""
