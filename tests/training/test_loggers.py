from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_dadpo.data.artifacts import draft
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.tracking import connection
from lightning_dadpo.tracking.connection import end_service
from lightning_dadpo.training import loggers
from lightning_dadpo.training.loggers import ExperimentLogger
from tests.commands import python_code
from tests.wandb_records import artifacts_of, history_of, kill_service

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # jsonargparse, when Lightning's CLI parses
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    yield
    if "wandb" in sys.modules:
        end_service()


class Line(L.LightningModule):
    """Fits one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss = (self.weight - batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Numbers(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(torch.ones(6))


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the real runs of a test were told, row by row."""
    told: list[dict[str, Any]] = []
    plain = loggers.start_run

    def start(*mode: Any, **arguments: Any) -> Any:
        run = plain(*mode, **arguments)
        log = run.log
        monkeypatch.setattr(run, "log", lambda row: (told.append(row), log(row)))
        return run

    monkeypatch.setattr(loggers, "start_run", start)
    return told


def test_constructing_imports_and_starts_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; from lightning_dadpo.training.loggers import ExperimentLogger; "
        f"logger = ExperimentLogger('trial', 'dadpo', 'dadpo-1f', {str(tmp_path / 'runs')!r}); "
        "print('wandb' in sys.modules, logger.name, logger.version, logger.save_dir)"
    )
    said = python_code(program).stdout
    assert said.strip() == f"False dadpo dadpo-1f {tmp_path / 'runs'}"
    assert not (tmp_path / "runs").exists()


def test_other_ranks_start_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "start_run", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setattr("lightning.fabric.loggers.logger.rank_zero_only.rank", 1)
    ExperimentLogger("trial", "dadpo", save_dir=str(tmp_path)).experiment.log({"a": 1})
    assert not list(tmp_path.iterdir())


def test_a_run_beside_csv_in_a_command_line_config(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    logged: list[dict[str, Any]],
) -> None:
    csv = {"save_dir": str(tmp_path), "name": "", "version": "curves"}
    own = {"experiment": "trial", "stage": "dadpo", "run_id": "dadpo-1f", "save_dir": str(tmp_path / "runs")}
    named = f"{ExperimentLogger.__module__}.{ExperimentLogger.__name__}"
    trainer = {
        "default_root_dir": str(tmp_path),
        "accelerator": "cpu",
        "max_epochs": 1,
        "log_every_n_steps": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": [
            {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": csv},
            {"class_path": named, "init_args": own},
        ],
    }
    (tmp_path / "config.yaml").write_text(json.dumps({"trainer": trainer}))
    monkeypatch.setattr(sys, "argv", ["dadpo", "fit", "-c", str(tmp_path / "config.yaml")])
    command = LightningCLI(Line, Numbers, save_config_callback=None, seed_everything_default=False)
    _, logger = command.trainer.loggers
    run = logger.experiment
    run.finish()
    assert (run.group, run.name, run.id, run.project, run.job_type) == ("trial", "dadpo", "dadpo-1f", "dadpo", "fit")
    assert (logger.version, run.settings.mode, run.settings.save_code) == ("dadpo-1f", "offline", False)
    losses = [(row["trainer/global_step"], row["train/loss"]) for row in logged if "train/loss" in row]
    columns, *cells = [line.split(",") for line in (tmp_path / "curves" / "metrics.csv").read_text().split()]
    both = [dict(zip(columns, line, strict=True)) for line in cells]
    assert losses == [(int(line["step"]), pytest.approx(float(line["train/loss"]))) for line in both]
    assert [step for step, _ in losses] == [1, 3, 5]
    (folder,) = (tmp_path / "runs" / "wandb").glob("offline-run-*-dadpo-1f")
    assert f"wandb: kept offline; upload it with `wandb sync {folder}`" in capsys.readouterr().out
    assert not list(folder.rglob("*.ckpt")) + list(folder.rglob("*.py"))
    sys.modules["wandb"].teardown()  # its service may still be writing
    assert kept(folder / "run-dadpo-1f.wandb") == [(False, "fit", "dadpo-1f")]


