"""What an experiment lays over a recipe's settings, and what of these stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lightning_dadpo.cli.experiment import FitRecipe, read_experiment
from lightning_dadpo.cli.recipe import merge
from lightning_dadpo.cli.stages import plan_stages

DEMO = read_experiment("configs/recipes/demo.yaml")
STOPPING: dict[str, Any] = {
    "class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "validation/loss"},
}  # fmt: skip


@pytest.mark.parametrize("said", [[STOPPING], STOPPING])
def test_callbacks_that_a_recipe_appends_stay_beside_the_pipelines_own(said: Any) -> None:
    recipe = replace(DEMO.objectives["dadpo"], settings={"trainer": {"max_epochs": 1, "callbacks+": said}})
    found = {stage.name: stage for stage in plan_stages(replace(DEMO, objectives={"mine": recipe}))}
    appended = found["mine"].settings["trainer"]["callbacks+"]
    assert [one["class_path"].rpartition(".")[2] for one in appended] == [
        "EarlyStopping", "CheckScores", "WatchDistances",
    ]  # fmt: skip
    assert appended[0] == STOPPING
    assert found["mine"].settings["trainer"]["max_epochs"] == 1


def test_only_a_key_that_appends_is_appended_to() -> None:
    under = {"a": {"x": [1], "x+": [2], "y": 3}}
    assert merge(under, {"a": {"x": [4], "x+": 5, "z": 6}}) == {"a": {"x": [4], "x+": [2, 5], "y": 3, "z": 6}}
    assert under == {"a": {"x": [1], "x+": [2], "y": 3}}


def test_a_recipe_may_have_a_judge_watch_what_is_drawn_as_everywhere_in_the_experiment() -> None:
    judge = {"class_path": "LikelihoodJudge", "init_args": {"model": {"path": "other"}}}
    recipe = replace(DEMO.objectives["dadpo"], watch={"judge": judge, "prompts": 8})
    found = {stage.name: stage for stage in plan_stages(replace(DEMO, objectives={"dadpo": recipe}))}
    plain = {stage.name: stage for stage in plan_stages(DEMO)}
    watching, usual = (stages["dadpo"].settings["trainer"]["callbacks+"][-1]["init_args"] for stages in (found, plain))
    assert watching == usual | {"judge": judge, "prompts": 8}
    assert found["dadpo"].folder != plain["dadpo"].folder


def test_a_student_is_watched_as_the_evaluation_samples_it() -> None:
    """Its temperature, length and seed; what a recipe says of the sampler stands over them, key by key."""
    recipe = DEMO.objectives["dadpo"]
    distilled = FitRecipe(
        ["configs/trainer/default.yaml", "configs/recipes/distillation.yaml", "configs/loss/forward_kl.yaml"]
    )
    cooler = replace(recipe, watch={"sampler": {"temperature": 0.0, "seed": 7}})
    objectives = {"mine": recipe, "distilled": distilled, "cooler": cooler}
    found = {stage.name: stage for stage in plan_stages(replace(DEMO, objectives=objectives))}
    samplers = {name: found[name].settings["trainer"]["callbacks+"][-1]["init_args"]["sampler"] for name in objectives}
    for name in ("mine", "distilled"):
        assert samplers[name] == found[f"sample-heldout-{name}"].settings["settings"]
        assert samplers[name] == {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 48, "seed": 2}
    assert samplers["cooler"] == {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 48, "seed": 7}
