"""A training that goes on obeys the flags it was started with; what it cannot obey is one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import Logger
from torch import Tensor

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.training.checkpoints import BestCheckpoint, LastCheckpoint
from lightning_dadpo.training.optimization import Schedule
from lightning_dadpo.training.resuming import check_checkpoint
from tests.scoring.example import Setup, make_setup, trainer
from tests.training.test_resume import KilledError, Losses

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Checkpoint directory .* exists and is not empty", "ignore:The dirpath has changed"
)
RATE = 1e-3
WHOLE = {"max_epochs": 2, "limit_val_batches": 0}


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def killed(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of step 3 of 6, with a rate of 1e-3, a decay of 0.1 and the usual schedule."""
    root = tmp_path_factory.mktemp("killed")
    with pytest.raises(KilledError):
        train(setup, root, [Losses(dies_before=3)])
    return root / "checkpoints" / "last.ckpt"


class Steps(L.Callback):
    """Each step's learning rate, by its number; the weights that the student has behind its first step."""

    def __init__(self) -> None:
        self.rates: dict[int, float] = {}
        self.moved: Tensor | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rates[trainer.global_step] = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.moved is None:
            self.moved = matrix(dict(pl_module.student.named_parameters()))


def matrix(weights: dict[str, Tensor], prefix: str = "") -> Tensor:
    return weights[f"{prefix}model.layers.0.self_attn.q_proj.weight"].detach().double().clone()


