"""Progress, speed and per-pair rows: what every run writes beside its weights."""

from __future__ import annotations

import json
import resource
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_dadpo.data.artifacts import write_atomically
from lightning_dadpo.progress import Progress, progress
from lightning_dadpo.training.student import logging_interval
from lightning_dadpo.types import PairBatch

__all__ = ["StepProgress", "Throughput", "RecordPairs"]


class StepProgress(L.Callback):
    """A bar over optimizer steps with the time left; lines where there is no terminal."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar where the run begins or goes on."""
        if trainer.is_global_zero:
            total = int(trainer.estimated_stepping_batches)
            self._bar = self._stack.enter_context(progress("training (steps)", total, trainer.global_step))
            self._seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance when the optimizer has stepped."""
        if self._bar is not None and trainer.global_step > self._seen:
            self._bar.advance(trainer.global_step - self._seen)
            self._seen = trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self._stack.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message is not drawn over."""
        self._stack.close()


class Throughput(L.Callback):
    """`train/tokens_per_second` and `train/examples_per_second`, `train/padding_share` and `train/peak_memory_gib`.

    Tokens and examples are real ones: what fillers repeat counts nothing, and a beginning that several share counts for
    each. The padding share is that of the attention's slots, each tree taking as many as the longest of its batch, and
    so each stem; a filler is padding altogether.
    """

    def __init__(self) -> None:
        self._tokens = self._examples = self._computed = self._slots = 0
        self._since: float | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The clock runs from here."""
        if self._since is None:
            self._since = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, from the batch's own integers: nothing here waits for a GPU; log beside the other training values.

        Behind the step, since a student that answers prompts itself has put its answers into the batch.
        """
        trees = batch.sequences
        self._slots += trees.num_slots
        if batch.real_tokens:  # a part of a step is real as a whole, or a filler as a whole
            self._tokens += batch.real_tokens
            self._examples += len(batch)
            self._computed += trees.num_tokens
        if self._since is None or trainer.fit_loop._should_accumulate():
            return
        if trainer.global_step % logging_interval(trainer) == 0:
            seconds = time.monotonic() - self._since
            world = trainer.world_size
            pl_module.log("train/tokens_per_second", self._tokens * world / seconds)
            pl_module.log("train/examples_per_second", self._examples * world / seconds)
            pl_module.log("train/padding_share", 1 - self._computed / self._slots)
            pl_module.log("train/peak_memory_gib", _peak_memory_gib(pl_module.device))
            self._tokens = self._examples = self._computed = self._slots = 0
            self._since = None


def _peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class RecordPairs(L.Callback):
    """Writes one row a pair: `predictions.jsonl` of `predict`, `validation_pairs.jsonl` of the latest validation.

    A row holds the pair's id, log-probs of the policy and of every anchor in nats, margin and implicit rewards.

    Args:
        folder: where to; by default `trainer.default_root_dir`.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._rows: list[dict[str, Any]] = []

    def _keep(self, outputs: Any) -> None:
        if not isinstance(outputs, dict) or "pair_ids" not in outputs:
            return
        columns = {name: value.float().cpu().tolist() for name, value in outputs["values"].items()}
        for index, (pair_id, weight) in enumerate(zip(outputs["pair_ids"], outputs["weights"].tolist(), strict=True)):
            if weight:
                self._rows.append({"pair_id": pair_id} | {name: column[index] for name, column in columns.items()})

    def _write(self, trainer: L.Trainer, name: str) -> None:
        rows = self._rows
        self._rows = []
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        if trainer.is_global_zero and rows and not trainer.sanity_checking:
            folder = Path(self.folder or trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["pair_id"]))
            write_atomically(folder / name, text)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        """Keep the rows of the batch."""
        self._keep(outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the rows of the latest validation."""
        self._write(trainer, "validation_pairs.jsonl")

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: PairBatch, *_: Any) -> None:
        """Keep the rows of the batch."""
        self._keep(outputs)

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write all rows."""
        self._write(trainer, "predictions.jsonl")
