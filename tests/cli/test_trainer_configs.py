"""The files of configs/trainer/: each says how it is launched and parses to its strategy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from lightning_dadpo.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jsonargparse's, of what Lightning calls
CONFIGS = Path(__file__).parents[2] / "configs"
STRATEGIES = {
    "ddp": "lightning.pytorch.strategies.DDPStrategy",
    "fsdp2": "lightning.pytorch.strategies.ModelParallelStrategy",
    "deepspeed_zero2": "lightning.pytorch.strategies.DeepSpeedStrategy",
    "deepspeed_zero3": "lightning.pytorch.strategies.DeepSpeedStrategy",
}
RUN = """
model:
  class_path: PreferenceModule
  init_args:
    student: {path: runs/student}
    anchors: {reference: {scores: runs/reference}, teacher: {scores: runs/teacher}}
data:
  class_path: PreferenceData
  init_args:
    train: {folder: runs/pairs}
"""


def fit(tmp_path: Path, name: str, *options: str) -> list[str]:
    (tmp_path / "run.yaml").write_text(RUN, "utf-8")
    files = [
        CONFIGS / "trainer" / "default.yaml",
        CONFIGS / "trainer" / f"{name}.yaml",
        CONFIGS / "loss" / "dadpo.yaml",
    ]
    return ["fit", *(part for file in [*files, tmp_path / "run.yaml"] for part in ("-c", str(file))), *options]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_file_opens_with_its_launch_commands(name: str) -> None:
    lines = (CONFIGS / "trainer" / f"{name}.yaml").read_text("utf-8").splitlines()
    for line, launch in zip(lines, ("# dadpo fit ", "# torchrun ", "# sbatch "), strict=False):
        assert line.startswith(launch)
        assert f"{name}.yaml" in lines[0]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_file_parses_to_its_strategy(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["dadpo"])
    with pytest.raises(SystemExit) as ended:
        main(fit(tmp_path, name, "--print_config"))
    assert ended.value.code == 0
    shown = capsys.readouterr().out  # DeepSpeed says which accelerator it found, once, where it is imported
    strategy = yaml.safe_load(shown[shown.index("seed_everything") :])["trainer"]["strategy"]
    assert strategy["class_path"] == STRATEGIES[name]
    if name.startswith("deepspeed"):
        assert strategy["init_args"]["stage"] == int(name[-1])
        assert strategy["init_args"]["exclude_frozen_parameters"] is True


def test_deepspeed_without_a_gpu_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("deepspeed")
    monkeypatch.setattr(sys, "argv", ["dadpo"])
    assert main(fit(tmp_path, "deepspeed_zero2", "--trainer.accelerator", "cpu", "--trainer.devices", "1")) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: trainer.strategy: DeepSpeed needs CUDA GPUs, this is CPU")


def test_checkpoints_whose_index_is_pickled_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's default: without the refusal such a folder trains, and is neither read safely nor exported."""
    monkeypatch.setattr(sys, "argv", ["dadpo"])
    root = tmp_path / "root"
    options = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.default_root_dir", str(root)]
    asked = "--trainer.strategy.init_args.save_distributed_checkpoint"
    assert main(fit(tmp_path, "fsdp2", *options, asked, "true")) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("error: trainer.strategy.save_distributed_checkpoint true: ")
    assert said.endswith("expected false, as in configs/trainer/fsdp2.yaml")
    assert not root.exists()


def test_a_judge_watches_a_training_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = (CONFIGS / "trainer" / "watch_judge.yaml").read_text("utf-8").splitlines()[0]
    assert first.startswith("# dadpo fit ")
    assert "-c configs/trainer/watch_judge.yaml" in first
    monkeypatch.setattr(sys, "argv", ["dadpo"])
    with pytest.raises(SystemExit) as ended:
        main(fit(tmp_path, "watch_judge", "--print_config"))
    assert ended.value.code == 0
    callbacks = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    watching, best = callbacks[-2:]
    assert watching["class_path"] == "lightning_dadpo.training.watch.WatchDistances"
    assert watching["init_args"]["prompts"] == 64
    judge = watching["init_args"]["judge"]
    assert judge["class_path"] == "lightning_dadpo.evaluation.judges.RewardModelJudge"
    assert judge["init_args"]["model"]["path"] == "runs/reward-model"
    assert best["init_args"]["monitor"] == "val/preference_rate"
    assert len(callbacks) == 6  # those of default.yaml are still there
