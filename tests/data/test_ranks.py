"""Which rank a process is, by the launcher's variables, and which GPU it takes."""

from __future__ import annotations

import pytest
import torch

from lightning_dadpo.data.ranks import LAUNCHERS, Ranks, ranks_here, take_device
from lightning_dadpo.errors import ConfigError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "2", "SLURM_NTASKS": "6"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {name for names in LAUNCHERS for name in names}:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks(0, 1, 0)),
        (TORCHRUN, Ranks(3, 8, 1)),
        (SRUN, Ranks(5, 6, 2)),
        (SRUN | TORCHRUN, Ranks(3, 8, 1)),  # a torchrun in every task
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}, Ranks()),  # a batch script, outside srun
        ({"RANK": "1", "WORLD_SIZE": "2"}, Ranks()),  # a pod's number among pods, not a process's
    ],
)
def test_the_rank_is_what_the_launcher_says(
    environment: dict[str, str], expected: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks_here() == expected
    assert ranks_here().leads == (expected.rank == 0)


@pytest.mark.parametrize("wrong", [{"RANK": "8"}, {"WORLD_SIZE": "many"}, {"LOCAL_RANK": "-1"}])
def test_numbers_that_do_not_fit_are_named(wrong: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (TORCHRUN | wrong).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}.*expected a rank"):
        ranks_here()


@pytest.mark.parametrize(
    ("gpus", "ranks", "taken"),
    [
        (0, Ranks(1, 2, 1), None),
        (4, Ranks(), None),
        (4, Ranks(6, 8, 2), 2),
        (1, Ranks(6, 8, 2), 0),  # each task sees its own
    ],
)
def test_a_rank_takes_the_gpu_of_its_number_on_the_machine(
    gpus: int, ranks: Ranks, taken: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    take_device(ranks)
    assert seen == ([] if taken is None else [taken])


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="process 3 of this machine finds 2 GPUs; start at most 2"):
        take_device(Ranks(2, 4, 2))
