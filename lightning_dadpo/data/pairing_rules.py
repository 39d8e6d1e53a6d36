"""Which of several responses to a prompt become a pair: small pure functions, chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_dadpo.data.rows import ResponseRow

__all__ = ["Candidate", "PairingRule", "Rule", "RULES", "first_of_each", "best_and_worst"]


@dataclass(frozen=True)
class Candidate:
    """One response to a prompt, and what the teacher thinks of it.

    Attributes:
        response: the response, one that can be used on its side of a pair.
        score: the teacher's log-prob of it over its tokens, nats per token; None where no rule asks. A sum would fall
            with every token, so that the best of n by it is the shortest of n.
    """

    response: ResponseRow
    score: float | None = None


Choice = tuple[Candidate, Candidate] | str
"""Chosen and rejected, or why there is no pair."""


def first_of_each(chosen: Sequence[Candidate], rejected: Sequence[Candidate]) -> Choice:
    """The first usable response of either model: with one response each it is the paper's pair.

    Args:
        chosen: at least one response that can be chosen, in the order of their numbers.
        rejected: at least one that can be rejected.

    Returns:
        Chosen and rejected; they may be identical, which is not this function's to judge.
    """
    return chosen[0], rejected[0]


def best_and_worst(chosen: Sequence[Candidate], rejected: Sequence[Candidate]) -> Choice:
    """The response that the teacher finds most probable per token, against the one that it finds least probable.

    Both sides may hold the responses of one model; then the pair says what the teacher prefers among them. Of equal
    scores the first counts.

    Args:
        chosen: at least one scored response that can be chosen.
        rejected: at least one scored response that can be rejected.

    Returns:
        Chosen and rejected; or `one_distinct`: fewer than two different responses, `identical`: nothing differs from
        the best one, `tied`: the teacher does not tell best and worst apart.
    """
    best = max(chosen, key=_score)
    others = [one for one in rejected if one.response.token_ids != best.response.token_ids]
    if not others:
        different = {tuple(one.response.token_ids) for one in chosen}
        return "identical" if len(different) > 1 else "one_distinct"
    worst = min(others, key=_score)
    return "tied" if _score(worst) == _score(best) else (best, worst)


def _score(candidate: Candidate) -> float:
    assert candidate.score is not None, "a rule that asks for scores is given them"
    return candidate.score


@dataclass(frozen=True)
class Rule:
    """A pairing rule as it is chosen by name.

    Attributes:
        pick: the function.
        asks_teacher: whether it needs the teacher's score of every candidate.
    """

    pick: Callable[[Sequence[Candidate], Sequence[Candidate]], Choice]
    asks_teacher: bool


PairingRule = Literal["first_of_each", "best_and_worst"]

RULES: dict[PairingRule, Rule] = {
    "first_of_each": Rule(first_of_each, asks_teacher=False),
    "best_and_worst": Rule(best_and_worst, asks_teacher=True),
}
