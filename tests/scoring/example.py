"""Pairs, artefacts and runs that tests of scoring and of training share."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import lightning as L
import pytest
import torch

from lightning_dadpo.data import row_store, rows
from lightning_dadpo.data.artifacts import draft
from lightning_dadpo.data.rows import Message, PairRow, ResponseRow, RowWriter, ScoreRow, content_digest
from lightning_dadpo.losses import DaDPO
from lightning_dadpo.models.spec import ModelSpec, Precision
from lightning_dadpo.scoring.stage import score
from lightning_dadpo.training.datamodule import PreferenceData
from lightning_dadpo.training.preference import AnchorSource, PreferenceModule
from lightning_dadpo.training.sources import PairSource
from tests.tiny import END_OF_TURN, VOCABULARY, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
SYSTEM_PROMPT = [77, 88, 99, 111]
"""Ids that longer prompts begin with in common, so that batches have a stem."""


def token_ids(count: int, generator: torch.Generator) -> list[int]:
    """Bytes, then the end of the turn."""
    return [*torch.randint(3, VOCABULARY, (count - 1,), generator=generator).tolist(), END_OF_TURN]


class LiveRows:
    """Counts the rows that were parsed and that somebody still holds, and the most there ever were at once."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        real = rows.parse_row

        def counting(*arguments: Any) -> Any:
            row = real(*arguments)
            self.now += 1
            self.most = max(self.most, self.now)
            weakref.finalize(row, self._gone).atexit = False
            return row

        for module in (rows, row_store):
            patch.setattr(module, "parse_row", counting)

    def _gone(self) -> None:
        self.now -= 1


@cache
def _tokenizer() -> Any:
    return tiny_tokenizer(Path(mkdtemp()))


def make_pair(number: int, split: str = "train", seed: int = 0) -> PairRow:
    """A pair of its own lengths, which nothing but its number, split and the seed decide."""
    generator = torch.Generator().manual_seed(1000 * seed + number + (500 if split != "train" else 0))
    prompt, chosen, rejected = (token_ids(int(n), generator) for n in torch.randint(2, 14, (3,), generator=generator))
    if len(prompt) > 2 * len(SYSTEM_PROMPT):
        prompt[: len(SYSTEM_PROMPT)] = SYSTEM_PROMPT
    return PairRow(
        pair_id=content_digest(prompt, chosen, rejected),
        prompt_id=f"{split}-{number}",
        split=split,
        messages=[Message("user", f"question {number}")],
        prompt_token_ids=prompt,
        chosen_token_ids=chosen,
        chosen_text=_tokenizer().decode(chosen, skip_special_tokens=True),
        chosen_finish_reason="stop",
        rejected_token_ids=rejected,
        rejected_text=_tokenizer().decode(rejected, skip_special_tokens=True),
        rejected_finish_reason="stop",
    )


def make_pairs(count: int, split: str = "train", seed: int = 0) -> list[PairRow]:
    """So many pairs."""
    return [make_pair(number, split, seed) for number in range(count)]


def write_artifact(folder: Path, kind: str, rows: Iterable[Any], made_from: Mapping[str, Any] | None = None) -> Path:
    """A finished artefact that holds these rows."""
    with draft(folder, kind, made_from or {}) as work, RowWriter(work.path / "rows.jsonl") as writer:
        writer.write(*rows)
    return folder


def make_response(number: int, split: str = "train", finish: str = "stop", length: int | None = None) -> ResponseRow:
    """A response to prompt `number`."""
    generator = torch.Generator().manual_seed(7000 + number + (500 if split != "train" else 0))
    prompt, answer = (token_ids(int(n), generator) for n in torch.randint(2, 14, (2,), generator=generator))
    if length is not None:
        answer = token_ids(length, generator)
    text = _tokenizer().decode(answer, skip_special_tokens=True)
    return ResponseRow(f"{split}-{number}", split, [Message("user", "q")], prompt, answer, text, finish, -1.0)  # type: ignore[arg-type]


def scored(
    model: Path, pairs: Path, out: Path, anchor: str = "teacher", tokens: int = 70, precision: Precision = "32-true"
) -> Path:
    """A scores artefact made by the stage itself."""
    return score(
        ModelSpec(str(model)), str(pairs), str(out), anchor=anchor, tokens_per_batch=tokens, precision=precision
    )


def score_row(pair: PairRow, chosen: float, rejected: float) -> ScoreRow:
    """Scores made up by a test."""
    return ScoreRow(pair.pair_id, chosen, len(pair.chosen_token_ids), rejected, len(pair.rejected_token_ids))


def trainer(root: Path, callbacks: Sequence[L.Callback] = (), **settings: Any) -> L.Trainer:
    """A Trainer on the CPU that writes below `root` alone."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": any("Checkpoint" in type(callback).__name__ for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "max_epochs": 1,
        "precision": "32-true",
    }
    return L.Trainer(default_root_dir=root, callbacks=list(callbacks), **(defaults | settings))


@dataclass(frozen=True)
class Setup:
    """A student with its teacher, pairs of two splits, and what both models give to them."""

    student: Path
    teacher: Path
    pairs: Path
    reference_scores: Path
    teacher_scores: Path

    def module(self, live: bool = False, **changes: Any) -> PreferenceModule:
        """A daDPO module over cached or live anchors."""
        anchors = {
            "reference": AnchorSource(model=ModelSpec(str(self.student)))
            if live
            else AnchorSource(scores=str(self.reference_scores)),
            "teacher": AnchorSource(model=ModelSpec(str(self.teacher)))
            if live
            else AnchorSource(scores=str(self.teacher_scores)),
        }
        settings: dict[str, Any] = {
            "student": ModelSpec(str(self.student)),
            "loss": DaDPO(beta_reference=0.1, beta_teacher=0.05),
            "anchors": anchors,
            "optimizer": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
        }
        return PreferenceModule(**(settings | changes))

    def data(self, **changes: Any) -> PreferenceData:
        """Its pairs, six to a step."""
        splits = {name: PairSource(str(self.pairs), name) for name in ("train", "validation")}
        settings: dict[str, Any] = {"pairs_per_step": 6} | splits
        return PreferenceData(**(settings | changes))


def make_setup(folder: Path, dropout: float = 0.0, train: int = 16) -> Setup:
    """A random student of two layers, a random teacher of four; everything in float32."""
    student = tiny_model(folder / "student", layers=2, seed=1, dropout=dropout)
    teacher = tiny_model(folder / "teacher", layers=4, seed=2)
    pairs = write_artifact(folder / "pairs", "pairs", make_pairs(train) + make_pairs(7, "validation"))
    reference = scored(student, pairs, folder / "reference", anchor="reference")
    return Setup(student, teacher, pairs, reference, scored(teacher, pairs, folder / "scores"))
