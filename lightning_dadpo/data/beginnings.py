"""Which prompts begin alike: what they begin with, a system prompt mostly, is then computed once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

__all__ = ["Family", "Ids", "families", "shared_prefix"]

Ids = Sequence[int]


def shared_prefix(sequences: Sequence[Ids]) -> int:
    """Tokens that all sequences begin with in common."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))


@dataclass
class Family:
    """Prompts that begin alike.

    Attributes:
        prompts: their numbers, the shortest prompt first.
        shared: tokens that all begin with in common, the last token of a prompt never counted: the first answer
            token is predicted there.
    """

    prompts: list[int]
    shared: int


def families(prompt_ids: Sequence[Ids]) -> list[Family]:
    """Every prompt in one family, such that much is computed once: one prompt of another kind spoils nothing.

    The family that saves the most tokens is taken first, then the same again among the rest: time grows with the square
    of the number of prompts, which is a batch's.
    """
    order = sorted(range(len(prompt_ids)), key=lambda prompt: tuple(prompt_ids[prompt]))
    found = []
    while order:
        # in sorted order, what a run of prompts shares is the least that two neighbours in it share
        alike = [shared_prefix([prompt_ids[one][:-1], prompt_ids[other][:-1]]) for one, other in pairwise(order)]
        start, stop = max(
            (_run(alike, at) for at in range(len(alike))), key=lambda run: _saved(alike, *run), default=(0, 0)
        )
        members = order[start : stop + 1]
        shared = min(alike[start:stop], default=0)
        found.append(Family(sorted(members, key=lambda prompt: (len(prompt_ids[prompt]), prompt)), shared))
        del order[start : stop + 1]
    return found


def _run(alike: list[int], at: int) -> tuple[int, int]:
    """The longest run of neighbours around `at` that share at least what those at `at` do."""
    start, stop = at, at + 1
    while start and alike[start - 1] >= alike[at]:
        start -= 1
    while stop < len(alike) and alike[stop] >= alike[at]:
        stop += 1
    return start, stop


def _saved(alike: list[int], start: int, stop: int) -> tuple[int, int]:
    return min(alike[start:stop]) * (stop - start), stop - start
