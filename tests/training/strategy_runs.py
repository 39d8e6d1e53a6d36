"""Trainings under some strategies, run as a person would: `python -m tests.training.strategy_runs FOLDER STRATEGY...`.

Lightning starts the second process by repeating the command. Every case writes what it came to.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
from torch.distributed.tensor import DTensor

from lightning_dadpo.losses import JensenShannon, ResponseNLL, ReverseKL, WeightedTerm
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.training.checkpoints import LastCheckpoint
from lightning_dadpo.training.datamodule import SupervisedData
from lightning_dadpo.training.distillation import DistillationModule
from lightning_dadpo.training.preference import PairTerm
from lightning_dadpo.training.sharding import writes_folders
from lightning_dadpo.training.sources import ResponseSource
from lightning_dadpo.training.supervised import SupervisedModule
from tests.scoring.example import Setup, trainer

PLACES = ("student", "teacher", "pairs", "reference", "scores")
STEPS = 6
"""Two epochs of 6, 6 and 4 rows."""


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        accumulate: micro-batches a step; rows are few, so with 4 some ranks run fillers.
        kind: preference with both anchors from tables (cached) or both models (live), or these with a token-level term
            (term); or dSFT, or distillation from a live teacher, on responses.
    """

    accumulate: int
    kind: Literal["cached", "live", "term", "dSFT", "distillation"]

    @property
    def name(self) -> str:
        return f"accumulate {self.accumulate}, {self.kind}"


CASES = [Case(accumulate, kind) for kind in ("cached", "live", "dSFT") for accumulate in (1, 4)]
CASES += [Case(1, "term"), Case(4, "distillation")]
KILLED = CASES[1]


def strategy_of(name: str) -> Any:
    """A fresh strategy for two processes on the CPU."""
    if name.startswith("zero"):
        from tests.deepspeed_cpu import DeepSpeedOnCpu

        return DeepSpeedOnCpu(stage=int(name[-1]))
    if name == "fsdp2":
        return ModelParallelStrategy(
            data_parallel_size=2,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend="gloo",
        )
    return DDPStrategy(process_group_backend="gloo", broadcast_buffers=False) if name == "ddp" else "auto"


class Seen(Logger):
    """The logged values of every step."""

    name, version = "seen", "0"

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        kept = {
            name: metrics[name] for name in ("train/loss", "train/margin", "train/gradient_norm") if name in metrics
        }
        self.steps.setdefault(int(step or 0), {}).update(kept)

    def log_hyperparams(self, *arguments: Any, **named: Any) -> None:
        pass


class Optimized(L.Callback):
    """No optimizer holds a frozen weight."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        frozen = {id(parameter) for parameter in pl_module.frozen.parameters()}
        held = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        assert not held & frozen


def whole_weights(module: Any, strategy: Any) -> dict[str, torch.Tensor]:
    """The student's weights as one process would hold them; every rank must call this."""
    found = {}
    for name, parameter in module.student.named_parameters():
        if isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3:
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                found[name] = parameter.detach().clone()
        else:
            value = parameter.detach()
            found[name] = (value.full_tensor() if isinstance(value, DTensor) else value).clone()
    return found


def spread(module: Any, strategy: Any) -> list[bool]:
    """Whether each model's embeddings lie on this rank in part only."""
    embeddings = [m.get_input_embeddings().weight for m in (module.student, *module.frozen.values())]
    if isinstance(strategy, DeepSpeedStrategy):
        return [hasattr(w, "ds_tensor") and w.ds_tensor.numel() < w.ds_numel for w in embeddings]
    return [isinstance(w, DTensor) and w.to_local().numel() < w.numel() for w in embeddings]


class KilledError(Exception):
    """What a kill looks like from inside."""