def train(
    setup: Setup,
    root: Path,
    callbacks: list[Any],
    start: Path | None = None,
    optimizer: Any = torch.optim.AdamW,
    schedule: Schedule | None = None,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> L.Trainer:
    L.seed_everything(0, verbose=False)
    made = partial(optimizer, **({"lr": RATE, "weight_decay": 0.1} | (settings or {})))
    loop = trainer(root, [*callbacks, LastCheckpoint(every_n_steps=1)], **(WHOLE | changes))
    loop.fit(setup.module(optimizer=made, schedule=schedule), datamodule=setup.data(), ckpt_path=start)
    return loop


def move(setup: Setup, root: Path, start: Path, **settings: Any) -> Tensor:
    """By what the first step behind a checkpoint changes a matrix of weights."""
    seen = Steps()
    train(setup, root, [seen], start, settings=settings)
    assert seen.moved is not None
    return seen.moved - matrix(torch.load(start, weights_only=True)["state_dict"], "student.")


def cosine(step: int, steps: int, peak: float, warmup: float = 0.1, final: float = 0.0) -> float:
    """The schedule by hand."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2)


def test_the_step_behind_a_resume_moves_by_the_new_rate_and_decay(
    setup: Setup, killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Planted: without `ObeyFlags` all four are what the checkpoint's own rate and decay make of them.

    AdamW moves by rate * (what the moments say + decay * weight), and the moments are the checkpoint's in all four.
    """
    old = move(setup, tmp_path / "old", killed, weight_decay=0.1)
    assert "goes on with" not in capsys.readouterr().out
    bare = move(setup, tmp_path / "bare", killed, weight_decay=0.0)
    assert "the training goes on with weight_decay 0.0 (was 0.1)" in capsys.readouterr().out
    faster = move(setup, tmp_path / "faster", killed, lr=3 * RATE, weight_decay=0.0)
    assert "the training goes on with weight_decay 0.0 (was 0.1), lr 0.003 (was 0.001)" in capsys.readouterr().out
    decayed = move(setup, tmp_path / "decayed", killed, weight_decay=0.5)
    rate, weights = cosine(3, 6, RATE), matrix(torch.load(killed, weights_only=True)["state_dict"], "student.")
    assert bare.abs().max() > 1e-4
    assert torch.allclose(faster, 3 * bare, rtol=1e-3, atol=1e-7)
    for moved, decay in ((old, 0.1), (decayed, 0.5)):
        assert torch.allclose(moved - bare, -rate * decay * weights, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("epochs", [2, 3])
def test_another_schedule_and_another_end_are_obeyed_from_the_first_step_on(
    setup: Setup, killed: Path, tmp_path: Path, epochs: int
) -> None:
    seen = Steps()
    schedule = Schedule(warmup_share=0.5, final_share=0.2)
    train(setup, tmp_path, [seen], killed, schedule=schedule, settings={"lr": 2e-3}, max_epochs=epochs)
    steps = 3 * epochs
    expected = {step: cosine(step, steps, 2e-3, 0.5, 0.2) for step in range(3, steps)}
    assert seen.rates == pytest.approx(expected, rel=1e-12)


def test_a_finished_run_goes_on_for_another_epoch_and_no_further_back(setup: Setup, tmp_path: Path) -> None:
    train(setup, tmp_path, [])
    seen, last = Steps(), tmp_path / "checkpoints" / "last.ckpt"
    assert train(setup, tmp_path, [seen], last).global_step == 6
    assert seen.rates == {}
    assert train(setup, tmp_path, [seen], last, max_epochs=3).global_step == 9
    assert list(seen.rates) == [6, 7, 8]
    with pytest.raises(ConfigError, match=r"cannot resume: 3 epochs are behind it, and trainer.max_epochs is 1"):
        train(setup, tmp_path, [], last, max_epochs=1)


def test_an_early_stop_obeys_its_new_patience(setup: Setup, tmp_path: Path) -> None:
    """It stops behind the second epoch, since nothing can get better by 1000 nats; Lightning restores its patience."""

    def fit(patience: int, start: Path | None = None) -> int:
        stop = EarlyStopping("val/loss", min_delta=1000.0, patience=patience)
        return train(setup, tmp_path, [stop], start, max_epochs=4, limit_val_batches=1.0).global_step

    last = tmp_path / "checkpoints" / "last.ckpt"
    assert fit(1) == 6
    assert fit(1, last) == 6
    assert fit(2, last) == 9
    assert fit(1, last) == 9
    assert fit(9, last) == 12


def test_another_optimizer_is_refused_with_both_names(setup: Setup, killed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot resume: the optimizer was AdamW and is SGD now"):
        train(setup, tmp_path, [], killed, optimizer=torch.optim.SGD)


def test_a_checkpoint_that_another_strategy_or_another_number_of_processes_wrote_is_one_line(
    killed: Path, tmp_path: Path
) -> None:
    """DeepSpeed itself would begin to load, and end in a traceback."""
    pytest.importorskip("deepspeed")
    from tests.deepspeed_cpu import DeepSpeedOnCpu

    folder = tmp_path / "last.ckpt"
    (folder / "checkpoint").mkdir(parents=True)
    for rank in range(2):
        (folder / "checkpoint" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    alone, spread = trainer(tmp_path), trainer(tmp_path, strategy=DeepSpeedOnCpu(stage=2))
    check_checkpoint(alone, str(killed))
    with pytest.raises(ConfigError, match=r"cannot resume: world_size was 2 and is 1 now \(--ckpt_path .*last.ckpt"):
        check_checkpoint(spread, str(folder))
    (folder / "checkpoint" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    check_checkpoint(spread, str(folder))
    with pytest.raises(ConfigError, match=r"is one file, and DeepSpeedOnCpu reads a folder"):
        check_checkpoint(spread, str(killed))
    with pytest.raises(ConfigError, match=r"is a folder, and SingleDeviceStrategy reads one file"):
        check_checkpoint(alone, str(folder))


class Logs(Logger):
    """Everything that was logged, by its step."""

    name, version = "logs", "0"

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.steps.setdefault(int(step or 0), {}).update(metrics)

    def log_hyperparams(self, *arguments: Any, **named: Any) -> None:
        pass


DRILLS: dict[str, tuple[Callable[[], list[L.Callback]], dict[str, Any]]] = {
    "every second step is logged": (list, {"log_every_n_steps": 2}),
    "ended by steps": (list, {"max_steps": 5, "max_epochs": -1}),
    "stopped early": (
        lambda: [EarlyStopping("val/loss", min_delta=1000.0, patience=1)],
        {"max_epochs": 5, "limit_val_batches": 1.0},
    ),
    "the first is the best": (lambda: [BestCheckpoint("val/loss", "max")], {"limit_val_batches": 1.0}),
    "the last is the best": (
        lambda: [BestCheckpoint("val/loss", "min")],
        {"limit_val_batches": 1.0, "val_check_interval": 1},
    ),
}


@pytest.mark.parametrize("name", DRILLS)
def test_D4_killed_twice_a_run_logs_stops_and_keeps_what_the_undisturbed_one_does(
    setup: Setup, tmp_path: Path, name: str
) -> None:
    """Killed in the middle of either epoch, between two logged steps, before and behind what was best."""
    callbacks, settings = DRILLS[name]
    start = None
    logs: dict[str, dict[int, dict[str, float]]] = {"whole": {}, "killed": {}}
    for root, dies_before in (("whole", None), ("killed", 1), ("killed", 4), ("killed", None)):
        seen, losses = Logs(), Losses(dies_before)
        with nullcontext() if dies_before is None else pytest.raises(KilledError):
            train(setup, tmp_path / root, [losses, *callbacks()], start, logger=seen, **settings)
        for step, values in seen.steps.items():
            logs[root].setdefault(step, {}).update(values)
        start = None if root == "whole" else tmp_path / "killed" / "checkpoints" / "last.ckpt"
        start = start if start is not None and start.exists() else None
    assert logs["killed"] == logs["whole"]
    files = sorted(path.name for path in (tmp_path / "whole" / "checkpoints").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert ("best.ckpt" in files) == ("best" in name)
    for file in files:
        ours, theirs = (torch.load(tmp_path / root / "checkpoints" / file, weights_only=True) for root in logs)
        assert ours["global_step"] == theirs["global_step"]
        assert all(torch.equal(ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())
        if file == "last.ckpt":
            assert ours["global_step"] == (5 if name == "ended by steps" else 6)
        else:  # the validation loss falls from step to step
            assert ours["global_step"] == (3 if name == "the first is the best" else 6)
