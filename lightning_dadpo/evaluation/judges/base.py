"""The seam behind which a judge sits: two responses to one conversation go in, a preference comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_dadpo.data.rows import Message

__all__ = ["Comparison", "Judge", "Preference"]

Preference = Literal["first", "second", "tie"]


@dataclass(frozen=True)
class Comparison:
    """Two responses to one conversation, in the order in which the judge sees them.

    Attributes:
        comparison_id: unique within one call of `Judge.prefer`.
        messages: the conversation; its last turn is the user's.
        first: one response. second: the other.
    """

    comparison_id: str
    messages: list[Message]
    first: str
    second: str


class Judge(ABC):
    """Says which of two responses is better.

    A judge's constructor is its config: a YAML builds it by `class_path` and `init_args`, and it loads nothing before
    it is asked.
    """

    name: str
    """Short, for tables."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """The plain values that decide its verdicts; artefacts and caches are keyed by them, so no key is in them."""

    @abstractmethod
    def cost(self, comparisons: Sequence[Comparison]) -> str:
        """One sentence, said before it starts: how many calls or tokens, and what they cost where that is known.

        Raises:
            ConfigError: that is more than the judge was allowed.
        """

    @abstractmethod
    def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        """One preference for each comparison, in their order.

        Raises:
            ConfigError, DataError: the judge cannot be asked, or cannot read a comparison; in one line.
        """

    def counts(self) -> dict[str, int]:
        """What the last call of `prefer` counted, also where it failed; artefacts keep it.

        `unreadable` are comparisons that it could not read and calls ties; whoever asks it refuses a judge of whom most
        are. All other counts say what was asked for, such as calls and tokens.
        """
        return {}
