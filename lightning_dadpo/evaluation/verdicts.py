"""Verdicts on candidates, and what they come to: the rows of `preference.json`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from pydantic.dataclasses import dataclass as validated_dataclass

from lightning_dadpo.data.rows import STRICT
from lightning_dadpo.errors import DataError
from lightning_dadpo.evaluation.asking import InBothOrders
from lightning_dadpo.evaluation.bootstrap import Interval, mean_interval
from lightning_dadpo.evaluation.judges import Preference
from lightning_dadpo.evaluation.length_control import length_controlled_rate
from lightning_dadpo.evaluation.preference_rate import Verdict, longer_wins, preference_rate, rate_difference, share

__all__ = ["VerdictRow", "summarise", "differences", "with_bounds"]


@validated_dataclass(frozen=True, config=STRICT)
class VerdictRow:
    """What the judge said of one candidate's response to one prompt, beside the opponent's.

    Attributes:
        model: the candidate's name.
        prompt_id: the prompt.
        candidate_first: the preference when the candidate's response stood first.
        candidate_second: the preference when it stood second.
        verdict: both as one, for the candidate (`preference_rate.combine`).
        characters: length of the candidate's text. opponent_characters: of the opponent's.
        tokens: of the candidate's response, an emitted end-of-turn token included. opponent_tokens: of the opponent's.
    """

    model: str
    prompt_id: str
    candidate_first: Preference
    candidate_second: Preference
    verdict: Verdict
    characters: int
    opponent_characters: int
    tokens: int
    opponent_tokens: int


def summarise(name: str, rows: Sequence[VerdictRow], resamples: int) -> dict[str, Any]:
    """One candidate's row of `preference.json`.

    Args:
        name: the candidate.
        rows: one a prompt, in an order that all candidates share.
        resamples: bootstrap draws over prompts.

    Returns:
        `model`, `prompts` and the estimates X with `X_low` and `X_high`: `win`, `tie`, `lose`, `preference_rate`,
        `length_controlled`, `longer_wins` (the preference rate that the longer response would have on the same
        responses), `consistent` (share of prompts on which both orders agree), `mean_tokens`, `opponent_mean_tokens`.
        Shares are of 1.
    """
    verdicts = [row.verdict for row in rows]
    lengths, others = [row.characters for row in rows], [row.opponent_characters for row in rows]
    consistent = [InBothOrders(row.candidate_first, row.candidate_second).agree for row in rows]
    estimates: dict[str, Interval] = {
        "win": share(verdicts, "win", resamples=resamples),
        "tie": share(verdicts, "tie", resamples=resamples),
        "lose": share(verdicts, "lose", resamples=resamples),
        "preference_rate": preference_rate(verdicts, resamples=resamples),
        "length_controlled": length_controlled_rate(verdicts, lengths, others, resamples=resamples),
        "longer_wins": preference_rate(longer_wins(lengths, others), resamples=resamples),
        "consistent": mean_interval(consistent, resamples=resamples),
        "mean_tokens": mean_interval([row.tokens for row in rows], resamples=resamples),
        "opponent_mean_tokens": mean_interval([row.opponent_tokens for row in rows], resamples=resamples),
    }
    return {"model": name, "prompts": len(rows), **with_bounds(estimates)}


def differences(rows: dict[str, list[VerdictRow]], resamples: int) -> list[dict[str, Any]]:
    """Every two candidates' preference rates, the first named less the other, paired by prompt.

    Raises:
        DataError: two candidates' rows are not on the same prompts in the same order.
    """
    found = []
    for model, other in combinations(rows, 2):
        if [row.prompt_id for row in rows[model]] != [row.prompt_id for row in rows[other]]:
            raise DataError(f"candidates {model} and {other}: verdicts on other prompts, expected the same")
        difference = rate_difference(
            [row.verdict for row in rows[model]], [row.verdict for row in rows[other]], resamples=resamples
        )
        found.append({"model": model, "other": other, **with_bounds({"difference": difference})})
    return found


def with_bounds(estimates: dict[str, Interval]) -> dict[str, float]:
    """Estimates X as plain numbers X, X_low and X_high."""
    return {
        f"{name}{bound}": value
        for name, one in estimates.items()
        for bound, value in (("", one.value), ("_low", one.low), ("_high", one.high))
    }
