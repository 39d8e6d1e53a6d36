"""What a stage's folder is named by: models outside the experiment that are replaced where they lie."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.cli import running
from lightning_dadpo.cli.experiment import Experiment, FitRecipe, Prune, read_experiment
from lightning_dadpo.cli.planner import Planner
from lightning_dadpo.cli.stages import plan_stages
from lightning_dadpo.models.spec import ModelSpec

DEMO = read_experiment("configs/recipes/demo.yaml")
OWN = ["configs/trainer/default.yaml", "configs/recipes/preference.yaml"]


def model(folder: Path, weights: str = "model.safetensors") -> ModelSpec:
    folder.mkdir()
    replaced(folder / weights)
    return ModelSpec(str(folder), gguf_file=weights if weights.endswith("gguf") else None)


def replaced(weights: Path) -> None:
    """Other weights of the same size."""
    before = weights.stat().st_mtime_ns if weights.exists() else 0
    weights.write_bytes(b"weights")
    os.utime(weights, ns=(before + 10**9, before + 10**9))


def folders(experiment: Experiment) -> dict[str, str]:
    return {stage.name: stage.folder.name for stage in plan_stages(experiment)}


def experiment(tmp_path: Path, **changes: Any) -> Experiment:
    loss = FitRecipe([*OWN, "configs/loss/dadpo_reverse_kl.yaml"])
    return replace(DEMO, folder=str(tmp_path / "run"), objectives={"mine": loss}, **changes)


def test_a_student_that_is_replaced_in_place_is_trained_anew_and_one_that_is_not_is_not(tmp_path: Path) -> None:
    """Planted: without its identity in the key of `dsft`, no stage but the samples of it itself is made again."""
    said = experiment(tmp_path, student=model(tmp_path / "student"), prune=None)
    first = folders(said)
    assert folders(said) == first
    replaced(tmp_path / "student" / "model.safetensors")
    second = folders(said)
    of_the_teacher = {"teacher", "sample-teacher"}
    assert {name for name in first if first[name] == second[name]} == of_the_teacher


@pytest.mark.parametrize("weights", ["model.safetensors", "model.gguf"])
def test_a_teacher_that_is_replaced_in_place_leaves_nothing_of_it_behind(weights: str, tmp_path: Path) -> None:
    said = experiment(tmp_path, teacher=model(tmp_path / "teacher", weights), prune=Prune(0.2, 4))
    first = folders(said)
    replaced(tmp_path / "teacher" / weights)
    second = folders(said)
    assert not {name for name in first if first[name] == second[name]}


def test_what_a_replaced_teacher_judged_and_scored_of_an_initial_students_own_is_judged_anew(tmp_path: Path) -> None:
    """Nothing that the teacher drew is in these pairs, so no other folder's name would know of it."""
    said = experiment(
        tmp_path, teacher=model(tmp_path / "teacher"), student=model(tmp_path / "student"), prune=None,
        rejected_from="initial", chosen_from="student", responses_per_prompt=2, pairing="best_and_worst",
    )  # fmt: skip
    first = folders(said)
    replaced(tmp_path / "teacher" / "model.safetensors")
    second = folders(said)
    assert {name for name in first if first[name] == second[name]} == {"sample-rejected", "sample-heldout-initial"}


@pytest.mark.parametrize("anchored", [False, True])
def test_a_training_is_named_by_every_model_that_it_loads(anchored: bool, tmp_path: Path) -> None:
    """The student alone, the distillation's teacher alone, a live anchor alone."""
    start, live = model(tmp_path / "start"), model(tmp_path / "live")
    arguments: dict[str, Any] = {"student": {"path": start.path}}
    if anchored:
        arguments["anchors"] = {"reference": {"scores": "S"}, "teacher": {"model": {"path": live.path}}}
    else:
        arguments["teacher"] = {"path": live.path}
    said = experiment(tmp_path)

    def names() -> tuple[str, str]:
        return Planner(said).fit("x", said.dsft, {"model": {"init_args": arguments}}, [])

    seen = {names()}
    for folder in ("start", "live"):
        replaced(tmp_path / folder / "model.safetensors")
        assert names() not in seen
        seen.add(names())
    made = {name: {"path": str(tmp_path / "run" / "model-dsft-1")} for name in ("student", "teacher")}
    inside = Planner(said).fit("x", said.dsft, {"model": {"init_args": made}}, [])
    planner = Planner(said)
    assert inside[0] == planner.add(
        "x", "fit", {"model": {"init_args": made}} | said.dsft.settings, None, said.dsft.configs
    )


def test_a_training_is_named_by_the_judge_that_watches_it_too(tmp_path: Path) -> None:
    """Its verdicts may choose the checkpoint. Planted: without its identity no folder's name changes."""
    judge = {"class_path": "LikelihoodJudge", "init_args": {"model": {"path": model(tmp_path / "judge").path}}}
    said = experiment(tmp_path)
    said = replace(said, objectives={"mine": replace(said.objectives["mine"], watch={"judge": judge})})
    first = folders(said)
    assert folders(said) == first
    replaced(tmp_path / "judge" / "model.safetensors")
    second = folders(said)
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"mine", "model-mine", "sample-heldout-mine", "evaluation"}


def with_own_copies(said: Experiment, folder: Path) -> tuple[Experiment, Path]:
    """Its objective's files copied into the folder, to be changed there; and the first of them."""
    (name, recipe), *_ = said.objectives.items()
    copies = [folder / Path(file).name for file in recipe.configs]
    for file, copy in zip(recipe.configs, copies, strict=True):
        copy.write_text(Path(file).read_text("utf-8"), "utf-8")
    return replace(said, objectives={name: replace(recipe, configs=[str(copy) for copy in copies])}), copies[0]


def test_comments_and_the_order_of_keys_name_no_folder_and_a_value_does(tmp_path: Path) -> None:
    """Planted: with a digest of the file's text the training and all behind it were made again for a comment."""
    said, file = with_own_copies(experiment(tmp_path), tmp_path)
    file.write_text("trainer:\n  devices: 1\n  max_epochs: 1\n", "utf-8")
    first = folders(said)
    for same in (
        "# of another mind\ntrainer:\n\n  devices: 1  # one\n  max_epochs: 1\n",
        "trainer: {max_epochs: 1, devices: 1}\n",
    ):
        file.write_text(same, "utf-8")
        assert folders(said) == first
    file.write_text("trainer:\n  devices: 1\n  max_epochs: 2\n", "utf-8")
    second = folders(said)
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"mine", "model-mine", "sample-heldout-mine", "evaluation"}


def test_a_training_that_was_cut_off_goes_on_when_a_comment_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder's name is the same, so what was begun there must be taken for the same too."""
    said, file = with_own_copies(experiment(tmp_path), tmp_path)
    begun: list[Path] = []

    def cut_off(command: list[str]) -> int:
        begun.extend(tmp_path.glob("run/mine-*.partial"))
        return 1

    monkeypatch.setattr(running, "_start", cut_off)
    (tmp_path / "run" / "settings").mkdir(parents=True)
    for comment in ("# before\n", "# after\n"):
        file.write_text(comment + file.read_text("utf-8"), "utf-8")
        (stage,) = (stage for stage in plan_stages(said) if stage.name == "mine")
        assert running._run_stage(said, stage) == 1
    assert len(begun) == 2
    assert begun[0] == begun[1]
