"""The DataModules: preference pairs, and responses for supervised fine-tuning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.batching import collate_pairs, collate_responses, pair_tokens, response_tokens
from lightning_dadpo.data.importing import PreferenceSource, import_preferences
from lightning_dadpo.data.pairing import read_pairs, says_nothing
from lightning_dadpo.data.plan import MicroBatch
from lightning_dadpo.data.rows import PairRow, ResponseRow, read_rows
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.models.loading import load_tokenizer
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.training.loader import PlannedLoader, evaluation_loader

__all__ = ["PairSource", "ResponseSource", "PreferenceData", "SupervisedData"]


@dataclass(frozen=True)
class PairSource:
    """Where pairs come from: a pairs folder of `dadpo pair`, or preference data in TRL's format.

    Attributes:
        folder: a pairs artefact.
        split: which of its rows: train, validation or heldout.
        preferences: a file or a name for datasets.load_dataset, instead of `folder`.
        tokenizer: whose chat template renders `preferences`: the student's.
    """

    folder: str | None = None
    split: str = "train"
    preferences: PreferenceSource | None = None
    tokenizer: ModelSpec | None = None

    def __post_init__(self) -> None:
        if (self.folder is None) == (self.preferences is None):
            raise ConfigError(
                f"pairs: give `folder` or `preferences`, one of the two (folder: {self.folder}, "
                f"preferences: {self.preferences})"
            )
        if self.preferences is not None and self.tokenizer is None:
            raise ConfigError("pairs: `preferences` needs `tokenizer: {path: ...}`, the student's")

    def read(self) -> list[PairRow]:
        """The pairs, in the order of their file."""
        if self.folder is not None:
            return read_pairs(self.folder, self.split)
        assert self.preferences is not None
        assert self.tokenizer is not None
        imported = import_preferences(self.preferences, load_tokenizer(self.tokenizer), self.split)
        if imported.dropped:
            print(f"{self.preferences.path}: {len(imported.pairs)} pairs; dropped {imported.dropped}")
        return imported.pairs


@dataclass(frozen=True)
class ResponseSource:
    """Responses to learn from.

    Attributes:
        folder: a responses artefact of `dadpo sample`.
        split: which of its rows.
        keep_cut: also learn from responses that the length cap cut; they are dropped and counted otherwise.
    """

    folder: str
    split: str = "train"
    keep_cut: bool = False

    def read(self) -> list[ResponseRow]:
        """The responses that say something and ended by themselves; the others are counted."""
        read_manifest(self.folder, "responses")
        rows = [row for row in read_rows(Path(self.folder) / "rows.jsonl", ResponseRow) if row.split == self.split]
        speaking = [row for row in rows if not says_nothing(row)]
        kept = [row for row in speaking if self.keep_cut or row.finish_reason == "stop"]
        empty, cut = len(rows) - len(speaking), len(speaking) - len(kept)
        print(f"{self.folder}: {len(kept)} responses of split {self.split}; dropped {empty} empty and {cut} cut ones")
        return kept


class _PlannedData(L.LightningDataModule, ABC):
    """Plans, loaders and checks that both kinds of data share."""

    def __init__(self, sources: dict[str, Any], rows_per_step: int, rows_per_batch: int, seed: int) -> None:
        super().__init__()
        self.sources = sources
        self.rows_per_step, self.rows_per_batch, self.seed = rows_per_step, rows_per_batch, seed
        self.rows: dict[str, list[Any]] = {}
        self._train_loader: PlannedLoader | None = None
        self._interrupted: dict[str, Any] = {}

    @abstractmethod
    def _collate(self, rows: list[Any], part: MicroBatch, step: list[Any]) -> Any: ...

    @abstractmethod
    def _lengths(self, rows: Sequence[Any]) -> list[int]: ...

    def setup(self, stage: str) -> None:
        """Read what the stage needs; once."""
        for name in {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, ("test",)):
            source = self.sources[name]
            if source is not None and name not in self.rows:
                self.rows[name] = source.read()
                if not self.rows[name]:
                    raise DataError(f"data.{name}: no rows of split {source.split!r} are left to use")

    def _world(self) -> tuple[int, int]:
        assert self.trainer is not None
        return self.trainer.world_size, self.trainer.global_rank

    def train_dataloader(self) -> PlannedLoader:
        """One micro-batch a call; `accumulate_grad_batches` of them make a step."""
        if "train" not in self.rows:
            raise ConfigError("data.train: nothing to train on; give it a folder")
        assert self.trainer is not None
        rows, (world_size, rank) = self.rows["train"], self._world()
        self._train_loader = PlannedLoader(
            rows,
            self._lengths(rows),
            self._collate,
            rows_per_step=self.rows_per_step,
            micro_batches=self.trainer.accumulate_grad_batches,
            world_size=world_size,
            rank=rank,
            seed=self.seed,
        )
        if self._interrupted:
            self._train_loader.load_state_dict(self._interrupted)
            self._interrupted = {}
        return self._train_loader

    def state_dict(self) -> dict[str, Any]:
        """How far the training loader has come.

        Kept here because Lightning restores a loader's own state only where nobody has asked for the number of
        steps before, and our schedule does: a resumed epoch would begin again with its first rows (trap D4).
        """
        return self._train_loader.state_dict() if self._train_loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remembered until the training loader is made; a plan that does not fit is refused there."""
        self._interrupted = state_dict

    def _evaluation_loader(self, name: str) -> DataLoader[Any] | list[Any]:
        if name not in self.rows:
            return []
        rows = self.rows[name]
        return evaluation_loader(rows, self._lengths(rows), self._collate, self.rows_per_batch, *self._world())

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The validation rows, each once."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The test rows, each once."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The test rows: `predict` writes one line for each."""
        return self._evaluation_loader("test")


class PreferenceData(_PlannedData):
    """Preference pairs.

    Args:
        train: pairs to train on.
        validation: pairs to validate on.
        test: pairs for `test` and `predict`.
        pairs_per_step: pairs of one optimizer step, over all ranks and micro-batches. The step is cut into
            `accumulate_grad_batches` x devices micro-batches; that changes memory, not the loss.
        evaluation_pairs: pairs of a batch where nothing is trained.
        seed: decides the order of pairs, with the epoch.
    """

    def __init__(
        self,
        train: PairSource | None = None,
        validation: PairSource | None = None,
        test: PairSource | None = None,
        pairs_per_step: int = 16,
        evaluation_pairs: int = 8,
        seed: int = 0,
    ) -> None:
        sources = {"train": train, "validation": validation, "test": test}
        super().__init__(sources, pairs_per_step, evaluation_pairs, seed)

    def _collate(self, rows: list[PairRow], part: MicroBatch, step: list[PairRow]) -> Any:
        return collate_pairs(rows, part.weights, pairs_in_step=len(step))

    def _lengths(self, rows: Sequence[PairRow]) -> list[int]:
        return [pair_tokens(row) for row in rows]


class SupervisedData(_PlannedData):
    """Prompts with responses to imitate.

    Args:
        train: responses to train on.
        validation: responses to validate on.
        test: responses for `test`.
        responses_per_step: responses of one optimizer step, over all ranks and micro-batches.
        evaluation_responses: responses of a batch where nothing is trained.
        seed: decides the order of responses, with the epoch.
    """

    def __init__(
        self,
        train: ResponseSource | None = None,
        validation: ResponseSource | None = None,
        test: ResponseSource | None = None,
        responses_per_step: int = 16,
        evaluation_responses: int = 16,
        seed: int = 0,
    ) -> None:
        sources = {"train": train, "validation": validation, "test": test}
        super().__init__(sources, responses_per_step, evaluation_responses, seed)

    def _collate(self, rows: list[ResponseRow], part: MicroBatch, step: list[ResponseRow]) -> Any:
        return collate_responses(rows, part.weights, tokens_in_step=sum(len(row.token_ids) for row in step))

    def _lengths(self, rows: Sequence[ResponseRow]) -> list[int]:
        return [response_tokens(row) for row in rows]
