"""What judges share that give every response a number of its own: the higher number is preferred."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning_dadpo.data.rows import Message
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation.judges.base import Comparison, Judge, Preference
from lightning_dadpo.models.loading import load_tokenizer, model_digest
from lightning_dadpo.models.numerics import default_device, default_tokens_per_batch, inference_precision
from lightning_dadpo.models.spec import PACKAGE, ModelSpec

__all__ = ["Answer", "JudgePrecision", "ScoringJudge", "check_ids", "positions"]

Answer = tuple[tuple[Message, ...], str]
"""A conversation, and one response to it."""

JudgePrecision = Literal["32-true", "bf16-true"]
"""A judge is not trained, so there are no float32 weights to keep beside 16-bit numbers."""


class ScoringJudge(Judge):
    """Scores each response to a conversation once, however often it is compared, and compares the numbers.

    The order of two responses therefore changes nothing. What the model cannot read, because it is longer than its
    positions or its template refuses it, is not cut: such a comparison is a tie, counted as unreadable, and a judge
    that cannot read most comparisons is refused.

    Args:
        model: the judging model.
        tie_margin: differences of scores up to this are ties, in the units of the score; at 0 only equal ones.
        tokens_per_batch: tokens of a forward pass; by default what suits this machine.
        precision: number format; by default what this machine is fast in.

    Raises:
        ConfigError: an argument is out of range.
    """

    kind: str
    """The judge's name in its identity."""

    def __init__(
        self,
        model: ModelSpec,
        tie_margin: float = 0.0,
        tokens_per_batch: int | None = None,
        precision: JudgePrecision | None = None,
    ) -> None:
        if not (math.isfinite(tie_margin) and tie_margin >= 0):
            raise ConfigError(f"judge.tie_margin {tie_margin}: expected a number >= 0")
        if tokens_per_batch is not None and tokens_per_batch < 1:
            raise ConfigError(f"judge.tokens_per_batch {tokens_per_batch}: expected at least 1")
        self.model, self.tie_margin = model, tie_margin
        self.device = default_device()
        self.tokens_per_batch = tokens_per_batch or default_tokens_per_batch(self.device)
        # inference_precision never names bf16-mixed
        self.precision = precision or ("32-true" if inference_precision(self.device) == "32-true" else "bf16-true")
        self.name = f"{self.kind} of {Path(model.path.removeprefix(PACKAGE)).name}"
        self._unreadable = 0

    @cached_property
    def tokenizer(self) -> Any:
        """The judging model's own."""
        return load_tokenizer(self.model)

    @cached_property
    def _digest(self) -> str:
        return model_digest(self.model)

    def identity(self) -> dict[str, Any]:
        """See `Judge.identity`; batches and number format decide the last digits."""
        return {
            "judge": self.kind,
            "model": self._digest,
            "tie_margin": self.tie_margin,
            "backend": f"transformers {self.device.type} {self.precision}",
            "tokens_per_batch": self.tokens_per_batch,
        }

    def cost(self, comparisons: Sequence[Comparison]) -> str:
        """See `Judge.cost`: responses and tokens that the model has to read."""
        answers = _different(comparisons)
        return (
            f"{self.name} reads {len(answers)} responses, {self.tokens(answers)} tokens, on this machine's "
            f"{self.device.type} in {self.precision}; no call is paid for"
        )

    def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        """See `Judge.prefer`."""
        answers = _different(comparisons)
        scores = dict(zip(answers, self.scores(answers), strict=True))
        self._unreadable = 0
        return [self._preference(scores, comparison, len(comparisons)) for comparison in comparisons]

    def counts(self) -> dict[str, int]:
        """`unreadable`: comparisons of the last call of which one response or the conversation could not be read."""
        return {"unreadable": self._unreadable}

    @abstractmethod
    def tokens(self, answers: Sequence[Answer]) -> int:
        """How many tokens the model reads to score them."""

    @abstractmethod
    def scores(self, answers: Sequence[Answer]) -> list[float | None]:
        """A number for each answer, the higher the better; None for one that the model cannot read.

        Args:
            answers: each given once.

        Raises:
            ConfigError, DataError: the model cannot be loaded or used.
        """

    def _preference(self, scores: dict[Answer, float | None], comparison: Comparison, compared: int) -> Preference:
        conversation = tuple(comparison.messages)
        first, second = scores[conversation, comparison.first], scores[conversation, comparison.second]
        if first is None or second is None:
            self._unreadable += 1
            if 2 * self._unreadable > compared:
                raise DataError(
                    f"judge {self.name!r}: cannot read more than half of {compared} comparisons (too long for its "
                    f"positions, or refused by its chat template), among them {comparison.comparison_id!r}"
                )
            return "tie"
        if not (math.isfinite(first) and math.isfinite(second)):
            raise DataError(
                f"judge {self.name!r}: comparison {comparison.comparison_id!r}: scores {first} and {second}, expected "
                "finite numbers"
            )
        if abs(first - second) <= self.tie_margin:
            return "tie"
        return "first" if first > second else "second"


def _different(comparisons: Sequence[Comparison]) -> list[Answer]:
    """Every (conversation, response) once, in the order of first use."""
    return list(
        dict.fromkeys(
            (tuple(comparison.messages), response)
            for comparison in comparisons
            for response in (comparison.first, comparison.second)
        )
    )


def check_ids(spec: ModelSpec, model: Any, sequences: Iterable[Sequence[int]]) -> None:
    """Refuse a tokenizer that makes ids for which its model has no embedding.

    Raises:
        DataError: naming the model, the id and the model's number of ids.
    """
    size = model.get_input_embeddings().num_embeddings
    if (largest := max((max(ids) for ids in sequences), default=-1)) >= size:
        raise DataError(f"model {spec.path!r}: its tokenizer makes the id {largest}, but it knows ids below {size}")


def positions(model: Any) -> float:
    """How many tokens a model can read; infinitely many where its config names no end."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
