"""The sweep files: what an agent starts is what `dadpo fit` reads; `dadpo sweep` walks a grid without a server."""

from __future__ import annotations

import json
import os
import sys
from functools import wraps
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from lightning_dadpo.cli.main import main
from lightning_dadpo.cli.sweeping import read_sweep, sweep
from lightning_dadpo.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jsonargparse's, of what Lightning calls
ROOT = Path(__file__).parents[2]
LR, TEACHER = "model.init_args.optimizer.init_args.lr", "model.init_args.loss.init_args.beta_teacher"
MINE = {
    "model": {
        "init_args": {
            "student": {"path": "runs/student"},
            "anchors": {"reference": {"scores": "runs/r"}, "teacher": {"scores": "runs/t"}},
        }
    },
    "data": {"init_args": {"train": {"folder": "runs/pairs"}}},
    "trainer": {
        "accelerator": "cpu",
        "logger": [{"class_path": "ExperimentLogger", "init_args": {"experiment": "mine", "stage": "dadpo"}}],
        "callbacks+": [
            {
                "class_path": "WatchDistances",
                "init_args": {"teacher": {"path": "runs/teacher"}, "teacher_responses": "runs/answers"},
            }
        ],
    },
}
# Stands in for dadpo: keeps what it was given, and logs the number of the run as the metric, twice.
FAKE = """#!/bin/sh
folder=runs/sweep/$WANDB_RUN_ID/lightning_logs/version_0
mkdir -p $folder
printf '%s\\n' "$@" > runs/sweep/$WANDB_RUN_ID/argv
count=$(ls runs/sweep | wc -l)
printf 'step,val/reverse_kl,other\\n0,99,\\n1,%s,\\n2,,1\\n' $count > $folder/metrics.csv
test ! -e stop || exit 3
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to sweep in, where `dadpo` is a script that trains nothing."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(MINE))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "dadpo").write_text(FAKE)
    (tmp_path / "bin" / "dadpo").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def by_agent(said: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """What wandb's own agent would start for one run."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in run.items()}})
    command = [str(part) for part in create_sweep_command(list(said["command"]))]
    return [
        part for one in command for part in (macros[one[2:-1]] if one.startswith("${") and one.endswith("}") else [one])
    ]


def test_a_run_is_what_wandb_s_agent_would_start() -> None:
    said = yaml.safe_load((ROOT / "configs" / "sweep" / "grid.yaml").read_text())
    grid = read_sweep(str(ROOT / "configs" / "sweep" / "grid.yaml"))
    runs = list(grid.runs())
    assert [list(run.values()) for run in runs[:3]] == [[2e-6, 0.05, 0.01], [2e-6, 0.05, 0.05], [2e-6, 0.09, 0.01]]
    assert len(runs) == len({tuple(run.values()) for run in runs}) == 12
    for run in runs:
        assert grid.command_of(run) == by_agent(said, run)
    other = yaml.safe_load((ROOT / "configs" / "sweep" / "bayes.yaml").read_text())
    assert (other["command"], other["metric"]) == (said["command"], said["metric"])
    assert list(other["parameters"]) == list(said["parameters"])
    for ranges, values in zip(other["parameters"].values(), said["parameters"].values(), strict=True):
        assert ranges["min"] < min(values["values"]) <= max(values["values"]) < ranges["max"]


