"""Which of how many processes this one is, as whoever started it says: torchrun, SLURM's srun, or nobody."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lightning_dadpo.errors import ConfigError

__all__ = ["Ranks", "ranks_here", "take_device"]

LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun; inside srun too, where each task starts one
    # a step's, which srun alone sets: SLURM_NTASKS also stands in a batch script, which is one process
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


@dataclass(frozen=True)
class Ranks:
    """One process among those that one launch command started.

    Attributes:
        rank: its number, from 0; rank 0 leads.
        size: how many there are.
        local_rank: its number on its own machine, from 0.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size or self.local_rank < 0:
            raise ConfigError(f"rank {self.rank} of {self.size}, on its machine {self.local_rank}: not a rank")

    @property
    def leads(self) -> bool:
        """Whether this one prints, and finishes what all have made."""
        return self.rank == 0


def ranks_here() -> Ranks:
    """This process's rank; the only one where no launcher is known.

    Raises:
        ConfigError: a launcher's variable is no number, or the numbers do not fit together.
    """
    for names in LAUNCHERS:
        values = [os.environ.get(name) for name in names]
        if None not in values:
            try:
                return Ranks(*(int(str(value)) for value in values))
            except ValueError as error:
                said = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
                raise ConfigError(f"{said}: expected a rank, their number, and the rank on this machine") from error
    return Ranks()


def take_device(ranks: Ranks) -> None:
    """Make cuda:LOCAL_RANK this process's GPU; where it sees one alone, as under `srun --gpus-per-task 1`, that one.

    Raises:
        ConfigError: there are fewer GPUs than processes on this machine.
    """
    import torch

    if ranks.size == 1 or not torch.cuda.is_available():
        return
    seen = torch.cuda.device_count()
    if 1 < seen <= ranks.local_rank:
        raise ConfigError(
            f"process {ranks.local_rank + 1} of this machine finds {seen} GPUs; start at most {seen} processes on it"
        )
    torch.cuda.set_device(ranks.local_rank if seen > 1 else 0)
