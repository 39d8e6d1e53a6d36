"""A DataLoader that follows a plan and can be resumed in the middle of an epoch."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from lightning_dadpo.data.plan import MicroBatch, Plan
from lightning_dadpo.data.row_store import RowStore
from lightning_dadpo.data.rows import content_digest
from lightning_dadpo.errors import ConfigError

__all__ = ["PlannedLoader", "evaluation_loader"]


class _Order(Sampler[MicroBatch]):
    """The micro-batches of the epoch that Lightning names with `set_epoch`."""

    def __init__(self, plan: Plan, micro_batches: int, rank: int) -> None:
        self.plan, self.micro_batches, self.rank = plan, micro_batches, rank
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        if epoch != self.epoch:  # what was handed out belongs to the epoch that it was counted in
            self.skip = 0
        self.epoch = epoch

    def __iter__(self) -> Iterator[MicroBatch]:
        skip, self.skip = self.skip, 0
        yield from islice(self.plan.epoch(self.epoch, self.micro_batches, self.rank), skip, None)

    def __len__(self) -> int:
        return self.plan.steps_per_epoch * self.micro_batches


class _Rows:
    """The data set that the loader indexes with a whole micro-batch at once."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __getitem__(self, part: MicroBatch) -> tuple[list[Any], MicroBatch]:
        if isinstance(self.rows, RowStore):
            return self.rows.take(part.rows), part
        return [self.rows[row] for row in part.rows], part

    def __len__(self) -> int:
        return len(self.rows)


Collate = Callable[[list[Any], MicroBatch], Any]


class PlannedLoader(DataLoader[Any]):
    """Training batches in the order of the plan.

    `state_dict` says how far the epoch has come, in batches handed to the loop. `__iter__` is a lazy generator:
    Lightning calls `iter()` before it has named the epoch of a resumed run. What workers have prepared and nobody
    has taken is not counted, so it is prepared again.

    Args:
        rows: what the plan's indices mean.
        plan: the steps.
        collate: makes a batch of the rows of a micro-batch.
        micro_batches: of a step on one rank.
        rank: whose share this is.
        contents: digest of the rows, for a resume to be held to.
        workers: processes that read and collate ahead.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        plan: Plan,
        collate: Collate,
        micro_batches: int,
        rank: int,
        contents: str = "",
        workers: int = 0,
    ) -> None:
        self.identity: dict[str, Any] = {"rows": len(rows), "rows_per_step": plan.rows_per_step, "seed": plan.seed}
        self.identity |= {"world_size": plan.world_size, "micro_batches": micro_batches}
        self.identity |= {"digest_of_costs": content_digest(plan.costs.tolist()), "digest_of_rows": contents}
        self.order = _Order(plan, micro_batches, rank)
        self.handed_out = 0
        super().__init__(
            _Rows(rows),  # type: ignore[arg-type]
            sampler=self.order,
            batch_size=None,
            collate_fn=lambda item: collate(*item),
            num_workers=workers,
            worker_init_fn=_leave_signals_to_the_training if workers else None,
            generator=torch.Generator(),  # or every iter() draws from the global state, which dropout uses too
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.handed_out = self.order.skip
        for batch in super().__iter__():
            self.handed_out += 1
            yield batch
        self.handed_out = 0

    def state_dict(self) -> dict[str, Any]:
        """Epoch, batches handed out in it, and what the plan was made from."""
        return {"epoch": self.order.epoch, "handed_out": self.handed_out, "identity": self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the batches that were handed out.

        Raises:
            ConfigError: the plan would be another one; both values are named.
        """
        for name, value in self.identity.items():
            was = state["identity"].get(name)
            if was != value:
                # also further epochs can hold a step that needs one more
                decided = " (trainer.accumulate_grad_batches or data.tokens_per_batch decide that)"
                why = decided if name == "micro_batches" else ""
                raise ConfigError(f"cannot resume: {name} was {was} and is {value} now{why}")
        self.order.epoch = state["epoch"]
        self.order.skip = state["handed_out"] % max(1, len(self.order))


def _leave_signals_to_the_training(worker: int) -> None:
    """Schedulers and terminals signal every process; without its workers a training could not finish its step.

    Workers end when the training does, however that ends.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def evaluation_loader(rows: Sequence[Any], batches: list[MicroBatch], collate: Collate) -> DataLoader[Any]:
    """Batches that were planned beforehand, in their order."""
    dataset: Any = _Rows(rows)
    return DataLoader(
        dataset,
        sampler=batches,
        batch_size=None,
        collate_fn=lambda item: collate(*item),
        generator=torch.Generator(),
    )
