"""A reward model as a judge."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lightning_dadpo.data.chat import UnplacedTextError, render_conversation
from lightning_dadpo.data.plan import budgeted_batches
from lightning_dadpo.data.rows import Message
from lightning_dadpo.evaluation.judges.scoring import Answer, ScoringJudge, check_ids, positions
from lightning_dadpo.models.reward_model import batches_of, load_reward_model, rewards

__all__ = ["RewardModelJudge"]


class RewardModelJudge(ScoringJudge):
    """Prefers the response with the higher reward.

    The model is one that `AutoModelForSequenceClassification` loads, with one output and weights as safetensors. It
    reads the conversation with the response as its last turn, as its own chat template prints them; the score is its
    one logit, in the units that it was trained in. The arguments are `ScoringJudge`'s.
    """

    kind = "reward_model"

    @cached_property
    def _loaded(self) -> Any:
        return load_reward_model(self.model, self.precision, self.device)

    def tokens(self, answers: Sequence[Answer]) -> int:
        """See `ScoringJudge.tokens`: the conversation once for each response."""
        return sum(len(ids) for ids in self._ids(answers) if ids)

    def read(self, answers: Sequence[Answer]) -> list[float | None]:
        """See `ScoringJudge.read`: the logit."""
        limit = positions(self._loaded)
        texts = [ids if ids and len(ids) <= limit else None for ids in self._ids(answers)]
        readable = [(index, ids) for index, ids in enumerate(texts) if ids is not None]
        check_ids(self.model, self._loaded, [ids for _, ids in readable])
        found: list[float | None] = [None] * len(answers)
        batches = budgeted_batches([len(ids) for _, ids in readable], self.tokens_per_batch)
        for batch in batches_of(self._loaded, batches):
            values = rewards(self._loaded, [readable[row][1] for row in batch]).tolist()
            for row, value in zip(batch, values, strict=True):
                found[readable[row][0]] = value
        return found

    def _ids(self, answers: Sequence[Answer]) -> list[list[int] | None]:
        """Each answer behind its conversation; None where the template has no place for it."""
        found: list[list[int] | None] = []
        for conversation, response in answers:
            try:
                found.append(render_conversation(self.tokenizer, [*conversation, Message("assistant", response)]))
            except UnplacedTextError:
                found.append(None)
        return found
