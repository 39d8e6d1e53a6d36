"""What judges share that give every response a number of its own: the higher number is preferred."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from lightning_dadpo.data.rows import STRICT, Message, content_digest
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation.judges.base import Comparison, Judge, Preference
from lightning_dadpo.evaluation.judges.cache import KeptRow, keeping, kept_rows
from lightning_dadpo.models.loading import load_tokenizer, model_digest
from lightning_dadpo.models.numerics import default_device, default_tokens_per_batch, inference_precision
from lightning_dadpo.models.spec import PACKAGE, ModelSpec

__all__ = ["Answer", "JudgePrecision", "ScoringJudge", "check_ids", "positions"]

Answer = tuple[tuple[Message, ...], str]
"""A conversation, and one response to it."""

JudgePrecision = Literal["32-true", "bf16-true"]
"""A judge is not trained, so there are no float32 weights to keep beside 16-bit numbers."""


@dataclass(frozen=True, config=STRICT)
class KeptScore(KeptRow):
    """A score in the cache.

    Attributes:
        score: of the conversation and the response; None where the model cannot read them.
    """

    score: float | None


class ScoringJudge(Judge):
    """Scores each response to a conversation once, however often it is compared, and compares the numbers.

    The order of two responses therefore changes nothing. What the model cannot read, because it is longer than its
    positions or its template refuses it, is not cut: such a comparison is a tie, counted as unreadable.

    Args:
        model: the judging model.
        tie_margin: differences of scores up to this are ties, in the units of the score; at 0 only equal ones.
        tokens_per_batch: tokens of a forward pass; by default what suits this machine.
        precision: number format; by default what this machine is fast in.
        cache: folder that keeps every score, so that a killed run goes on there; None keeps nothing.

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
        cache: str | None = None,
    ) -> None:
        if not (math.isfinite(tie_margin) and tie_margin >= 0):
            raise ConfigError(f"judge.tie_margin {tie_margin}: expected a number >= 0")
        if tokens_per_batch is not None and tokens_per_batch < 1:
            raise ConfigError(f"judge.tokens_per_batch {tokens_per_batch}: expected at least 1")
        self.model, self.tie_margin, self.cache = model, tie_margin, cache
        self.device = default_device()
        self.tokens_per_batch = tokens_per_batch or default_tokens_per_batch(self.device)
        # inference_precision never names bf16-mixed
        self.precision = precision or ("32-true" if inference_precision(self.device) == "32-true" else "bf16-true")
        self.name = f"{self.kind.replace('_', ' ')} of {Path(model.path.removeprefix(PACKAGE)).name}"
        self._unreadable = 0

    @cached_property
    def tokenizer(self) -> Any:
        """The judging model's own."""
        return load_tokenizer(self.model)

    @cached_property
    def _digest(self) -> str:
        return model_digest(self.model)

    def identity(self) -> dict[str, Any]:
        """See `Judge.identity`."""
        return self.scored_by() | {"tie_margin": self.tie_margin}

    def scored_by(self) -> dict[str, Any]:
        """What decides a score; batches and number format decide its last digits."""
        return {
            "judge": self.kind,
            "model": self._digest,
            "backend": f"transformers {self.device.type} {self.precision}",
            "tokens_per_batch": self.tokens_per_batch,
        }

    def cost(self, comparisons: Sequence[Comparison]) -> str:
        """See `Judge.cost`: responses and tokens that the model has to read."""
        answers = _different(comparisons)
        known = kept_rows(self.cache, self.scored_by(), KeptScore)
        missing = [answer for answer in answers if _key(answer) not in known]
        kept = f" ({len(answers) - len(missing)} more are in {self.cache})" if len(missing) < len(answers) else ""
        return (
            f"{len(missing)} responses to read{kept}, {self.tokens(missing)} tokens, on this machine's "
            f"{self.device.type} in {self.precision}; nothing is paid for"
        )

    def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        """See `Judge.prefer`."""
        self._unreadable = 0
        scores = self.score(_different(comparisons))
        unreadable = [
            comparison
            for comparison in comparisons
            if None in (scores[_sides(comparison)[0]], scores[_sides(comparison)[1]])
        ]
        self._unreadable = len(unreadable)
        if unreadable:
            print(
                f"{self.name}: cannot read {len(unreadable)} of {len(comparisons)} comparisons (too long for its "
                f"positions, or refused by its chat template), among them {unreadable[0].comparison_id!r}; they count "
                "as ties",
                flush=True,
            )
        return [self._preference(*(scores[side] for side in _sides(comparison))) for comparison in comparisons]

    def counts(self) -> dict[str, int]:
        """`unreadable`: comparisons of the last call of which a response or the conversation could not be read."""
        return {"unreadable": self._unreadable}

    def score(self, answers: Sequence[Answer]) -> dict[Answer, float | None]:
        """The scores of answers, each given once; None for one that the model cannot read.

        What the cache does not hold is read window by window, and kept there.

        Raises:
            DataError: a score is not finite.
            ConfigError, ArtifactError: the model cannot be loaded or used, or the cache cannot be.
        """
        identity = self.scored_by()
        found = self._kept(answers)
        if len(found) == len(answers):
            return found
        with keeping(self.cache, identity) as keep:
            found = self._kept(answers)  # another process may have read some meanwhile
            for window in self._windows([answer for answer in answers if answer not in found]):
                for answer, score in zip(window, self.read(window), strict=True):
                    if score is not None and not math.isfinite(score):
                        raise DataError(f"judge {self.name!r}: scores the response {answer[1][:40]!r} with {score}")
                    keep(KeptScore(_key(answer), score))
                    found[answer] = score
        return found

    def _kept(self, answers: Sequence[Answer]) -> dict[Answer, float | None]:
        known = kept_rows(self.cache, self.scored_by(), KeptScore)
        return {answer: known[key].score for answer in answers if (key := _key(answer)) in known}

    @abstractmethod
    def tokens(self, answers: Sequence[Answer]) -> int:
        """How many tokens the model reads to score them."""

    @abstractmethod
    def read(self, answers: Sequence[Answer]) -> list[float | None]:
        """A number for each answer, the higher the better; None for one that the model cannot read.

        Raises:
            ConfigError, DataError: the model cannot be loaded or used.
        """

    def _windows(self, answers: Sequence[Answer]) -> Iterator[list[Answer]]:
        """Answers in stretches of about a batch, like lengths together, the responses to one conversation too."""
        groups: dict[tuple[Message, ...], list[Answer]] = {}
        for answer in answers:
            groups.setdefault(answer[0], []).append(answer)
        window: list[Answer] = []
        spent = 0
        for tokens, group in sorted(((self.tokens(group), group) for group in groups.values()), key=lambda one: one[0]):
            window += group
            spent += tokens
            if spent >= self.tokens_per_batch:
                yield window
                window, spent = [], 0
        if window:
            yield window

    def _preference(self, first: float | None, second: float | None) -> Preference:
        if first is None or second is None or abs(first - second) <= self.tie_margin:
            return "tie"
        return "first" if first > second else "second"


def _key(answer: Answer) -> str:
    return content_digest([asdict(message) for message in answer[0]], answer[1])


def _sides(comparison: Comparison) -> tuple[Answer, Answer]:
    conversation = tuple(comparison.messages)
    return (conversation, comparison.first), (conversation, comparison.second)


def _different(comparisons: Sequence[Comparison]) -> list[Answer]:
    """Every (conversation, response) once, in the order of first use."""
    return list(dict.fromkeys(side for comparison in comparisons for side in _sides(comparison)))


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
    return float(getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf)