def kept(path: Path) -> list[tuple[bool, str, str]]:
    return [(one.used, one.kind, one.name) for one in artifacts_of(path)]


def test_a_training_names_what_it_uses_and_what_it_saved(tmp_path: Path) -> None:
    """Its output is said at its end, and only if there is a checkpoint."""
    with draft(tmp_path / "pairs-1", "pairs", {}):
        pass
    logger = ExperimentLogger("trial", "dadpo", "dadpo-1f", str(tmp_path))
    logger.log_hyperparams({"data": {"init_args": {"train": {"folder": str(tmp_path / "pairs-1")}}}})
    logger.finalize("success")
    logger.after_save_checkpoint(None)
    logger.finalize("failed")
    folder = Path(logger.experiment.settings.sync_dir)
    logger.finalize("success")
    logger.experiment.finish()
    sys.modules["wandb"].teardown()  # its service may still be writing
    assert kept(folder / "run-dadpo-1f.wandb") == [(True, "pairs", "pairs-1"), (False, "fit", "dadpo-1f")]


def test_a_training_goes_on_when_the_service_of_wandb_dies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = ExperimentLogger("trial", "dadpo", "dadpo-1f", str(tmp_path))
    logger.log_metrics({"train/loss": 0.5}, 1)
    folders = [Path(logger.experiment.settings.sync_dir)]
    kill_service()
    logger.log_metrics({"train/loss": 0.25}, 2)
    folders.append(Path(logger.experiment.settings.sync_dir))
    logger.experiment.finish()
    sys.modules["wandb"].teardown()
    assert len(set(folders)) == 2
    assert all("-dadpo-1f" in folder.name for folder in folders)
    assert capsys.readouterr().out.count("wandb: dadpo: its service died (") == 1
    assert history_of(folders[1] / "run-dadpo-1f.wandb", "train/loss") == [0.25]


def test_a_resumed_training_continues_its_run(tmp_path: Path) -> None:
    for _ in range(2):
        logger = ExperimentLogger("trial", "dsft", "dsft-2a", str(tmp_path))
        assert logger.experiment is logger.experiment
        assert (logger.experiment.id, logger.experiment.settings.resume) == ("dsft-2a", "allow")
        logger.experiment.finish()


def test_samples_are_a_table_of_plain_text(tmp_path: Path, logged: list[dict[str, Any]]) -> None:
    logger = ExperimentLogger("trial", "dsft", None, str(tmp_path))
    text = "<img src=x onerror=alert(1)> \u2028 two\nlines"
    logger.log_samples([{"step": 3, "prompt_id": "a", "reference": None, "student": text}], step=3)
    folder = Path(logger.experiment.settings.sync_dir)
    logger.experiment.finish()
    (table,) = (folder / "files" / "media" / "table").glob("samples*.table.json")
    stored = json.loads(table.read_text("utf-8"))
    assert stored["columns"] == ["step", "prompt_id", "reference", "student"]
    assert stored["data"] == [[3, "a", None, text]]
    assert not list(folder.rglob("*.html"))
    assert [row["trainer/global_step"] for row in logged] == [3]


def test_disabled_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = ExperimentLogger("trial", "dsft", "x", str(tmp_path))
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_samples([{"student": "text"}], step=1)
    assert not list(tmp_path.rglob("*.wandb"))


def test_online_without_a_key_stops_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(connection, "_has_key", lambda: False)
    logger = ExperimentLogger("trial", "dsft", "x", str(tmp_path))
    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, logger=[CSVLogger(tmp_path), logger], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="WANDB_MODE=online: no API key"):
        trainer.fit(Line(), Numbers())
    assert trainer.global_step == 0
