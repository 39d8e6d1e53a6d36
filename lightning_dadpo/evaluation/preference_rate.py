"""Who wins, and by how much: win, tie and lose shares, preference rates, their differences, and "longer wins".

Sides: a candidate is held against an opponent on the same prompts. Rates are shares: 0.1 is 10 points of 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lightning_dadpo.errors import DataError
from lightning_dadpo.evaluation.bootstrap import Interval, mean_interval
from lightning_dadpo.evaluation.judges import Preference

__all__ = ["Verdict", "POINTS", "combine", "preference_rate", "rate_difference", "share", "longer_wins"]

Verdict = Literal["win", "tie", "lose"]
"""What a comparison was for the candidate."""

POINTS: dict[Verdict, int] = {"win": 1, "tie": 0, "lose": -1}
"""Their mean over prompts is the preference rate, win share minus lose share."""


def combine(candidate_first: Preference, candidate_second: Preference) -> Verdict:
    """One verdict from both orders: what both agree on, and a tie where they differ in any way (trap E2).

    Args:
        candidate_first: the preference when the candidate's response stood first.
        candidate_second: the preference when it stood second.

    Example:
        >>> combine("first", "second"), combine("first", "first"), combine("first", "tie")
        ('win', 'tie', 'tie')
    """
    if candidate_first == "first" and candidate_second == "second":
        return "win"
    if candidate_first == "second" and candidate_second == "first":
        return "lose"
    return "tie"


def preference_rate(verdicts: Sequence[Verdict], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Win share minus lose share over prompts, in [-1, 1], with its 95 % percentile bootstrap interval over prompts.

    0 means on a par (daDPO, arXiv 2506.15717, section on evaluation). Where all verdicts are the same, so are all
    resamples, and the interval has no width: it says nothing then.

    Raises:
        DataError: no verdicts.
    """
    return mean_interval([POINTS[verdict] for verdict in verdicts], resamples=resamples, seed=seed)


def rate_difference(
    verdicts: Sequence[Verdict], others: Sequence[Verdict], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """How much higher one candidate's preference rate is than another's, prompt by prompt.

    Both must stand in the same order of prompts: a draw takes both candidates' verdicts on a prompt, so that what makes
    a prompt hard for both leaves the difference alone.

    Raises:
        DataError: no verdicts, or other numbers of them.
    """
    if len(verdicts) != len(others):
        raise DataError(f"rate difference: {len(verdicts)} and {len(others)} verdicts, expected those of equal prompts")
    points = [POINTS[one] - POINTS[other] for one, other in zip(verdicts, others, strict=True)]
    return mean_interval(points, resamples=resamples, seed=seed)


def share(verdicts: Sequence[Verdict], of: Verdict, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """The share of one verdict among all, with its interval."""
    return mean_interval([verdict == of for verdict in verdicts], resamples=resamples, seed=seed)


def longer_wins(lengths: Sequence[int], opponent_lengths: Sequence[int]) -> list[Verdict]:
    """The verdicts of a judge that prefers the longer response and calls equal lengths a tie.

    Lengths are counted in characters of the text: that is what a judge and people see, it is one unit for models with
    different tokenizers, and people's comparisons come as text alone.
    """
    return [
        "win" if own > other else "lose" if own < other else "tie"
        for own, other in zip(lengths, opponent_lengths, strict=True)
    ]
