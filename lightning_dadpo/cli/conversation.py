"""What was said in a chat: turns, each with the answers of those who were asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import write_atomically
from lightning_dadpo.data.rows import Message
from lightning_dadpo.errors import DataError
from lightning_dadpo.sampling.base import SamplerSettings
from lightning_dadpo.sampling.streaming import StreamedResponse

__all__ = ["Answer", "Turn", "Conversation"]


@dataclass
class Answer:
    """What one model said to one question.

    Attributes:
        messages: what it was shown: the turns that it answered, and the question.
        response: its answer.
        log_probs: by reader, log pi(y|x) of this answer in nats, where somebody asked for it.
    """

    messages: list[Message]
    response: StreamedResponse
    log_probs: dict[str, float] = field(default_factory=dict)

    @property
    def ending(self) -> str:
        """How it ended: stop, length, or interrupted where a person did it."""
        return self.response.finish_reason or "interrupted"


@dataclass(frozen=True)
class Turn:
    """A question and its answers, by model."""

    question: str
    settings: SamplerSettings
    answers: dict[str, Answer]


class Conversation:
    """The turns so far. A model's own conversation is made of the turns that it answered, with its own answers."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self._written: set[Path] = set()

    def messages(self, model: str, question: str) -> list[Message]:
        """What a model is shown when it is asked next."""
        said: list[Message] = []
        for turn in self.turns:
            if model in turn.answers:
                said += [Message("user", turn.question), Message("assistant", turn.answers[model].response.text)]
        return [*said, Message("user", question)]

    def rows(self, paths: dict[str, str]) -> Iterator[dict[str, Any]]:
        """A row a turn and model, in plain values.

        Args:
            paths: where each model comes from.
        """
        for number, turn in enumerate(self.turns, 1):
            for model, answer in turn.answers.items():
                response = answer.response
                yield {
                    "turn": number,
                    "model": model,
                    "path": paths[model],
                    "messages": [asdict(message) for message in answer.messages],
                    "text": response.text,
                    "finish_reason": answer.ending,
                    "prompt_token_ids": response.prompt_token_ids,
                    "token_ids": response.token_ids,
                    "log_prob": response.log_prob,
                    "log_prob_by": answer.log_probs,
                    "sampler": asdict(turn.settings),
                }

    def save(self, path: Path, paths: dict[str, str]) -> int:
        """Write the rows as JSONL; a file that this chat has not written is left alone.

        Returns:
            the number of rows.

        Raises:
            DataError: nothing was said yet, the file is there already, or its folder is not.
        """
        rows = list(self.rows(paths))
        if not rows:
            raise DataError(f"/save {path}: nothing was said yet")
        if path.exists() and path.resolve() not in self._written:
            raise DataError(f"/save {path}: is there already; nothing was overwritten")
        if not path.parent.is_dir():
            raise DataError(f"/save {path}: no folder {path.parent}")
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self._written.add(path.resolve())
        return len(rows)
