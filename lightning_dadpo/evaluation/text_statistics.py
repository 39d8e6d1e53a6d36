"""What can be said of a response without a model: did it end, how long is it, does it repeat itself.

Repetition and distinct-n are two sides of one count, taken within each response: distinct-n is the share of a
response's n-grams that are new in it (after Li et al. 2016, arXiv 1510.03055, who count over a whole set of responses).
Over many responses it is the ratio of the two sums, so prompts can be resampled for its interval. Distinct-n of a whole
set cannot: a prompt drawn twice adds no new n-gram, so every bootstrap draw would lie below the estimate. What this one
does not see is a model that gives everybody the same answer.

Distinct-n falls with length for every writer, since words come back; so a shorter model looks more varied than it is.
Read it beside the mean length, and compare models that share a tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_dadpo.data.rows import ResponseRow

__all__ = ["TextStatistics", "distinct", "repetition", "text_statistics"]


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
    new, total = distinct(token_ids, order)
    return total - new, total


def distinct(token_ids: Sequence[int], order: int) -> tuple[int, int]:
    """How many different n-grams a response has, and how many it has in all; see `repetition`.

    Example:
        >>> distinct([1, 2, 1, 2, 1], order=2)  # 12 and 21
        (2, 4)
    """
    total = max(len(token_ids) - order + 1, 0)
    return len({tuple(token_ids[start : start + order]) for start in range(total)}), total


def text_statistics(response: ResponseRow) -> TextStatistics:
    """The counts of one response; repetition over 4-grams of token ids."""
    repeated, ngrams = repetition(response.token_ids)
    return TextStatistics(response.finish_reason == "stop", len(response.token_ids), repeated, ngrams)
