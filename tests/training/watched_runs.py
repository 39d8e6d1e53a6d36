"""Trainings of a tiny student that are watched: a home with models and answers, runs, and what they leave."""

from __future__ import annotations

import copy
import csv
import json
import random
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_dadpo.data.artifacts import draft
from lightning_dadpo.data.rows import Message, PairRow, ResponseRow, RowWriter
from lightning_dadpo.models.loading import load_tokenizer, model_digest
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling.base import SamplerSettings
from lightning_dadpo.training import watch
from lightning_dadpo.training.datamodule import SupervisedData
from lightning_dadpo.training.sources import ResponseSource
from lightning_dadpo.training.supervised import SupervisedModule
from lightning_dadpo.training.watch import WatchDistances
from tests.tiny import END_OF_TURN, VOCABULARY, tiny_model

__all__ = [
    "GREEDY", "QUIET", "Keeper", "answer", "curve", "fit", "ids", "in_float32", "make_home", "samples", "watcher",
    "write_responses",
]  # fmt: skip

QUIET = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*"),
    pytest.mark.filterwarnings("ignore:.*Experiment logs directory.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # jsonargparse, when Lightning's CLI parses
]

GREEDY = SamplerSettings(temperature=0, max_new_tokens=6, seed=5)


def make_home(home: Path) -> Path:
    """A teacher, a student that drops out, and what teacher and reference answered."""
    tiny_model(home / "teacher", layers=2, seed=1)
    tiny_model(home / "student", layers=2, seed=2, dropout=0.2)
    write_responses(home / "answers", home / "teacher", "teacher", range(12))
    write_responses(home / "references", home / "student", "reference", range(12))
    write_pairs(home / "pairs")
    return home


def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever machine this is."""
    monkeypatch.setattr(watch, "inference_precision", lambda device: "32-true")
    monkeypatch.setenv("WANDB_MODE", "offline")


def ids(seed: int, length: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def said(who: str, number: int) -> str:
    return f"{who} says {number} \u2028 <b>"


def answer(model: Path, who: str, number: int) -> list[int]:
    """The ids of that text, and some more, so that lengths differ."""
    own = load_tokenizer(ModelSpec(str(model))).encode(said(who, number))
    return [*own, *ids(100 + number, 9 - number // 2), END_OF_TURN]


def write_responses(folder: Path, model: Path, who: str, numbers: Iterable[int]) -> None:
    """Odd numbers are validation prompts, of very different lengths."""
    made_from = {
        "model": model_digest(ModelSpec(str(model))),
        "sampler": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 6},
    }
    with draft(folder, "responses", made_from) as work, RowWriter(work.path / "rows.jsonl") as writer:
        for number in numbers:
            row = ResponseRow(
                prompt_id=f"p{number}",
                split="validation" if number % 2 else "train",
                messages=[Message("user", f"question {number}")],
                prompt_token_ids=ids(number, 3 + number),
                token_ids=answer(model, who, number),
                text=said(who, number),
                finish_reason="stop",
                log_prob=-1.0,
            )
            writer.write(row, replace(row, token_ids=[7, END_OF_TURN], text="another answer", candidate=1))


def write_pairs(folder: Path) -> None:
    with draft(folder, "pairs", {}) as work, RowWriter(work.path / "rows.jsonl") as writer:
        for number in range(4):
            writer.write(
                PairRow(
                    f"d{number}", f"p{number}", "validation" if number % 2 else "train",
                    [Message("user", "question")], ids(number, 4),
                    ids(number + 50, 5), "", "stop", ids(number + 60, 4), "", "stop",
                )
            )  # fmt: skip


def watcher(home: Path, **changes: Any) -> WatchDistances:
    arguments: dict[str, Any] = {"prompts": 3, "sampler": GREEDY} | changes
    return WatchDistances(
        ModelSpec(str(home / "teacher")), str(home / "answers"), str(home / "references"), **arguments
    )


def fit(home: Path, root: Path, callbacks: list[L.Callback], steps: int = 5, **more: Any) -> L.Trainer:
    """Steps of 2 of 6 responses, validated every 2 steps."""
    checkpoint = more.pop("ckpt_path", None)
    arguments: dict[str, Any] = {
        "default_root_dir": root,
        "accelerator": "cpu",
        "precision": "32-true",
        "max_steps": steps,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "logger": CSVLogger(root, name="", version="curves"),
        "callbacks": callbacks,
    }
    if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        arguments["enable_checkpointing"] = False
    torch.manual_seed(0)
    module = SupervisedModule(ModelSpec(str(home / "student")), partial(torch.optim.AdamW, lr=3e-3))
    answers = str(home / "answers")
    data = SupervisedData(ResponseSource(answers), ResponseSource(answers, "validation"), responses_per_step=2)
    trainer = L.Trainer(**arguments | more)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False if checkpoint else None)
    return trainer


def curve(root: Path, name: str) -> dict[int, float]:
    """A column of metrics.csv, by the index of the last step."""
    with (root / "curves" / "metrics.csv").open() as file:
        cells = [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]
    assert len(dict(cells)) == len(cells)
    return dict(cells)


def samples(root: Path) -> list[dict[str, Any]]:
    with (root / "samples.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


class Keeper(L.Callback):
    """Keeps the student as it was whenever the watcher may measure, and what must not change."""

    def __init__(self) -> None:
        self.students: dict[int, Any] = {}
        self.states: list[Any] = []

    def keep(self, trainer: L.Trainer, module: Any) -> None:
        self.students[trainer.global_step] = copy.deepcopy(module.student).eval()
        modes = [part.training for part in module.modules()]
        self.states.append((torch.get_rng_state().tolist(), random.getstate(), torch.is_grad_enabled(), modes))

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.student.model.layers[0].mlp.eval()  # not all in one mode
        self.keep(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.keep(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.keep(trainer, pl_module)
