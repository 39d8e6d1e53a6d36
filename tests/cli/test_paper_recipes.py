"""The paper's own settings as recipes: what is not from it is marked, and its figures stand beside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_dadpo.cli.experiment import read_experiment
from lightning_dadpo.cli.main import main
from lightning_dadpo.cli.stages import plan_stages

RECIPES = {name: Path("configs/recipes") / f"{name}.yaml" for name in ("vicuna", "qwen")}
OF_THE_PAPER = ("share: 0.2",)
A_VALUE = re.compile(r"[:,{\[]\s*-?[0-9]")
PUBLISHED = {"vicuna": ["-7.3 %", "-31 %"], "qwen": ["14.0 %"]}


@pytest.mark.parametrize("name", RECIPES)
def test_every_number_that_is_not_from_the_paper_says_so(name: str) -> None:
    lines = RECIPES[name].read_text("utf-8").splitlines()
    values = [line for line in lines if A_VALUE.search(line.split("#")[0])]
    assert len(values) > 15
    unmarked = [line.strip() for line in values if "# not from the paper" not in line]
    assert [line for line in unmarked if not line.startswith(OF_THE_PAPER)] == []


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete_with_its_judge_and_the_figures_to_expect(name: str) -> None:
    experiment = read_experiment(str(RECIPES[name]))
    commands = [stage.command for stage in plan_stages(experiment)]
    assert commands[-2:] == ["judge", "evaluate"]
    assert {"dadpo", "ddpo"} == set(experiment.objectives)
    assert experiment.rejected_from == "initial"
    comments = " ".join(line.lstrip("# ") for line in RECIPES[name].read_text("utf-8").splitlines() if line[:1] == "#")
    for figure in (*PUBLISHED[name], "MT-Bench 6.1", "AlpacaEval 81.49", "AlpacaEval 2 16.41", "Arena-Hard 22.4"):
        assert figure in comments


def test_a_missing_key_is_said_before_days_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    text = RECIPES["qwen"].read_text("utf-8").replace("folder: runs/qwen", f"folder: {tmp_path / 'runs'}")
    path = tmp_path / "qwen.yaml"
    path.write_text(text)
    assert main(["run", str(path)]) == 2
    assert "error: experiment.judge: OPENAI_API_KEY is not set" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
