"""Two sides' responses to the same prompts, joined into pairs; what cannot be a pair is counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lightning_dadpo.data.pairing_rules import RULES, Candidate, PairingRule, Rule
from lightning_dadpo.data.rows import PairRow, ResponseRow, content_digest
from lightning_dadpo.errors import DataError

__all__ = ["Paired", "ScoreOf", "pair_of", "pair_responses", "says_nothing", "unscored"]

ScoreOf = Callable[[ResponseRow], float | None]
"""What the teacher gives to a response, nats per token; None where nobody asks."""


@dataclass(frozen=True)
class Paired:
    """Pairs in the order of the chosen responses, and what became of the others.

    Attributes:
        pairs: what can be trained on.
        counts: `pairs`; `dropped_...` prompts by reason: only_chosen and only_rejected (the other side has no
            response, but has others of that split), empty, chosen_cut, identical, over_long, and those of the rule;
            `kept_chosen_cut` and `kept_rejected_cut` pairs.
    """

    pairs: list[PairRow]
    counts: dict[str, int]


@dataclass(frozen=True)
class _Limits:
    keep_cut_chosen: bool
    max_prompt_tokens: int
    max_response_tokens: int


def unscored(row: ResponseRow) -> None:
    """For rules that do not ask the teacher."""


def pair_responses(
    chosen: Iterable[ResponseRow],
    rejected: Iterable[ResponseRow],
    *,
    keep_cut_chosen: bool = False,
    max_prompt_tokens: int,
    max_response_tokens: int,
    rule: PairingRule = "first_of_each",
    scores: tuple[ScoreOf, ScoreOf] = (unscored, unscored),
) -> Paired:
    """Join two models' responses by prompt_id: y_w from the first, y_l from the second (METHOD, pipeline).

    Ids are taken as they were sampled; nothing is cut, appended or tokenised again (traps A3, A6, A7).

    Args:
        chosen: the teacher's responses.
        rejected: the student's responses; or once more the same ones.
        keep_cut_chosen: keep pairs whose chosen response was stopped by the length cap.
        max_prompt_tokens: pairs with a longer prompt are dropped.
        max_response_tokens: pairs with a longer response are dropped.
        rule: chooses among the responses of either side that can be used.
        scores: what the teacher gives to a response of either side, in nats per token, where the rule asks.

    Raises:
        DataError: a side answers a prompt twice under one number, or the sides read a prompt as other tokens (traps
            A8, A10) or place it in another split.
    """
    limits = _Limits(keep_cut_chosen, max_prompt_tokens, max_response_tokens)
    answers, others = _by_prompt(chosen, "chosen"), _by_prompt(rejected, "rejected")
    pairs: list[PairRow] = []
    counts: Counter[str] = Counter(
        dropped_only_chosen=_alone(answers, others),
        dropped_only_rejected=_alone(others, answers),
    )
    for prompt_id, mine in answers.items():
        if (theirs := others.get(prompt_id)) is None:
            continue
        for row in (*mine, *theirs):
            _check_same_prompt(mine[0], row)
        found = _picked(mine, theirs, limits, RULES[rule], scores)
        if isinstance(found, str):
            counts[f"dropped_{found}"] += 1
            continue
        better, worse = found
        counts["kept_chosen_cut"] += better.finish_reason == "length"
        counts["kept_rejected_cut"] += worse.finish_reason == "length"
        pairs.append(pair_of(better, worse))
    return Paired(pairs, {"pairs": len(pairs), **{key: count for key, count in sorted(counts.items()) if count}})


def _alone(mine: dict[str, list[ResponseRow]], theirs: dict[str, list[ResponseRow]]) -> int:
    """Prompts without a partner; a split that the other side was never asked about loses nothing."""
    asked = {rows[0].split for rows in theirs.values()}
    return sum(prompt not in theirs and rows[0].split in asked for prompt, rows in mine.items())


def _picked(
    mine: list[ResponseRow], theirs: list[ResponseRow], limits: _Limits, rule: Rule, scores: tuple[ScoreOf, ScoreOf]
) -> tuple[ResponseRow, ResponseRow] | str:
    """Chosen and rejected response to one prompt, or why there are none."""
    chosen = [Candidate(row, scores[0](row)) for row in mine if _usable(row, limits) and _may_be_chosen(row, limits)]
    rejected = [Candidate(row, scores[1](row)) for row in theirs if _usable(row, limits)]
    if not (chosen and rejected):
        better, worse = mine[0], theirs[0]
    else:
        choice = rule.pick(chosen, rejected)
        if isinstance(choice, str):
            return choice
        better, worse = (candidate.response for candidate in choice)
    return _unusable(better, worse, limits) or (better, worse)


def _by_prompt(rows: Iterable[ResponseRow], side: str) -> dict[str, list[ResponseRow]]:
    found: dict[str, dict[int, ResponseRow]] = {}
    for row in rows:
        candidates = found.setdefault(row.prompt_id, {})
        if row.candidate in candidates:
            raise DataError(
                f"{side} responses: prompt_id {row.prompt_id!r} is answered twice as candidate {row.candidate}, "
                "expected one response"
            )
        candidates[row.candidate] = row
    return {prompt_id: [by[number] for number in sorted(by)] for prompt_id, by in found.items()}


def _check_same_prompt(chosen: ResponseRow, rejected: ResponseRow) -> None:
    if chosen.prompt_token_ids != rejected.prompt_token_ids:
        raise DataError(
            f"prompt_id {chosen.prompt_id!r}: the chosen and the rejected model read it as different tokens "
            f"({len(chosen.prompt_token_ids)} and {len(rejected.prompt_token_ids)}); sample both from the same "
            "prompts, with the same tokenizer and chat template"
        )
    if chosen.split != rejected.split:
        raise DataError(
            f"prompt_id {chosen.prompt_id!r}: split {chosen.split!r} among the chosen, {rejected.split!r} among the "
            "rejected responses"
        )


def _unusable(chosen: ResponseRow, rejected: ResponseRow, limits: _Limits) -> str | None:
    """Why a pair cannot be used: the first reason that applies."""
    if says_nothing(chosen) or says_nothing(rejected):
        return "empty"
    if not _may_be_chosen(chosen, limits):
        return "chosen_cut"
    if chosen.token_ids == rejected.token_ids:
        return "identical"
    if len(chosen.prompt_token_ids) > limits.max_prompt_tokens or not (
        _fits(chosen, limits) and _fits(rejected, limits)
    ):
        return "over_long"
    return None


def _may_be_chosen(row: ResponseRow, limits: _Limits) -> bool:
    return limits.keep_cut_chosen or row.finish_reason == "stop"


def _fits(row: ResponseRow, limits: _Limits) -> bool:
    return len(row.token_ids) <= limits.max_response_tokens


def _usable(row: ResponseRow, limits: _Limits) -> bool:
    """Whether a response may stand in a pair at all."""
    return not says_nothing(row) and _fits(row, limits)


def says_nothing(row: ResponseRow) -> bool:
    """No token at all, or the end-of-turn token alone: a response that stopped holds that token last."""
    return len(row.token_ids) <= (1 if row.finish_reason == "stop" else 0)


def pair_of(chosen: ResponseRow, rejected: ResponseRow) -> PairRow:
    """Two responses to one prompt as a pair, whatever they are; a pair's id is the digest of its ids."""
    return PairRow(
        pair_id=content_digest(chosen.prompt_token_ids, chosen.token_ids, rejected.token_ids),
        prompt_id=chosen.prompt_id,
        split=chosen.split,
        messages=chosen.messages,
        prompt_token_ids=chosen.prompt_token_ids,
        chosen_token_ids=chosen.token_ids,
        chosen_text=chosen.text,
        chosen_finish_reason=chosen.finish_reason,
        rejected_token_ids=rejected.token_ids,
        rejected_text=rejected.text,
        rejected_finish_reason=rejected.finish_reason,
        chosen_log_prob=chosen.log_prob,
        rejected_log_prob=rejected.log_prob,
    )
