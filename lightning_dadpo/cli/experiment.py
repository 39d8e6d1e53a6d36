"""An experiment: the whole pipeline as one typed YAML."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lightning_dadpo.data.pairing_rules import RULES, PairingRule
from lightning_dadpo.data.prompts import PromptFile
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.evaluation.people_files import PeopleFiles
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling.base import SamplerSettings

__all__ = ["Experiment", "FitRecipe", "Instructions", "Mix", "Prune", "read_experiment"]


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
        watch: arguments of the WatchDistances that the pipeline adds: prompts, at_start, or the judge of
            configs/trainer/watch_judge.yaml; samples are drawn as the evaluation draws a student's, but for what
            `sampler` says here.
    """

    configs: list[str]
    settings: dict = field(default_factory=dict)  # type: ignore[type-arg] # the parser would make objects of Any
    checkpoint: Literal["last", "best"] = "last"
    watch: dict = field(default_factory=dict)  # type: ignore[type-arg]


@dataclass(frozen=True)
class Mix:
    """Which pairs a round trains on.

    Attributes:
        earlier: of each earlier round's training pairs, the share that is trained on again beside the latest ones; none
            by default.
    """

    earlier: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.earlier <= 1:
            raise ConfigError(f"experiment.mix.earlier {self.earlier}: expected a share from 0 to 1")