def test_every_run_is_started_once_and_read_by_fit(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("configs/sweep/grid.yaml") == 0
    said = capsys.readouterr().out
    grid = read_sweep("configs/sweep/grid.yaml")
    folders = {grid.run_id(run): run for run in grid.runs()}
    assert sorted(path.name for path in (home / "runs" / "sweep").iterdir()) == sorted(folders)
    results = [json.loads((home / "runs" / "sweep" / name / "sweep.json").read_text()) for name in folders]
    assert results == [
        {"parameters": run, "metric": "val/reverse_kl", "value": number}
        for number, run in enumerate(folders.values(), 1)
    ]
    listed = [line.split()[0] for line in said.partition("val/reverse_kl, minimize:\n")[2].splitlines()]
    assert listed == [str(number) for number in range(1, 13)]
    assert "[12/12]" in said
    assert sweep("configs/sweep/grid.yaml") == 0
    assert "[1/12]" not in capsys.readouterr().out  # nothing is done twice
    last, run = list(folders.items())[-1]
    arguments = (home / "runs" / "sweep" / last / "argv").read_text().splitlines()
    assert list(run.values()) == [1e-5, 0.09, 0.05]
    assert built(monkeypatch, arguments) == (1e-5, 0.09, 0.05, f"runs/sweep/{last}")


def built(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> tuple[float, float, float, str]:
    """Rate, weights and folder of the training that `dadpo` would begin."""
    begun: list[tuple[L.Trainer, Any]] = []

    @wraps(L.Trainer.fit)  # the CLI reads its options off the signature
    def fit(self: L.Trainer, model: L.LightningModule, **_: Any) -> None:
        begun.append((self, model))

    monkeypatch.setattr(L.Trainer, "fit", fit)
    monkeypatch.setattr(sys, "argv", ["dadpo"])
    assert main(arguments) in (0, None)
    ((trainer, module),) = begun
    assert [type(logger).__name__ for logger in trainer.loggers] == ["ExperimentLogger", "CSVLogger"]
    assert trainer.loggers[1].save_dir == trainer.default_root_dir
    weights = module.loss.betas
    optimizer = module.optimizer([torch.nn.Parameter(torch.zeros(()))])
    return optimizer.defaults["lr"], weights["reference"], weights["teacher"], trainer.default_root_dir


def test_a_run_that_fails_stops_the_sweep_and_is_taken_up_again(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    (home / "stop").touch()
    assert sweep("configs/sweep/grid.yaml") == 3
    assert "failed with status 3; the same command goes on here" in capsys.readouterr().err
    assert len(list((home / "runs" / "sweep").iterdir())) == 1
    assert not list(home.glob("runs/sweep/*/sweep.json"))
    (home / "stop").unlink()
    assert sweep("configs/sweep/grid.yaml") == 0
    assert os.environ["WANDB_RUN_ID"] == "mine"


def small(home: Path, **changed: Any) -> str:
    said = yaml.safe_load((ROOT / "configs" / "sweep" / "grid.yaml").read_text())
    said["parameters"] = {LR: {"values": [1e-6, 2e-6]}, TEACHER: {"value": 0.5}}
    (home / "small.yaml").write_text(yaml.safe_dump(said | changed, sort_keys=False))
    return "small.yaml"


def test_the_largest_comes_first_when_it_is_wanted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(small(home, metric={"name": "val/reverse_kl", "goal": "maximize"})) == 0
    listed = capsys.readouterr().out.partition("val/reverse_kl, maximize:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == ["2", "1"]
    assert listed[0].endswith("lr 2e-06, beta_teacher 0.5")


def test_a_file_of_the_command_that_holds_something_else_makes_other_runs(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Planted: of the command's words alone, the old results are printed as those of the file as it is now."""
    quoted = [
        "dadpo",
        "fit",
        "--config='mine.yaml'",
        "--trainer.default_root_dir",
        "runs/sweep/$WANDB_RUN_ID",
        "${args}",
    ]
    for changed in ({}, {"command": quoted}):
        file = small(home, **changed)
        first = {read_sweep(file).run_id(run) for run in read_sweep(file).runs()}
        assert {read_sweep(file).run_id(run) for run in read_sweep(file).runs()} == first
        (home / "mine.yaml").write_text((home / "mine.yaml").read_text() + "seed_everything: 7\n")
        assert first.isdisjoint(read_sweep(file).run_id(run) for run in read_sweep(file).runs())
    assert sweep(small(home)) == 0
    (home / "mine.yaml").write_text((home / "mine.yaml").read_text() + "# another\n")
    capsys.readouterr()
    assert sweep(small(home)) == 0
    assert "[1/2]" in capsys.readouterr().out


def test_a_metric_that_nobody_logs_is_said(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"runs/sweep/\w+: no val/margin in its metrics\.csv; expected a callback"):
        sweep(small(home, metric={"name": "val/margin"}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"method": "bayes"}, "method 'bayes': expected grid; any other needs `wandb sweep small.yaml`"),
        ({"metric": {"goal": "minimize"}}, "metric {'goal': 'minimize'}: expected {name: val/reverse_kl"),
        ({"metric": {"name": "x", "goal": "best"}}, "expected {name: val/reverse_kl, goal: minimize}"),
        ({"command": ["dadpo", "fit"]}, "command: expected a list with ${args} in it"),
        ({"command": ["dadpo", "${args}"]}, "command: expected --trainer.default_root_dir FOLDER/$WANDB_RUN_ID in it"),
        ({"parameters": {}}, "parameters: none given"),
        ({"parameters": {"a": {"min": 1, "max": 2}}}, "parameters.a: expected values: [...] or value: ..., found"),
        ({"parameters": {"a": 3}}, "parameters.a: expected values: [...] or value: ..., found 3"),
        ({"parameters": {"a": {"values": [{"b": 1}]}}}, "parameters.a: expected values"),
    ],
)
def test_refuses_files_that_are_no_grid(home: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_sweep(small(home, **changed))
    assert str(caught.value).startswith("small.yaml: ")
    assert said in str(caught.value)


def test_refuses_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such sweep file"):
        sweep("nowhere.yaml")
