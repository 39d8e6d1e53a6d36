"""How often a judge says what people say, beside chance and "the longer response wins"; and when that is enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pydantic.dataclasses import dataclass as validated_dataclass

from lightning_dadpo.data.rows import STRICT
from lightning_dadpo.evaluation.asking import InBothOrders
from lightning_dadpo.evaluation.bootstrap import Interval, ratio_interval
from lightning_dadpo.evaluation.judges import Preference
from lightning_dadpo.evaluation.people import LLMBAR, PANDALM
from lightning_dadpo.evaluation.verdicts import with_bounds

__all__ = ["CRITERION", "CHANCE", "PUBLISHED_PAIRS", "ValidationRow", "agreements", "shortcomings", "wilson_low"]

CHANCE = 0.5
"""Agreement of a coin on pairs of which people prefer one response; also of whoever calls everything a tie."""

PUBLISHED_PAIRS = {PANDALM: 999, LLMBAR: 100 + 134 + 92 + 47 + 46}
"""Pairs of the whole sets as they are published: PandaLM's test set (arXiv 2306.05087) and LLMBar's five parts (arXiv
2310.07641), Natural and, adversarial, Neighbor, GPTInst, GPTOut and Manual."""

CRITERION = (
    f"On the untied ones of all {PUBLISHED_PAIRS[PANDALM]} pairs of PandaLM's test set the lower 95 % bound of the "
    'judge\'s agreement with people is above the agreement of "longer wins" on the same pairs, and the lower 95 % '
    "bound of the difference between the two, taken pair by pair, is above 0; on all "
    f"{PUBLISHED_PAIRS[LLMBAR]} pairs of LLMBar's five parts the lower 95 % bound of its agreement is above 50 %. The "
    "lower bound of an agreement is the lower one of two: the bootstrap's over questions, and Wilson's over pairs."
)
"""What a judge must do before a preference result may rest on it. The bootstrap sees that the pairs of a question
belong together, but has no width where all pairs are alike; Wilson's bound has."""

NORMAL_QUANTILE = 1.959963984540054
"""Of 0.975: an interval of 95 %."""


@validated_dataclass(frozen=True, config=STRICT)
class ValidationRow:
    """One pair that people have judged, with what a judge says of it.

    Attributes:
        kind: PandaLM or LLMBar. part: the file. pair_id: the pair.
        prompt: digest of the question; pairs of one question are drawn together.
        people: what they prefer; a tie where no answer has a majority.
        as_is: the judge's preference in the order in which people saw the pair. swapped: in the other order.
        judge: both as one, in people's order. longer: the response with more characters.
    """

    kind: str
    part: str
    pair_id: str
    prompt: str
    people: Preference
    as_is: Preference
    swapped: Preference
    judge: Preference
    longer: Preference


def agreements(rows: Sequence[ValidationRow], resamples: int) -> dict[str, Any]:
    """What a judge's verdicts on one set of pairs come to.

    Pairs that people call a tie do not count for `agreement`; where the judge (or length) calls a pair a tie, it is
    half right. Questions are drawn whole, with all their pairs: PandaLM has about six pairs a question, which are not
    independent of one another.

    Args:
        rows: at least one of them not a tie of people's.
        resamples: bootstrap draws over questions.

    Returns:
        `pairs`; `untied` ones among them, and their `questions`; `chance` (1/2) and `chance_all`, what a judge with the
        same shares of verdicts would reach blindly on all pairs; `ties`, the judge's share of them; `first`: of its
        answers in either order that name a response, the share that name the one which stands first (1/2 without
        position bias; None when it names none). With bounds X_low and X_high: `agreement` and `longer_wins`, both on
        untied pairs, and their `difference`; `agreement_all`, on all pairs, where a tie must be called one;
        `consistent`, the share of pairs on which both orders agree.
    """
    untied = [row for row in rows if row.people != "tie"]

    def over(chosen: Sequence[ValidationRow], points: Callable[[ValidationRow], float]) -> Interval:
        return _per_question(chosen, points, resamples)

    estimates = {
        "agreement": over(untied, lambda row: _right(row.judge, row.people)),
        "longer_wins": over(untied, lambda row: _right(row.longer, row.people)),
        "difference": over(untied, lambda row: _right(row.judge, row.people) - _right(row.longer, row.people)),
        "agreement_all": over(rows, lambda row: row.judge == row.people),
        "consistent": over(rows, lambda row: InBothOrders(row.as_is, row.swapped).agree),
    }
    named = [said for row in rows for said in (row.as_is, row.swapped) if said != "tie"]
    return {
        "pairs": len(rows),
        "untied": len(untied),
        "questions": len({row.prompt for row in untied}),
        **with_bounds(estimates),
        "chance": CHANCE,
        "chance_all": _blind(rows),
        "ties": sum(row.judge == "tie" for row in rows) / len(rows),
        "first": named.count("first") / len(named) if named else None,
    }


