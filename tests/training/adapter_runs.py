"""An adapter's training under one strategy after another: `python -m tests.training.adapter_runs FOLDER STRATEGY ...`.

Lightning starts the second process by repeating the command.
"""

from __future__ import annotations

import json
import sys
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.training.checkpoints import LastCheckpoint
from lightning_dadpo.training.checks import CheckScores
from lightning_dadpo.training.preference import AnchorSource
from tests.scoring.example import Setup, trainer
from tests.training.strategy_runs import PLACES, Kill, KilledError, Seen, strategy_of, whole_weights

ADAPTER = AdapterSpec(rank=4, alpha=8.0)


class Weights(L.Callback):
    """The trained weights at the end, whole, and whether anything else changed or was held by an optimizer."""

    def __init__(self) -> None:
        self.whole: dict[str, torch.Tensor] = {}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        every = whole_weights(pl_module, trainer.strategy)
        trained = {name for name, parameter in pl_module.student.named_parameters() if parameter.requires_grad}
        self.whole = {name: value for name, value in every.items() if name in trained}


def fit(
    setup: Setup, root: Path, name: str, callbacks: list[Any], resume: bool = False, start: str | None = None
) -> None:
    """Two epochs of three steps; the reference is the student with its adapter off. Rank 0 writes what it came to."""
    L.seed_everything(0, verbose=False)
    reference = AnchorSource(model=ModelSpec(str(setup.student)), adapter=start)
    anchors = {"reference": reference, "teacher": AnchorSource(scores=str(setup.teacher_scores))}
    seen, weights = Seen(), Weights()
    loop = trainer(
        root,
        [weights, LastCheckpoint(every_n_steps=2), *callbacks],
        logger=seen,
        devices=1 if name == "one" else 2,
        strategy=strategy_of(name),
        max_epochs=2,
        accumulate_grad_batches=2,
        limit_val_batches=0,
        gradient_clip_val=0.5,
    )
    path = str(root / "checkpoints" / "last.ckpt") if resume else None
    module = setup.module(anchors=anchors, adapter=replace(ADAPTER, start=start))
    loop.fit(module, datamodule=setup.data(), ckpt_path=path)
    if loop.is_global_zero:
        torch.save(weights.whole, root / "weights.pt")
        (root / "seen.json").write_text(json.dumps([seen.steps[step] for step in sorted(seen.steps)]), "utf-8")


def main(folder: Path, names: list[str]) -> None:
    """Whole, killed and resumed, and begun from the adapter of one process, under each."""
    warnings.simplefilter("ignore")
    setup = Setup(*(folder / place for place in PLACES))
    for name in names:
        fit(setup, folder / name / "whole", name, [])
        with suppress(KilledError):
            fit(setup, folder / name / "resumed", name, [Kill()])
        fit(setup, folder / name / "resumed", name, [], resume=True)
        first = str(folder / "one" / "whole" / "checkpoints" / "last.ckpt")
        fit(setup, folder / name / "begun", name, [CheckScores(chosen_from_teacher=False)], start=first)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
