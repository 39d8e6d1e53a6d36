"""What can be said of a response without a model: did it end, how long is it, does it repeat itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_dadpo.data.rows import ResponseRow

__all__ = ["TextStatistics", "repetition", "text_statistics"]


@dataclass(frozen=True)
class TextStatistics:
    """Counts of one response.

    Attributes:
        finished: the model ended its turn by itself; false when the length cap cut it.
        tokens: response tokens, the end-of-turn token included when it was emitted.
        repeated: n-grams that had occurred before in the same response.
        ngrams: all n-grams of the response.
    """

    finished: bool
    tokens: int
    repeated: int
    ngrams: int


def repetition(token_ids: Sequence[int], order: int = 4) -> tuple[int, int]:
    """How many n-grams of a response occurred before in it, and how many n-grams it has.

    n-grams overlap: a response of T tokens has T - order + 1, and one shorter than `order` has 0 of 0.
    The share over many responses is the ratio of the two sums, so that short ones do not weigh more.

    Example:
        >>> repetition([1, 2, 1, 2, 1], order=2)  # 12 21 12 21: the last two are repeats
        (2, 4)
    """
    total = max(len(token_ids) - order + 1, 0)
    distinct = {tuple(token_ids[start : start + order]) for start in range(total)}
    return total - len(distinct), total


def text_statistics(response: ResponseRow) -> TextStatistics:
    """The counts of one response; repetition over 4-grams of token ids."""
    repeated, ngrams = repetition(response.token_ids)
    return TextStatistics(response.finish_reason == "stop", len(response.token_ids), repeated, ngrams)