def shortcomings(sets: Sequence[dict[str, Any]]) -> list[str]:
    """Why a judge does not pass `CRITERION`, a sentence each; none when it passes. A set that was not given is one."""
    of = {row["set"]: row for row in sets}
    missing = [f"no {name} file was given" for name in PUBLISHED_PAIRS if name not in of]
    found = [
        f"{name}: only {of[name]['pairs']} of {whole} pairs were given"
        for name, whole in PUBLISHED_PAIRS.items()
        if name in of and of[name]["pairs"] < whole
    ]
    if panda := of.get(PANDALM):
        low, longer, gain = _low(panda), panda["longer_wins"], panda["difference_low"]
        if not low > longer:
            found.append(f'PandaLM: its lower bound {low:.1%} is not above "longer wins", {longer:.1%}')
        if not gain > 0:
            found.append(f'PandaLM: its gain over "longer wins", pair by pair, has the lower bound {gain:+.1%}')
    if (bar := of.get(LLMBAR)) and not _low(bar) > CHANCE:
        found.append(f"LLMBar: its lower bound {_low(bar):.1%} is not above chance, {CHANCE:.0%}")
    return missing + found


def _low(row: dict[str, Any]) -> float:
    """The lower 95 % bound of an agreement: the bootstrap's or `wilson_low`, whichever is lower."""
    return min(float(row["agreement_low"]), wilson_low(row["agreement"], row["untied"]))


def wilson_low(share: float, number: int) -> float:
    """Lower end of Wilson's 95 % interval of a share (Wilson 1927); below 1 also where all of them agree.

    A half, as a tie counts, varies less than a whole and a nothing, so with ties the bound is the more careful.

    Args:
        share: of 1. number: of what it is a share, >= 1.
    """
    squared = NORMAL_QUANTILE**2 / number
    spread = math.sqrt(squared * share * (1 - share) + squared**2 / 4)
    return (share + squared / 2 - spread) / (1 + squared)


def _right(said: Preference, people: Preference) -> float:
    """1 when both name the same response, 1/2 for a tie where people prefer one, else 0."""
    return 0.5 if said == "tie" else float(said == people)


def _per_question(rows: Sequence[ValidationRow], points: Callable[[ValidationRow], float], resamples: int) -> Interval:
    """Mean of the points over pairs, resampled by question."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for row in rows:
        sums[row.prompt] = sums.get(row.prompt, 0.0) + points(row)
        counts[row.prompt] = counts.get(row.prompt, 0) + 1
    return ratio_interval(list(sums.values()), list(counts.values()), resamples=resamples)


def _blind(rows: Sequence[ValidationRow]) -> float:
    """Agreement expected from the shares of verdicts alone (Cohen's p_e)."""
    judge, people = [row.judge for row in rows], [row.people for row in rows]
    return sum(judge.count(one) * people.count(one) for one in ("first", "second", "tie")) / len(rows) ** 2
