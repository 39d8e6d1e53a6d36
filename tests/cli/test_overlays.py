"""What an experiment lays over a recipe's settings, and what of these stays."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from lightning_dadpo.cli.experiment import read_experiment
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
    assert watching == usual | {"judge": judge, "prompts": 8, "sampler": asdict(DEMO.sampling)}
    assert found["dadpo"].folder != plain["dadpo"].folder
