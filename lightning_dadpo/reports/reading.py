"""What the result table says in words, computed from its numbers: a difference only where intervals are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_dadpo.reports.inputs import Nearness
from lightning_dadpo.reports.table import ESTIMATES, Column, display_name, format_number, number

__all__ = ["QUESTIONS", "Verdict", "Comparison", "compare", "comparisons", "headlines"]

State = Literal["better", "worse", "overlap", "unknown"]
# (model, what it is compared with, what the comparison asks)
QUESTIONS = (
    ("dsft", "pruned", "Did fine-tuning on the teacher's answers heal the student?"),
    ("ddpo", "dsft", "Did preferences without the teacher's probabilities add to that?"),
    ("dadpo", "dsft", "Did daDPO add to that?"),
    ("dadpo", "ddpo", "Did the teacher's probabilities matter?"),
)
PAIRED = "forward_kl"
"""The estimate that all models have on the same answers, the teacher's, so that prompts can be compared one by one."""
WORDS: dict[State, str] = {
    "better": "better, intervals apart",
    "worse": "worse, intervals apart",
    "overlap": "undecided, intervals overlap",
    "unknown": "cannot be compared",
}


@dataclass(frozen=True)
class Verdict:
    """One estimate of two models: `state`, and the two values as text (`from_value` is the one compared with).

    `paired` where the two intervals overlap, but that of the difference, prompt by prompt, leaves out 0.
    """

    column: Column
    state: State
    from_value: str
    to_value: str
    paired: bool = False

    @property
    def words(self) -> str:
        """The verdict in a few words."""
        return f"{self.state}, prompt by prompt" if self.paired else WORDS[self.state]

    @property
    def label(self) -> str:
        """What was estimated, and how it was compared where that is not by two intervals."""
        return f"{self.column.label} (prompt by prompt)" if self.paired else self.column.label


@dataclass(frozen=True)
class Comparison:
    """One model against another on every estimate."""

    model: str
    other: str
    question: str
    verdicts: tuple[Verdict, ...]

    def labels(self, state: State) -> list[str]:
        """The estimates that came out so."""
        return [verdict.label for verdict in self.verdicts if verdict.state == state]


def _interval(row: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    """The interval, when value and bounds are finite and in order: anything else supports no claim."""
    found = [number(row, f"{key}_low"), number(row, key), number(row, f"{key}_high")]
    if any(value is None or not math.isfinite(value) for value in found):
        return None
    low, value, high = (float(value) for value in found if value is not None)
    return (low, high) if low <= value <= high else None


def compare(
    model: Mapping[str, Any], other: Mapping[str, Any], column: Column, paired: Nearness | None = None
) -> Verdict:
    """Whether `model` is better or worse than `other` on one estimate; intervals that touch overlap.

    Args:
        model, other: rows of the summary.
        column: the estimate.
        paired: the two prompt by prompt, where they were compared so on this estimate; it sees smaller differences.
    """
    mine, theirs = _interval(model, column.key), _interval(other, column.key)
    state: State = "overlap"
    if mine is None or theirs is None:
        state = "unknown"
    elif mine[1] < theirs[0]:
        state = "better" if column.better == "lower" else "worse"
    elif theirs[1] < mine[0]:
        state = "worse" if column.better == "lower" else "better"
    before, after = (format_number(number(row, column.key), column) for row in (other, model))
    if state == "overlap" and paired is not None and not paired.difference_low <= 0 <= paired.difference_high:
        return Verdict(column, "better" if paired.difference < 0 else "worse", before, after, paired=True)
    return Verdict(column, state, before, after)


def comparisons(summary: Sequence[Mapping[str, Any]], paired: Sequence[Nearness] = ()) -> list[Comparison]:
    """The pipeline's own questions, as far as the models that they speak of were measured."""
    rows = {str(row.get("model")): row for row in summary}
    near = {(one.model, one.other, PAIRED): one for one in paired}
    return [
        Comparison(
            model, other, question,
            tuple(compare(rows[model], rows[other], one, near.get((model, other, one.key))) for one in ESTIMATES),
        )
        for model, other, question in QUESTIONS
        if model in rows and other in rows
    ]  # fmt: skip


def _listed(labels: list[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def _reasons(comparison: Comparison) -> str:
    overlap, unknown = comparison.labels("overlap"), comparison.labels("unknown")
    said = [f"the 95\u00a0% intervals of {_listed(overlap)} overlap"] if overlap else []
    said += [f"{_listed(unknown)} cannot be compared"] if unknown else []
    return "; ".join(said)


def _decided(comparison: Comparison) -> str:
    """One sentence on what lies apart, and what does not."""
    model, other = display_name(comparison.model), display_name(comparison.other)
    better, worse = comparison.labels("better"), comparison.labels("worse")
    claims = [f"better than {other} on {_listed(better)}"] if better else []
    claims += [f"worse {'' if better else f'than {other} '}on {_listed(worse)}"] if worse else []
    reasons = _reasons(comparison)
    rest = f" Not decided: {reasons}." if reasons else ""
    apart = any(one.state in ("better", "worse") and not one.paired for one in comparison.verdicts)
    how = "with the 95\u00a0% intervals apart" if apart else "with 0 outside the 95\u00a0% interval of the difference"
    return f"{model} is {' and '.join(claims)}, {how}.{rest}"


def headlines(found: Sequence[Comparison]) -> list[str]:
    """What the comparisons decide, the pipeline's last question first; undecided ones share a sentence."""
    sentences: dict[str, list[str]] = {}
    for comparison in reversed(found):
        if comparison.labels("better") or comparison.labels("worse"):
            sentences[_decided(comparison)] = []
        else:
            names = f"{display_name(comparison.model)} and {display_name(comparison.other)}"
            sentences.setdefault(_reasons(comparison), []).append(names)
    return [
        f"This run does not tell {', nor '.join([f'{pairs[0]} apart', *pairs[1:]])}: {said}." if pairs else said
        for said, pairs in sentences.items()
    ]
