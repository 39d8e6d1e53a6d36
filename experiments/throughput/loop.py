"""Row J: the real Lightning loop, its module and its data, against the same steps without a loop."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L

from experiments.throughput.measure import Ratio, synchronise
from experiments.throughput.ours import Ours, collated, plan_of
from experiments.throughput.setting import BETA_REFERENCE, BETA_TEACHER, Setting
from experiments.throughput.workload import SHORT, Pair, pair_rows
from lightning_dadpo.data.artifacts import draft
from lightning_dadpo.data.rows import RowWriter, ScoreRow
from lightning_dadpo.losses import DaDPO
from lightning_dadpo.training.datamodule import PreferenceData
from lightning_dadpo.training.optimization import Schedule
from lightning_dadpo.training.preference import AnchorSource, PreferenceModule
from lightning_dadpo.training.sources import PairSource

__all__ = ["compare_loops"]

ANCHORS = ("reference", "teacher")
EPOCHS = 3


class _Clock(L.Callback):
    """Seconds from the end of the first step to the end of the last one: what a fit does before is no loop."""

    started = 0.0
    taken = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == 1 and not self.started:
            synchronise()
            self.started = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        synchronise()
        self.taken = time.perf_counter() - self.started


def _artefacts(setting: Setting, pairs: list[Pair]) -> tuple[str, dict[str, AnchorSource]]:
    """Pairs and scores on disk, as the stages leave them."""
    rows, folder = pair_rows(pairs), setting.folder / "loop"
    with draft(folder / "pairs", "pairs", {}) as work, RowWriter(work.path / "rows.jsonl") as writer:
        writer.write(*rows)
    scored = [ScoreRow(row.pair_id, -1.0, len(row.chosen_token_ids), -1.0, len(row.rejected_token_ids)) for row in rows]
    for anchor in ANCHORS:
        with draft(folder / anchor, "scores", {}) as work, RowWriter(work.path / "rows.jsonl") as writer:
            writer.write(*scored)
    return str(folder / "pairs"), {anchor: AnchorSource(scores=str(folder / anchor)) for anchor in ANCHORS}


@contextmanager
def _silent() -> Iterator[None]:
    """Lightning's hints are about other runs than this."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _lightning(ours: Ours, folder: str, anchors: dict[str, AnchorSource]) -> float:
    setting, clock = ours.setting, _Clock()
    with _silent():
        trainer = L.Trainer(
            accelerator="gpu" if setting.device.type == "cuda" else "cpu",
            devices=1,
            precision=setting.precision,
            max_epochs=EPOCHS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=str(Path(setting.folder) / "loop"),
            callbacks=[clock],
        )
        module = PreferenceModule(
            setting.student,
            DaDPO(BETA_REFERENCE, BETA_TEACHER),
            anchors,
            optimizer=lambda _: ours.optimizer,
            schedule=Schedule(),
        )
        module.student = ours.model  # not loaded again: the two loops move the same weights
        data = PreferenceData(train=PairSource(folder=folder), pairs_per_step=setting.sizes.loop_pairs, seed=0)
        trainer.fit(module, datamodule=data)
    assert trainer.global_step == EPOCHS * setting.sizes.loop, f"{trainer.global_step} steps"
    ours.model.to(setting.device)  # Lightning leaves everything on the CPU
    ours.optimizer.load_state_dict(ours.optimizer.state_dict())  # moments go where their weights are
    return clock.taken


def _bare(ours: Ours, pairs: list[Pair]) -> float:
    rows = pair_rows(pairs)
    plan = plan_of(rows, ours.setting.sizes.loop_pairs)
    micro_batches = plan.micro_batches(ours.setting.budget, epochs=EPOCHS)
    parts = chain.from_iterable(plan.epoch(epoch, micro_batches, rank=0) for epoch in range(EPOCHS))
    start = 0.0
    for number, part in enumerate(parts, 1):
        ours.loss(collated(rows, part)).backward()  # type: ignore[no-untyped-call]
        if number % micro_batches == 0:
            ours.optimizer.step()
            ours.optimizer.zero_grad(set_to_none=True)
        if number == micro_batches:
            synchronise()
            start = time.perf_counter()
    synchronise()
    return time.perf_counter() - start


def compare_loops(setting: Setting) -> tuple[Ratio, dict[str, Any]]:
    """Seconds of Lightning's loop by those of the bare one, over the same steps, interleaved.

    Both train one model with one optimizer. With a model of its own in every fit the first three steps take up to
    twice the time, wherever they run, because the machine first has to find memory for gradients and moments.
    """
    pairs = setting.pairs(SHORT, setting.sizes.loop * setting.sizes.loop_pairs)
    folder, anchors = _artefacts(setting, pairs)
    ours = Ours(setting, pairs)
    bare: list[float] = []
    lightning: list[float] = []
    for block in range(setting.sizes.blocks + 1):
        bare.append(_bare(ours, pairs))
        lightning.append(_lightning(ours, folder, anchors))
        if block:
            print(f"block {block}: bare {bare[-1]:.2f} s, Lightning {lightning[-1]:.2f} s", flush=True)
    bare, lightning = bare[1:], lightning[1:]  # the first round warms up
    ratio = Ratio.of([above / below for above, below in zip(lightning, bare, strict=True)])
    return ratio, {"bare_seconds": bare, "lightning_seconds": lightning}
