"""What somebody who decides must know before a student is used: each sentence from the data, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_dadpo.data.analysis import ALL, Analysis
from lightning_dadpo.data.artifacts import Manifest
from lightning_dadpo.reports.table import TEACHER, number

__all__ = ["Risks", "Evidence", "risks"]

FEW_PROMPTS = 100
"""Below this a share of one half is known to no better than ten points either way (1.96 sqrt(0.25 / n))."""
CUT_WORTH_SAYING, REPEATED_WORTH_SAYING, SATURATED = 0.05, 0.05, 0.5
LENGTHS_APART = 1.2


@dataclass(frozen=True)
class Evidence:
    """What risks are read from.

    Attributes:
        main: the student in question.
        summary: the result table.
        trainings: how often the student was trained, each from another random start.
        prompts: what the prompts are called that it was compared on.
        evaluation: its manifest. analysis: whether weights saturate. Either is None where there is none.
    """

    main: str | None
    summary: Sequence[Mapping[str, Any]] = ()
    trainings: int = 1
    evaluation: Manifest | None = None
    analysis: Analysis | None = None
    prompts: str = "test"


@dataclass(frozen=True)
class Risks:
    """Seen in the numbers of this run; and not checked by it."""

    seen: list[str]
    unchecked: list[str]


def risks(evidence: Evidence) -> Risks:
    """All that apply, the gravest first."""
    rows = {str(row.get("model")): row for row in evidence.summary}
    mine, teacher = rows.get(evidence.main or "", {}), rows.get(TEACHER, {})
    seen = [
        *(_few(evidence, mine) if mine else []),
        *_cut(evidence.evaluation, mine, teacher),
        *_repetition(mine, teacher),
        *_lengths(mine, teacher),
        *_left_out(evidence),
        *_saturation(evidence),
    ]
    unchecked = [
        "Licence: whether the teacher's terms allow training another model on its answers is yours to check.",
        "Truth and safety: nothing here tests whether answers are true, harmless or fit for your use.",
        *_overlap_unchecked(evidence),
        f"Other uses: only prompts like these {evidence.prompts} prompts were tried, in the languages that they are "
        "in.",
    ]
    return Risks(seen, unchecked)


def percent(share: float) -> str:
    """A share of 1 in whole per cent."""
    return f"{100 * share:.0f}\u00a0%"


def _finite(row: Mapping[str, Any], key: str) -> float | None:
    found = number(row, key)
    return found if found is not None and math.isfinite(found) else None


def _few(evidence: Evidence, mine: Mapping[str, Any]) -> list[str]:
    prompts = _finite(mine, "prompts")
    said = []
    if prompts is not None and prompts < FEW_PROMPTS:
        said.append(f"Few {evidence.prompts} prompts: {prompts:.0f}. Small differences cannot be seen with so few.")
    if evidence.trainings == 1:
        said.append("One training run: how much another random start would change is not known.")
    return said


def _cut(evaluation: Manifest | None, mine: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[str]:
    """Answers that the length cap cut: what would have come behind it was neither seen nor measured."""
    finished, other = _finite(mine, "finished"), _finite(teacher, "finished")
    if finished is None or 1 - finished < CUT_WORTH_SAYING:
        return []
    sampler = evaluation.results.get("sampler") if evaluation else None
    cap = sampler.get("max_new_tokens") if isinstance(sampler, Mapping) else None
    at = f" of {cap} tokens" if isinstance(cap, int) else ""
    beside = "" if other is None else f" (the teacher's: {percent(1 - other)})"
    return [f"Cut answers: {percent(1 - finished)} of the student's answers{beside} hit the length limit{at}."]


def _repetition(mine: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[str]:
    own, other = _finite(mine, "repetition"), _finite(teacher, "repetition")
    if own is None or own < REPEATED_WORTH_SAYING or (other is not None and own <= other):
        return []
    beside = "" if other is None else f" (the teacher: {percent(other)})"
    bounds = _bounds(mine, "repetition")
    said = "of what the student writes it has written before in the same answer"
    return [f"Repetition: {percent(own)}{bounds} {said}{beside}."]


def _bounds(row: Mapping[str, Any], key: str) -> str:
    low, high = _finite(row, f"{key}_low"), _finite(row, f"{key}_high")
    return "" if low is None or high is None else f" [{100 * low:.0f}, {100 * high:.0f}]"


def _lengths(mine: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[str]:
    own, other = _finite(mine, "mean_tokens"), _finite(teacher, "mean_tokens")
    if not own or not other or max(own, other) / min(own, other) < LENGTHS_APART:
        return []
    word = "longer" if own > other else "shorter"
    return [
        f"Length: the student's answers are {word} than the teacher's ({own:.0f} against {other:.0f} tokens on "
        "average); judges tend to prefer the longer one."
    ]


def _left_out(evidence: Evidence) -> list[str]:
    found = evidence.evaluation.results.get("left_out") if evidence.evaluation else None
    if not found:
        return []
    count = len(found)
    return [
        f"Left out: {count} {evidence.prompts} prompt{'s' if count > 1 else ''} also stood in the training data, "
        f"exactly or nearly, and {'were' if count > 1 else 'was'} not used."
    ]


def _overlap_unchecked(evidence: Evidence) -> list[str]:
    if evidence.evaluation is not None and "left_out" in evidence.evaluation.results:
        return []
    return [f"Overlap: whether near copies of {evidence.prompts} prompts stand in the training data was not checked."]


def _saturation(evidence: Evidence) -> list[str]:
    """Only what concerns the student in question."""
    shares = [
        one.saturated[evidence.main].shares[ALL]
        for one in (evidence.analysis.sets if evidence.analysis else ())
        if evidence.main in one.saturated and ALL in one.saturated[evidence.main].shares
    ]
    if not shares or max(shares) <= SATURATED:
        return []
    return [
        f"Coarse training signal: {percent(max(shares))} of the training pairs pulled at full strength from the start, "
        "so the teacher's finer distinctions were lost."
    ]