class Kill(L.Callback):
    """Dies in the middle of the second epoch, before the last of its steps."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == STEPS - 1:
            raise KilledError


class KillInWriting(L.Callback):
    """Dies when a part of the second checkpoint is there, and another is not."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        save = trainer.strategy.save_checkpoint

        def half(checkpoint: Any, path: Any, **settings: Any) -> None:
            if trainer.global_step == 4:
                if writes_folders(trainer.strategy):
                    save(checkpoint, path, **settings)
                    trainer.strategy.barrier()
                    if trainer.is_global_zero:
                        next(Path(path).glob("checkpoint/*_model_states.pt")).unlink()
                raise KilledError
            save(checkpoint, path, **settings)

        trainer.strategy.save_checkpoint = half


def training(setup: Setup, case: Case, rate: float) -> tuple[Any, Any]:
    """The module and its data, six rows a step; responses are of 2 to 13 tokens, so ranks hold unlike numbers."""
    optimizer = partial(torch.optim.AdamW, lr=rate, weight_decay=0.1)
    if case.kind == "dSFT":
        source = ResponseSource(str(setup.pairs.with_name("responses")))
        module = SupervisedModule(ModelSpec(str(setup.student)), optimizer)
        return module, SupervisedData(train=source, responses_per_step=6)
    if case.kind == "distillation":
        source = ResponseSource(str(setup.pairs.with_name("responses")))
        beside = {"sft": WeightedTerm(0.5, ResponseNLL())}
        models = ModelSpec(str(setup.student)), ModelSpec(str(setup.teacher))
        distilled = DistillationModule(*models, JensenShannon(0.3), optimizer, terms=beside)
        return distilled, SupervisedData(train=source, responses_per_step=6)
    terms = {"kl": PairTerm(0.5, ReverseKL(), "rejected")} if case.kind == "term" else {}
    return setup.module(live=case.kind != "cached", optimizer=optimizer, terms=terms), setup.data()


def fit(
    setup: Setup,
    root: Path,
    name: str,
    case: Case,
    callbacks: Sequence[Any] = (),
    start: Path | None = None,
    rate: float = 1e-3,
    epochs: int = 2,
) -> None:
    """One training with a checkpoint every second step; rank 0 writes what it came to."""
    L.seed_everything(0, verbose=False)
    seen, strategy = Seen(), strategy_of(name)
    module, data = training(setup, case, rate)
    loop = trainer(
        root,
        [Optimized(), LastCheckpoint(every_n_steps=2), *callbacks],
        logger=seen,
        devices=1 if name == "one" else 2,
        strategy=strategy,
        max_epochs=epochs,
        accumulate_grad_batches=case.accumulate,
        limit_val_batches=0,
        gradient_clip_val=0.5,
    )
    sharding: list[bool] = []
    whole: dict[str, torch.Tensor] = {}

    class Weights(L.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            sharding.extend(spread(pl_module, trainer.strategy))
            whole.update(whole_weights(pl_module, trainer.strategy))

    loop.callbacks.append(Weights())
    loop.fit(module, datamodule=data, ckpt_path=start)
    if loop.is_global_zero:
        torch.save(whole, root / "weights.pt")
        found = {
            "steps": [seen.steps[step] for step in sorted(seen.steps)],
            "spread": sharding,
            "frozen": len(module.frozen),
        }
        (root / "seen.json").write_text(json.dumps(found), "utf-8")


def main(folder: Path, names: Sequence[str]) -> None:
    """Every case under every strategy, one after another: importing costs more than training."""
    warnings.simplefilter("ignore")
    setup = Setup(*(folder / place for place in PLACES))
    for name in names:
        runs_of(setup, folder, name)


def runs_of(setup: Setup, folder: Path, name: str) -> None:
    """Every case, and one of them killed twice, resumed, and then trained for longer."""
    for case in CASES:
        fit(setup, folder / name / case.name, name, case)
    resumed = folder / name / "resumed"
    last = resumed / "checkpoints" / "last.ckpt"
    for kill, start in ((KillInWriting(), None), (Kill(), last)):
        with suppress(KilledError):
            fit(setup, resumed, name, KILLED, [kill], start)
    fit(setup, resumed, name, KILLED, start=last)
    fit(setup, folder / name / "longer", name, KILLED, start=last, rate=4e-3, epochs=3)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
