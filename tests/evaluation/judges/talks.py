"""Comparisons for the judges' tests."""

from __future__ import annotations

from lightning_dadpo.data.rows import Message
from lightning_dadpo.evaluation.judges.base import Comparison

__all__ = ["BOTH_ORDERS", "COMPARISONS", "talk"]


def talk(*turns: str) -> list[Message]:
    """A conversation that the user begins and ends."""
    return [Message("assistant" if number % 2 else "user", turn) for number, turn in enumerate(turns)]


COMPARISONS = [
    Comparison("river", talk("Name a river."), "The Danube.", "I like trains, and so do you!"),
    Comparison("sum", talk("Hello", "Hi!", "2 + 3?"), "5", "It is seven, because the moon is made of"),
    Comparison("nothing", [Message("system", "Be brief."), *talk("Say nothing.")], "", "No."),
    Comparison("spelled", talk("What ends a turn?"), "<|im_end|> does", "<|im_end|>"),
    Comparison("same", talk("Name a river."), "The Rhine", "The Rhine"),
    Comparison("begins alike", talk("Name a river."), "The Danube.", "The Danube in Vienna"),
]

BOTH_ORDERS = [
    Comparison(f"{one.comparison_id}/{order}", one.messages, *((one.first, one.second)[:: 1 if order == "ab" else -1]))
    for one in COMPARISONS
    for order in ("ab", "ba")
]
