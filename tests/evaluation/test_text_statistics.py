from __future__ import annotations

from typing import Literal

import pytest

from lightning_dadpo.data.rows import Message, ResponseRow
from lightning_dadpo.evaluation.text_statistics import TextStatistics, distinct, repetition, text_statistics


def response(token_ids: list[int], finish_reason: Literal["stop", "length"] = "stop") -> ResponseRow:
    return ResponseRow("p", "heldout", [Message("user", "hi")], [1, 5], token_ids, "", finish_reason, -1.0)


@pytest.mark.parametrize(
    ("token_ids", "order", "expected"),
    [
        ([7, 7, 7, 7, 7, 7], 4, (2, 3)),  # 7777 three times: the first one is new
        ([1, 2, 3, 4, 1, 2, 3, 4], 4, (1, 5)),  # 1234 2341 3412 4123 1234
        ([1, 2, 3, 4, 5, 6], 4, (0, 3)),
        ([1, 2, 3, 4], 4, (0, 1)),
        ([1, 1, 1], 4, (0, 0)),
        ([], 4, (0, 0)),
        ([1, 2, 1, 2, 1], 2, (2, 4)),
        ([3, 3, 4], 1, (1, 3)),
    ],
)
def test_counts_ngrams_seen_before(token_ids: list[int], order: int, expected: tuple[int, int]) -> None:
    assert repetition(token_ids, order) == expected


@pytest.mark.parametrize(
    ("token_ids", "order", "expected"),
    [
        ([5, 6, 5, 7, 5], 1, (3, 5)),
        ([5, 6, 5, 7, 5], 2, (4, 4)),
        ([5, 6, 5, 6, 5, 6], 2, (2, 5)),  # 56 65 56 65 56
        ([5, 5, 5, 5], 3, (1, 2)),
        ([5], 2, (0, 0)),
        ([], 1, (0, 0)),
    ],
)
def test_distinct_by_hand(token_ids: list[int], order: int, expected: tuple[int, int]) -> None:
    assert distinct(token_ids, order) == expected
    assert repetition(token_ids, order) == (expected[1] - expected[0], expected[1])


def test_A7_the_end_of_turn_counts_when_it_was_emitted() -> None:
    assert text_statistics(response([9, 9, 9, 9, 9, 2])) == TextStatistics(True, 6, 1, 3)
    assert text_statistics(response([9, 9, 9, 9, 9], "length")) == TextStatistics(False, 5, 1, 2)
