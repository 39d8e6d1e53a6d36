"""The DataModules: preference pairs, and responses for supervised fine-tuning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.batching import collate_pairs, collate_responses, pair_tokens, response_tokens
from lightning_dadpo.data.plan import MicroBatch, Plan, plan_evaluation
from lightning_dadpo.data.row_store import column
from lightning_dadpo.data.rows import PairRow, ResponseRow, content_digest
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.models.numerics import default_tokens_per_batch
from lightning_dadpo.scoring.routes import check_own_words
from lightning_dadpo.training.loader import PlannedLoader, evaluation_loader
from lightning_dadpo.training.sources import PairSource, ResponseSource, answer_tokens

__all__ = ["PreferenceData", "SupervisedData"]


class _PlannedData(L.LightningDataModule, ABC):
    """Plans, loaders and checks that both kinds of data share."""

    gives: ClassVar[Literal["pairs", "responses"]]

    def __init__(
        self, sources: dict[str, Any], rows_per_step: int, tokens_per_batch: int | None, seed: int, workers: int
    ) -> None:
        super().__init__()
        if workers < 0:
            raise ConfigError(f"data.workers {workers}: expected 0 or more")
        if tokens_per_batch is not None and tokens_per_batch < 1:
            raise ConfigError(f"data.tokens_per_batch {tokens_per_batch}: expected at least 1")
        self.sources = sources
        self.rows_per_step, self.tokens_per_batch, self.seed = rows_per_step, tokens_per_batch, seed
        self.workers = workers
        self.rows: dict[str, Sequence[Any]] = {}
        self._chosen: int | None = None
        self._train_loader: PlannedLoader | None = None
        self._interrupted: dict[str, Any] = {}

    @abstractmethod
    def _collate(self, rows: list[Any], part: MicroBatch) -> Any: ...

    @abstractmethod
    def _costs(self, rows: Sequence[Any]) -> Sequence[int]:
        """Tokens that each row costs."""

    @abstractmethod
    def _counts(self, rows: Sequence[Any]) -> Sequence[int]:
        """What each row adds to the divisor of its step's loss."""

    def setup(self, stage: str) -> None:
        """Read what the stage needs, once, and cut training steps into micro-batches.

        Raises:
            ConfigError: the module trains on something else.
            DataError: there are no rows, or their ids are another tokenizer's than the student's.
        """
        module = getattr(self.trainer, "lightning_module", None)
        wanted = getattr(module, "trains_on", self.gives)
        if wanted != self.gives:
            raise ConfigError(
                f"data {type(self).__name__} gives {self.gives}, and model {type(module).__name__} trains on {wanted}"
            )
        for name in {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, ("test",)):
            source = self.sources[name]
            if source is not None and name not in self.rows:
                self.rows[name] = source.read()
                if not self.rows[name]:
                    raise DataError(f"data.{name}: no rows of split {source.split!r} are left to use")
                if (student := getattr(module, "student_spec", None)) is not None:
                    check_own_words(student, self.rows[name], f"data.{name}")
        if stage == "fit" and "train" in self.rows:
            self._accumulate()

    def teardown(self, stage: str) -> None:
        """Leave the trainer as it was found: the next training may need another number of micro-batches."""
        if stage == "fit" and self._chosen is not None:
            self._trainer.accumulate_grad_batches = 1
            self._chosen = None

    @property
    def _trainer(self) -> L.Trainer:
        assert self.trainer is not None
        return self.trainer

    @property
    def _budget(self) -> int:
        """Tokens of a micro-batch on one rank."""
        return self.tokens_per_batch or default_tokens_per_batch(self._trainer.strategy.root_device)

    def _plan(self) -> Plan:
        rows = self.rows["train"]
        costs, counts = (np.array(numbers, dtype=np.int64) for numbers in (self._costs(rows), self._counts(rows)))
        return Plan(costs, counts, self.rows_per_step, self.seed, self._trainer.world_size)

    def _accumulate(self) -> None:
        """Set `trainer.accumulate_grad_batches` to what the budget asks for, unless a person did.

        Raises:
            ConfigError: a person set both.
        """
        trainer, plan = self._trainer, self._plan()
        if trainer.accumulate_grad_batches not in (1, self._chosen):
            if self.tokens_per_batch is not None:
                raise ConfigError(
                    f"trainer.accumulate_grad_batches {trainer.accumulate_grad_batches} and data.tokens_per_batch "
                    f"{self.tokens_per_batch}: give one of the two, each decides the number of micro-batches"
                )
            return
        steps = trainer.max_steps if trainer.max_steps != -1 else None
        epochs = trainer.max_epochs
        if epochs is None or epochs == -1:  # ended by steps; by nothing is refused where the schedule is made
            epochs = -(-(steps or 1) // plan.steps_per_epoch)
        self._chosen = trainer.accumulate_grad_batches = plan.micro_batches(self._budget, epochs, steps)

    def describe_batches(self) -> str:
        """What a step is cut into, for the log."""
        trainer = self._trainer
        most = f"at most {self._budget} tokens" if self._chosen is not None else "like cost"
        return (
            f"{trainer.accumulate_grad_batches} micro-batches a step of {most} on each of {trainer.world_size} devices"
        )

    def train_dataloader(self) -> PlannedLoader:
        """One micro-batch a call; `accumulate_grad_batches` of them make a step."""
        if "train" not in self.rows:
            raise ConfigError("data.train: nothing to train on; give it a folder")
        trainer = self._trainer
        self._train_loader = PlannedLoader(
            self.rows["train"],
            self._plan(),
            self._collate,
            trainer.accumulate_grad_batches,
            trainer.global_rank,
            self._contents(),
            self.workers,
        )
        if self._interrupted:
            self._train_loader.load_state_dict(self._interrupted)
            self._interrupted = {}
        return self._train_loader

    def _contents(self) -> str:
        """Digest of the training rows, taken from their artefact's manifest where they have one."""
        folder, rows = self.sources["train"].folder, self.rows["train"]
        if folder is not None:
            return f"{read_manifest(folder).files['rows.jsonl'][:16]} {self.sources['train'].split}"
        return content_digest([row.pair_id for row in rows])[:16]

    def state_dict(self) -> dict[str, Any]:
        """How far the training loader has come, and whether that is between two optimizer steps.

        Kept here because Lightning restores a loader's own state only where nobody has asked for the number of
        steps before, and our schedule does: a resumed epoch would begin again with its first rows (trap D4).
        """
        if self._train_loader is None:
            return {}
        return self._train_loader.state_dict() | {"in_step": self._trainer.fit_loop._should_accumulate()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Given to the training loader, now or when it is made; it refuses a plan that does not fit.

        Strategies that load checkpoints into sharded weights do so last of all, when the loader has been made.

        Raises:
            ConfigError: training would go on in the middle of a step, without the gradients of its first half.
        """
        if state_dict["in_step"] and self._trainer.state.fn == "fit":
            raise ConfigError(
                "cannot resume: the checkpoint was written in the middle of an optimizer step, whose gradients are not "
                "in it; expected one of LastCheckpoint (last.ckpt)"
            )
        if self._train_loader is not None:
            self._train_loader.load_state_dict(state_dict)
        else:
            self._interrupted = state_dict

    def _evaluation_loader(self, name: str) -> DataLoader[Any] | list[Any]:
        if name not in self.rows:
            return []
        rows, trainer = self.rows[name], self._trainer
        costs, counts = self._costs(rows), self._counts(rows)
        batches = plan_evaluation(costs, counts, self._budget, trainer.world_size, trainer.global_rank)
        return evaluation_loader(rows, batches, self._collate)

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
        pairs_per_step: pairs of one optimizer step, over all ranks and micro-batches. The step is cut into as few
            micro-batches as `tokens_per_batch` allows; that changes memory, not the loss.
        tokens_per_batch: tokens of a forward pass on one device, by default what suits it. Sets
            `trainer.accumulate_grad_batches`; give that one instead for a number of micro-batches of your own.
        seed: decides the order of pairs, with the epoch.
        workers: processes that read and collate ahead; reading is cheap, so none is the default.
    """

    gives = "pairs"

    def __init__(
        self,
        train: PairSource | None = None,
        validation: PairSource | None = None,
        test: PairSource | None = None,
        pairs_per_step: int = 16,
        tokens_per_batch: int | None = None,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        sources = {"train": train, "validation": validation, "test": test}
        super().__init__(sources, pairs_per_step, tokens_per_batch, seed, workers)

    def _contents(self) -> str:
        """See `_PlannedData`; other pairs left out are other rows."""
        left_out = sorted(self.sources["train"].left_out())
        return super()._contents() + (f" without {content_digest(left_out)}" if left_out else "")

    def _collate(self, rows: list[PairRow], part: MicroBatch) -> Any:
        return collate_pairs(rows, part.weights, pairs_in_step=part.in_step)

    def _costs(self, rows: Sequence[PairRow]) -> Sequence[int]:
        return column(rows, pair_tokens)

    def _counts(self, rows: Sequence[PairRow]) -> Sequence[int]:
        return [1] * len(rows)


class SupervisedData(_PlannedData):
    """Prompts with responses to imitate.

    Args:
        train: responses to train on.
        validation: responses to validate on.
        test: responses for `test`.
        responses_per_step: responses of one optimizer step, over all ranks and micro-batches.
        tokens_per_batch: tokens of a forward pass on one device, as in `PreferenceData`.
        seed: decides the order of responses, with the epoch.
        workers: as in `PreferenceData`.
    """

    gives = "responses"

    def __init__(
        self,
        train: ResponseSource | None = None,
        validation: ResponseSource | None = None,
        test: ResponseSource | None = None,
        responses_per_step: int = 16,
        tokens_per_batch: int | None = None,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        sources = {"train": train, "validation": validation, "test": test}
        super().__init__(sources, responses_per_step, tokens_per_batch, seed, workers)

    def _collate(self, rows: list[ResponseRow], part: MicroBatch) -> Any:
        return collate_responses(rows, part.weights, part.in_step, part.rows_in_step)

    def _costs(self, rows: Sequence[ResponseRow]) -> Sequence[int]:
        """A response that the student may draw in the place of the data's costs what it may come to."""
        own = getattr(getattr(self._trainer, "lightning_module", None), "longest_own_response", 0)
        costs, answers = column(rows, response_tokens), column(rows, answer_tokens)
        return [max(cost, cost - answer + own) for cost, answer in zip(costs, answers, strict=True)] if own else costs

    def _counts(self, rows: Sequence[ResponseRow]) -> Sequence[int]:
        return column(rows, answer_tokens)
