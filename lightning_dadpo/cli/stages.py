"""An experiment as a list of stages, each a command with its settings and a folder named by what it is made from."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning_dadpo.cli import overlays
from lightning_dadpo.cli.experiment import Experiment, Instructions
from lightning_dadpo.cli.needs import check_judges, needs_of
from lightning_dadpo.cli.planner import CODE_FORMAT, Planner, Stage, judging_model
from lightning_dadpo.cli.rounds import (
    RoundPlan,
    World,
    check_anchors,
    name_in,
    plan_first_round,
    plan_round,
    plan_sides,
)
from lightning_dadpo.models.spec import ModelSpec, refuse_quantized

__all__ = ["Stage", "plan_stages", "plan_rounds", "CODE_FORMAT"]


def plan_stages(experiment: Experiment) -> list[Stage]:
    """The stages of an experiment in order; nothing is run, and only prompts and YAML files are read.

    Raises:
        ConfigError: an objective names no loss, or an anchor that the experiment does not have.
    """
    return _plan(experiment)[0]


def plan_rounds(experiment: Experiment) -> list[RoundPlan]:
    """What each round of each objective that trains on pairs takes and makes, round by round."""
    return _plan(experiment)[1]


def _plan(experiment: Experiment) -> tuple[list[Stage], list[RoundPlan]]:
    """The teacher is sampled before it is pruned, because its answers are what the layers are measured on."""
    planner, seed = Planner(experiment), experiment.sampling.seed
    teacher = _teacher(planner)
    splits = ["train", "validation", "heldout"]
    answers = planner.sample("teacher", teacher, splits, seed, experiment.responses_per_prompt)
    initial = _initial(planner, teacher, answers)
    recipe, overlay = experiment.dsft, overlays.supervised(initial, answers, experiment.keep_cut)
    dsft = ModelSpec(planner.fit("dsft", recipe, overlay, [answers])[1])
    needs = {name: needs_of(name, recipe) for name, recipe in experiment.objectives.items()}
    check_anchors(experiment, needs)
    check_judges(experiment.judges, [experiment.teacher, *experiment.anchors.values()])
    world = World(planner, teacher, answers, dsft, needs)
    sides = None
    if any(one.trains_on == "pairs" for one in needs.values()):
        after = experiment.rejected_from == "dsft"
        sides = plan_sides(world, "", dsft if after else initial, "dsft" if after else experiment.initial_name, 1)
    students = {experiment.initial_name: initial, "dsft": dsft}
    current = plan_first_round(world, sides, experiment.objectives)
    students |= current
    for number in range(2, experiment.rounds + 1):
        for name, recipe in experiment.objectives.items():
            if needs[name].trains_on == "pairs":
                current[name] = students[name_in(name, number)] = plan_round(world, name, recipe, number, current[name])
    _evaluation(planner, teacher, answers, students, seed + 1)
    return planner.stages, world.rounds


def _teacher(planner: Planner) -> ModelSpec:
    """A teacher that is not a plain folder yet is made one, once."""
    teacher = planner.experiment.teacher
    if teacher.gguf_file is None:
        return teacher
    return ModelSpec(planner.add("teacher", "export", {"model": asdict(teacher)}, planner.identity(teacher)))


def _initial(planner: Planner, teacher: ModelSpec, answers: str) -> ModelSpec:
    """The student before any training."""
    said = planner.experiment
    if said.student is not None:
        refuse_quantized(said.student, "the student's own weights are trained")
        return said.student
    assert said.prune is not None
    settings = {"model": asdict(replace(teacher, quantize=None)), "calibration": answers} | asdict(said.prune)
    return ModelSpec(planner.add("pruned", "prune", settings, planner.identity(teacher)))


def _evaluation(planner: Planner, teacher: ModelSpec, answers: str, students: dict[str, ModelSpec], seed: int) -> None:
    split = planner.experiment.evaluate_on
    said = {name: planner.sample(f"{split}-{name}", model, [split], seed) for name, model in students.items()}
    shared: dict[str, Any] = {"trained_on": [answers]} | ({} if split == "heldout" else {"split": split})
    if planner.experiment.judge:
        _judging(planner, said, answers, shared)
    if planner.experiment.ifeval is not None:
        _instructions(planner, planner.experiment.ifeval, {"teacher": teacher, **students}, seed, answers)
    candidates = {name: {"model": asdict(model), "responses": said[name]} for name, model in students.items()}
    settings = {"candidates": candidates, "teacher": asdict(teacher), "teacher_responses": answers}
    planner.add("evaluation", "evaluate", settings | {"reference": "dsft"} | shared)


def _judging(planner: Planner, candidates: dict[str, str], answers: str, shared: dict[str, Any]) -> None:
    """The judge is held against people first, where there are such judgements."""
    said = planner.experiment
    model = judging_model(said.judge)
    outside: list[Any] = [planner.identity(ModelSpec(**model))] if model is not None else []
    validations = []
    if said.people is not None:
        texts = [Path(path).read_text("utf-8") if Path(path).is_file() else "" for path in said.people.paths]
        held_against = {"judge": said.judge, "people": asdict(said.people)}
        validations.append(planner.add("judge-validation", "validate-judge", held_against, [outside, texts]))
    settings = {"candidates": candidates, "opponent": answers, "judge": said.judge, "validations": validations}
    planner.add("verdicts", "judge", settings | shared, outside)


def _instructions(planner: Planner, said: Instructions, models: dict[str, ModelSpec], seed: int, answers: str) -> None:
    """Everybody answers what a program can check."""
    prompts = {"heldout": said.prompts}
    candidates = {name: planner.answer(f"ifeval-{name}", model, prompts, seed) for name, model in models.items()}
    settings = {
        "candidates": candidates,
        "ifeval_file": said.file,
        "leave_out": said.leave_out,
        "trained_on": [answers],
    }
    planner.add("ifeval", "ifeval", settings, Path(said.file).read_text("utf-8") if Path(said.file).is_file() else "")
