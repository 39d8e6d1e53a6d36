"""A DataLoader that follows a plan and can be resumed in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from lightning_dadpo.data.plan import MicroBatch, plan_epoch, plan_evaluation
from lightning_dadpo.data.rows import content_digest
from lightning_dadpo.errors import ConfigError

__all__ = ["PlannedLoader", "evaluation_loader"]


class _Plan(Sampler[MicroBatch]):
    """The micro-batches of the epoch that Lightning names with `set_epoch`."""

    def __init__(self, plan: Callable[[int], list[MicroBatch]]) -> None:
        self.plan = plan
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        if epoch != self.epoch:  # what was handed out belongs to the epoch that it was counted in
            self.skip = 0
        self.epoch = epoch

    def __iter__(self) -> Iterator[MicroBatch]:
        skip, self.skip = self.skip, 0
        yield from self.plan(self.epoch)[skip:]

    def __len__(self) -> int:
        return len(self.plan(self.epoch))


class _Rows:
    """The data set that the loader indexes with a whole micro-batch at once."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __getitem__(self, part: MicroBatch) -> tuple[list[Any], MicroBatch, list[Any]]:
        return [self.rows[row] for row in part.rows], part, [self.rows[row] for row in part.step]

    def __len__(self) -> int:
        return len(self.rows)


Collate = Callable[[list[Any], MicroBatch, list[Any]], Any]


class PlannedLoader(DataLoader[Any]):
    """Training batches in the order of the plan.

    `state_dict` says how far the epoch has come, in batches handed to the loop. `__iter__` is a lazy generator:
    Lightning calls `iter()` before it has named the epoch of a resumed run.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        lengths: Sequence[int],
        collate: Collate,
        rows_per_step: int,
        micro_batches: int,
        world_size: int,
        rank: int,
        seed: int,
    ) -> None:
        if rows_per_step < 1:
            raise ConfigError(f"rows per optimizer step {rows_per_step}: expected at least 1")
        self.identity: dict[str, Any] = {"rows": len(rows), "rows_per_step": rows_per_step, "seed": seed}
        self.identity |= {"micro_batches": micro_batches, "world_size": world_size}
        self.identity |= {"digest_of_lengths": content_digest(list(lengths))}

        def plan(epoch: int) -> list[MicroBatch]:
            return plan_epoch(lengths, rows_per_step, micro_batches, world_size, rank, seed, epoch)

        self.plan = _Plan(plan)
        self.handed_out = 0
        super().__init__(
            _Rows(rows),  # type: ignore[arg-type]
            sampler=self.plan,
            batch_size=None,
            collate_fn=lambda item: collate(*item),
            generator=torch.Generator(),  # or every iter() draws from the global state, which dropout uses too
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.handed_out = self.plan.skip
        for batch in super().__iter__():
            self.handed_out += 1
            yield batch
        self.handed_out = 0

    def state_dict(self) -> dict[str, Any]:
        """Epoch, batches handed out in it, and what the plan was made from."""
        return {"epoch": self.plan.epoch, "handed_out": self.handed_out, "identity": self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the batches that were handed out.

        Raises:
            ConfigError: the plan would be another one; both values are named.
        """
        for name, value in self.identity.items():
            if state["identity"][name] != value:
                raise ConfigError(f"cannot resume: {name} was {state['identity'][name]} and is {value} now")
        self.plan.epoch = state["epoch"]
        self.plan.skip = state["handed_out"] % max(1, len(self.plan))


def evaluation_loader(
    rows: Sequence[Any], lengths: Sequence[int], collate: Collate, rows_per_batch: int, world_size: int, rank: int
) -> DataLoader[Any]:
    """Every row once over all ranks."""
    batches = plan_evaluation(lengths, rows_per_batch, world_size, rank)
    dataset: Any = _Rows(rows)
    return DataLoader(
        dataset,
        sampler=batches,
        batch_size=None,
        collate_fn=lambda item: collate(*item),
        generator=torch.Generator(),
    )