@dataclass(frozen=True)
class Instructions:
    """IFEval: prompts whose instructions a program can check.

    Attributes:
        file: IFEval's own JSONL, or its name on the hub, google/IFEval.
        prompts: what `dadpo ifeval-prompts` has made of it, and how many of them to ask.
        leave_out: instructions (FAMILY:NAME) that are not counted, as `dadpo ifeval` takes them.
    """

    file: str
    prompts: PromptFile
    leave_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Experiment:
    """The pipeline: prompts, responses, dSFT, pairs, scores, objectives, evaluation.

    Attributes:
        name: what it is called in reports and in wandb.
        folder: where everything goes.
        teacher: the large model.
        prompts: prompt files by split: train, validation, heldout.
        dsft: how the student is fine-tuned on the teacher's responses; the result is the reference.
        objectives: one training per objective by name, in the first round all on the same pairs and scores.
        prune: cut the student out of the teacher.
        student: or start from this smaller model.
        rejected_from: rejected responses come from the student before (`initial`) or after dSFT (`dsft`), or from the
            `teacher`, for a pairing rule that chooses among one model's.
        chosen_from: chosen responses come from the `teacher`, or from the `student` that the rejected ones come from.
        responses_per_prompt: candidates that either model draws for a pairing rule to choose among.
        pairing: the rule: `first_of_each`, or `best_and_worst` by the teacher's nats per token.
        anchors: further frozen models by name that score the pairs, such as teacher_a and teacher_b of
            configs/loss/several_teachers.yaml. Only what an objective needs is scored.
        rounds: how often each objective is trained. From the second round on its current student draws new rejected
            responses and training starts from it; the teacher's answers stay. Objectives that train on responses
            instead of pairs have one round.
        reference: in rounds after the first it stays the student after dSFT (`fixed`), or is the student that the round
            starts from (`moved`).
        mix: which pairs a round trains on.
        sampling: settings of every sampling; the seed is the teacher's, students take the next one.
        batch_size: responses drawn at a time.
        backend: what draws them; vllm is an extra, for GPUs, and wants a batch_size of hundreds.
        tokens_per_batch: tokens of a forward pass of the scoring, by default what suits the machine. Trainings have
            their own, `data.init_args.tokens_per_batch`.
        keep_cut: keep chosen responses that the length cap cut, in dSFT and in pairs; they are dropped otherwise.
        launch: what the trainings are started with, for example [torchrun, --nproc_per_node, "2"].
        launch_inference: what sampling and scoring are started with, the same or [srun, --ntasks, "8", python]; they
            share prompts and pairs, and come to the same rows on any number of processes. All else is one process.
        evaluate_on: the prompts that students are compared on: heldout, or validation while settings are being chosen.
        judge: who says win, tie or lose against the teacher, as `dadpo judge` takes it: class_path and init_args; by
            default nobody.
        people: people's judgements that the judge is held against, as `dadpo validate-judge` takes them. Without them
            its verdicts are worth what you believe of it.
        ifeval: what teacher and students are asked besides, and checked by a program.
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
    rejected_from: Literal["initial", "dsft", "teacher"] = "dsft"
    chosen_from: Literal["teacher", "student"] = "teacher"
    responses_per_prompt: int = 1
    pairing: PairingRule = "first_of_each"
    anchors: dict[str, ModelSpec] = field(default_factory=dict)
    rounds: int = 1
    reference: Literal["fixed", "moved"] = "fixed"
    mix: Mix = field(default_factory=Mix)
    sampling: SamplerSettings = field(default_factory=SamplerSettings)
    batch_size: int = 32
    backend: Literal["transformers", "vllm"] = "transformers"
    tokens_per_batch: int | None = None
    keep_cut: bool = False
    launch: list[str] = field(default_factory=list)
    launch_inference: list[str] = field(default_factory=list)
    evaluate_on: Literal["heldout", "validation"] = "heldout"
    judge: dict = field(default_factory=dict)  # type: ignore[type-arg] # a stage's YAML, as it is
    people: PeopleFiles | None = None
    ifeval: Instructions | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if (self.prune is None) == (self.student is None):
            raise ConfigError("experiment: give `prune` or `student`, one of the two")
        missing = {"train", "validation", "heldout"} - set(self.prompts)
        if missing:
            raise ConfigError(f"experiment.prompts: needs train, validation and heldout; missing {sorted(missing)}")
        if not self.objectives:
            raise ConfigError("experiment.objectives: give at least one")
        taken = sorted({"teacher", "pruned", "initial", "dsft"} & set(self.objectives))
        taken += [name for name in self.objectives if re.search(r"-round\d+$", name)]
        if taken:
            raise ConfigError(f"experiment.objectives: {taken[0]!r} is a name of the pipeline's own")
        if own := sorted({"teacher", "reference"} & set(self.anchors)):
            raise ConfigError(f"experiment.anchors: {own[0]!r} is there without being named; expected further models")
        if self.people is not None and not self.judge:
            raise ConfigError("experiment.people: there is no `judge` to hold against them")
        if self.rounds < 1:
            raise ConfigError(f"experiment.rounds {self.rounds}: expected at least 1")
        self._check_pairing()

    def _check_pairing(self) -> None:
        """Refuse sides that cannot make a pair.

        Raises:
            ConfigError: naming the keys that do not go together.
        """
        if self.responses_per_prompt < 1:
            raise ConfigError(f"experiment.responses_per_prompt {self.responses_per_prompt}: expected at least 1")
        chooses = RULES[self.pairing].asks_teacher
        if chooses != (self.responses_per_prompt > 1):
            raise ConfigError(
                f"experiment.responses_per_prompt {self.responses_per_prompt} and pairing {self.pairing}: expected "
                "best_and_worst with at least 2 responses a prompt, or first_of_each with 1"
            )
        sides = f"experiment.chosen_from {self.chosen_from} and rejected_from {self.rejected_from}"
        if self.chosen_from == "student" and self.rejected_from == "teacher":
            raise ConfigError(f"{sides}: the teacher's responses would lose to the student's; expected another pair")
        if (self.chosen_from == "student" or self.rejected_from == "teacher") and not chooses:
            raise ConfigError(f"{sides}: both are one model's, which wants pairing: best_and_worst")
        if self.rejected_from == "teacher" and self.rounds > 1:
            raise ConfigError(
                f"{sides}, rounds {self.rounds}: the teacher is not drawn from again, so no round would be new; "
                "expected rejected responses of the student"
            )

    @property
    def judges(self) -> dict[str, dict]:  # type: ignore[type-arg]
        """Who judges, by the key that says so: in the evaluation, and while an objective trains."""
        said = {"experiment.judge": self.judge}
        for name, recipe in self.objectives.items():
            said[f"experiment.objectives.{name}.watch.judge"] = recipe.watch.get("judge") or {}
        return {place: judge for place, judge in said.items() if judge}

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
            read_yaml(file)
    return experiment
