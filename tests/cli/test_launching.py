"""Launch commands as a person types them: torchrun for a stage, and an experiment whose trainings are two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_dadpo.cli import running
from lightning_dadpo.cli.experiment import read_experiment
from lightning_dadpo.cli.main import main
from lightning_dadpo.cli.stages import plan_stages
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models import numerics
from tests.integration.experiment import write_experiment, write_prompts
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]
TORCHRUN = ["torchrun", "--standalone", "--nproc_per_node", "2"]


def environment() -> dict[str, str]:
    alone = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **alone}


def test_torchrun_samples_what_one_process_samples_and_says_it_once(tiny_folder: Path, tmp_path: Path) -> None:
    settings = {
        "model": {"path": str(tiny_folder)},
        "prompts": write_prompts(tmp_path),
        "settings": {"max_new_tokens": 6},
        "batch_size": 1,
        "precision": "32-true",
    }
    config, out = tmp_path / "sample.yaml", tmp_path / "two"
    config.write_text(yaml.safe_dump(settings), "utf-8")
    assert main(["sample", "-c", str(config), "--out", str(tmp_path / "one")]) == 0
    launcher = str(Path(sys.executable).with_name("torchrun"))
    command = [launcher, *TORCHRUN[1:], "-m", "lightning_dadpo", "sample", "-c", str(config), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(out)
    assert done.stdout.count(str(out)) == done.stdout.count("14/14") == 1
    assert (out / "rows.jsonl").read_bytes() == (tmp_path / "one" / "rows.jsonl").read_bytes()


def small_experiment(folder: Path, **changes: Any) -> Path:
    """One objective, no pruning: as few stages as there can be."""
    student = tiny_model(folder / "student", layers=2, hidden=32, seed=2)
    path = write_experiment(folder, prune=None, student={"path": str(student)}, **changes)
    experiment = yaml.safe_load(path.read_text("utf-8"))
    experiment["objectives"].pop("ddpo")
    path.write_text(yaml.safe_dump(experiment, sort_keys=False), "utf-8")
    return path


def test_an_experiment_says_what_sampling_and_scoring_are_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = read_experiment(str(small_experiment(tmp_path, launch=TORCHRUN, launch_inference=TORCHRUN)))
    plain = read_experiment(str(small_experiment(tmp_path)))
    stages = plan_stages(launched)
    assert stages == plan_stages(plain)  # how they are started changes nothing in what they make
    commands: list[list[str]] = []
    monkeypatch.setattr(running, "_start", lambda command: commands.append(command) or 1)
    for stage in stages:
        running._run_stage(launched, stage)
    torchrun = [str(Path(sys.executable).with_name("torchrun")), *TORCHRUN[1:], "-m", "lightning_dadpo"]
    for stage, command in zip(stages, commands, strict=True):
        split = stage.command in ("fit", "sample", "score")
        start = [*(torchrun if split else [sys.executable, "-m", "lightning_dadpo"]), stage.command]
        assert command[: len(start)] == start
        header = (Path(launched.folder) / "settings" / f"{stage.folder.name}.yaml").read_text().splitlines()[0]
        repeated = "# torchrun --standalone --nproc_per_node 2 -m lightning_dadpo " if split else "# dadpo "
        assert header.startswith(f"{repeated}{stage.command} -c ")


@pytest.mark.parametrize(
    ("device", "command", "forked"),
    [
        ("cpu", [sys.executable, "-m", "lightning_dadpo", "sample"], True),
        ("cuda", [sys.executable, "-m", "lightning_dadpo", "sample"], False),
        ("cpu", ["/bin/torchrun", "-m", "lightning_dadpo", "sample"], False),
    ],
)
def test_only_a_stage_without_launcher_and_gpu_is_forked(
    device: str, command: list[str], forked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[str], bool]] = []
    monkeypatch.setattr(running, "run_stage", lambda command, forked: asked.append((command, forked)) or 0)
    monkeypatch.setattr(numerics, "default_device", lambda: torch.device(device))
    assert running._start(command) == 0
    assert asked == [(command, forked)]


def test_the_settings_of_a_recipe_stay_as_they_are_written(tmp_path: Path) -> None:
    """A strategy is the training's to make; another machine may have what it needs."""
    path = small_experiment(tmp_path)
    experiment = yaml.safe_load(path.read_text("utf-8"))
    strategy = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"no_such_option": 1}}
    experiment["dsft"]["settings"]["trainer"] = {"strategy": strategy}
    path.write_text(yaml.safe_dump(experiment), "utf-8")
    assert read_experiment(str(path)).dsft.settings == experiment["dsft"]["settings"]


def test_a_launcher_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    experiment = small_experiment(tmp_path, launch_inference=["no-such-launcher"])
    with pytest.raises(ConfigError, match="no command 'no-such-launcher'"):
        running.run(str(experiment))
    assert not (tmp_path / "run").exists()


def test_an_experiment_with_ddp_trainings_runs_every_other_stage_once(tmp_path: Path) -> None:
    """A stage that is no training prints its folder at its end: as often as it was executed."""
    gloo = {"process_group_backend": "gloo"}
    strategy = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": gloo}
    trainer = {"accelerator": "cpu", "devices": 2, "strategy": strategy}
    path = small_experiment(tmp_path)
    experiment = yaml.safe_load(path.read_text("utf-8"))
    for recipe in (experiment["dsft"], *experiment["objectives"].values()):
        recipe["settings"]["trainer"] = trainer
    path.write_text(yaml.safe_dump(experiment, sort_keys=False), "utf-8")
    command = [sys.executable, "-m", "lightning_dadpo", "run", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    stages = json.loads((tmp_path / "run" / "experiment.json").read_text())["stages"]
    times = [json.loads(line) for line in (tmp_path / "run" / "times.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["status"]) for row in times] == [(stage["name"], 0) for stage in stages]
    for stage in stages:
        assert lines.count(stage["folder"]) == (stage["command"] != "fit"), stage
    assert done.stdout.count("audit of teacher: 8 pairs") == 1
    assert done.stdout.count("step-0 oracle: student = reference") == 1
    assert {row["model"] for row in json.loads((tmp_path / "run" / "summary.json").read_text())} == {
        "initial", "dsft", "dadpo", "teacher",
    }  # fmt: skip
