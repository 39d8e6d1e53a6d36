"""D1 on two real processes: DDP as a person starts it, held to one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from tests.commands import python_module
from tests.scoring.example import Setup, make_setup, trainer


class Steps(L.Callback):
    """The gradient of every optimizer step, as the optimizer is given it, and what this rank ran for it."""

    def __init__(self) -> None:
        self.accumulate = 0
        self.gradients: list[list[float]] = []
        self.pair_ids: list[list[str]] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.accumulate = trainer.accumulate_grad_batches
        names = [name for name, weight in zip(batch.pair_ids, batch.weights, strict=True) if weight]
        self.pair_ids.append(names)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in pl_module.student.parameters()]).tolist())


def train(folder: Path, world_size: int, budget: int) -> None:
    """One rank's training; writes what it saw."""
    places = ("student", "teacher", "pairs", "reference", "scores")
    setup = Setup(*(folder / place for place in places))
    steps = Steps()
    strategy = DDPStrategy(process_group_backend="gloo") if world_size > 1 else "auto"
    settings = {"devices": world_size, "strategy": strategy, "max_epochs": 2, "limit_val_batches": 0}
    loop = trainer(folder, [steps], **settings)
    loop.fit(setup.module(), datamodule=setup.data(tokens_per_batch=budget))
    out = folder / f"seen-{world_size}-{budget}-{loop.global_rank}.json"
    found = {name: getattr(steps, name) for name in ("accumulate", "gradients", "pair_ids", "losses")}
    out.write_text(json.dumps(found), "utf-8")


def in_processes(folder: Path, world_size: int, budget: int) -> None:
    """Lightning starts the other process by repeating the command."""
    done = python_module("tests.training.test_two_processes", str(folder), str(world_size), str(budget))
    assert done.returncode == 0, done.stderr


def seen(folder: Path, world_size: int, budget: int) -> list[dict[str, Any]]:
    """What the ranks wrote."""
    files = [folder / f"seen-{world_size}-{budget}-{rank}.json" for rank in range(world_size)]
    return [json.loads(file.read_text("utf-8")) for file in files]


def test_D1_two_processes_take_the_steps_of_one_whatever_the_budget(tmp_path: Path) -> None:
    make_setup(tmp_path)
    train(tmp_path, 1, 100_000)
    in_processes(tmp_path, 2, 60)
    (alone,) = seen(tmp_path, 1, 100_000)
    ranks = seen(tmp_path, 2, 60)
    assert alone["accumulate"] == 1
    assert ranks[0]["accumulate"] == ranks[1]["accumulate"] > 1
    assert len(alone["gradients"]) == 6
    micro_batches = ranks[0]["accumulate"]
    for step, whole in enumerate(alone["pair_ids"]):
        here = slice(step * micro_batches, (step + 1) * micro_batches)
        parts = [part for rank in ranks for part in rank["pair_ids"][here]]
        assert sorted(name for part in parts for name in part) == sorted(whole)
        # a rank's losses carry the divisor of DDP, which takes the mean over ranks
        assert sum(sum(rank["losses"][here]) for rank in ranks) / 2 == pytest.approx(alone["losses"][step], rel=1e-4)
    for rank in ranks:
        for ours, theirs in zip(rank["gradients"], alone["gradients"], strict=True):
            assert torch.allclose(torch.tensor(ours), torch.tensor(theirs), rtol=2e-3, atol=2e-5)


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
