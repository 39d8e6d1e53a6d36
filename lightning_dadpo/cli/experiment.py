"""An experiment: the whole pipeline as one typed YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lightning_dadpo.data.prompts import PromptFile
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling.base import SamplerSettings

__all__ = ["Experiment", "FitRecipe", "Prune", "read_experiment"]


@dataclass(frozen=True)
class Prune:
    """How the student is cut out of the teacher.

    Attributes:
        share: share of the teacher's unique parameters to remove, at least.
        rows: teacher answers that the layers are measured on.
    """

    share: float = 0.2
    rows: int = 24

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"experiment.prune.share {self.share}: expected a number between 0 and 1, both excluded")
        if self.rows < 1:
            raise ConfigError(f"experiment.prune.rows {self.rows}: expected at least 1")


@dataclass(frozen=True)
class FitRecipe:
    """One training: LightningCLI files, merged in order, and settings laid over them.

    Attributes:
        configs: YAML files for `dadpo fit -c`.
        settings: the same keys as in those files; these win.
        checkpoint: which checkpoint becomes the model: the last one, or the best by its `monitor`.
    """

    configs: list[str]
    settings: dict = field(default_factory=dict)  # type: ignore[type-arg] # the parser would make objects of Any
    checkpoint: Literal["last", "best"] = "last"


@dataclass(frozen=True)
class Experiment:
    """The pipeline: prompts, responses, dSFT, pairs, scores, objectives, evaluation.

    Attributes:
        name: what it is called in reports and in wandb.
        folder: where everything goes.
        teacher: the large model.
        prompts: prompt files by split: train, validation, heldout.
        dsft: how the student is fine-tuned on the teacher's responses; the result is the reference.
        objectives: one training per objective by name, all on the same pairs and scores.
        prune: cut the student out of the teacher.
        student: or start from this smaller model.
        rejected_from: rejected responses come from the student before (`initial`) or after dSFT (`dsft`).
        sampling: settings of every sampling; the seed is the teacher's, students take the next one.
        batch_size: responses drawn at a time.
        backend: what draws them; vllm is an extra, for GPUs, and wants a batch_size of hundreds.
        tokens_per_batch: tokens of a forward pass of the scoring, by default what suits the machine. Trainings have
            their own, `data.init_args.tokens_per_batch`.
        keep_cut: keep chosen responses that the length cap cut, in dSFT and in pairs; they are dropped otherwise.
        launch: what the trainings are started with, for example [torchrun, --nproc_per_node, "2"].
        launch_inference: what sampling and scoring are started with, the same or [srun, --ntasks, "8", python]; they
            share prompts and pairs, and come to the same rows on any number of processes. All else is one process.
        notes: sentences for the report about what this experiment can and cannot show.
    """

    name: str
    folder: str
    teacher: ModelSpec
    prompts: dict[str, PromptFile]
    dsft: FitRecipe
    objectives: dict[str, FitRecipe]
    prune: Prune | None = None
    student: ModelSpec | None = None
    rejected_from: Literal["initial", "dsft"] = "dsft"
    sampling: SamplerSettings = field(default_factory=SamplerSettings)
    batch_size: int = 32
    backend: Literal["transformers", "vllm"] = "transformers"
    tokens_per_batch: int | None = None
    keep_cut: bool = False
    launch: list[str] = field(default_factory=list)
    launch_inference: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if (self.prune is None) == (self.student is None):
            raise ConfigError("experiment: give `prune` or `student`, one of the two")
        missing = {"train", "validation", "heldout"} - set(self.prompts)
        if missing:
            raise ConfigError(f"experiment.prompts: needs train, validation and heldout; missing {sorted(missing)}")
        if not self.objectives:
            raise ConfigError("experiment.objectives: give at least one")
        taken = {"teacher", "pruned", "initial", "dsft"} & set(self.objectives)
        if taken:
            raise ConfigError(f"experiment.objectives: {sorted(taken)[0]!r} is a name of the pipeline's own")

    @property
    def initial_name(self) -> str:
        """What the student is called before any training."""
        return "pruned" if self.prune is not None else "initial"


def read_experiment(path: str) -> Experiment:
    """Parse an experiment's YAML; paths in it are relative to the current folder.

    Raises:
        ConfigError: no such file; anything else wrong in it ends the command with one line.
    """
    from lightning_dadpo.cli.command_parser import CommandParser, read_yaml

    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such experiment file (run from the project's folder)")
    parser = CommandParser(prog="dadpo run")
    parser.add_class_arguments(Experiment, "experiment")
    text = read_yaml(path)
    indented = "experiment:\n" + "".join(f"  {line}\n" for line in text.splitlines())
    config = parser.parse_string(indented, path=path)
    experiment: Experiment = parser.instantiate(config).experiment
    for recipe in (experiment.dsft, *experiment.objectives.values()):
        for file in recipe.configs:
            if not Path(file).is_file():
                raise ConfigError(f"{path}: configs names {file}: no such file")
    return experiment
