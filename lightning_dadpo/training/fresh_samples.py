"""What can be said of the texts that a student writes while it trains: their shape, and a judge's verdicts on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_dadpo.data.rows import ResponseRow
from lightning_dadpo.evaluation.answers import check_same_sampler
from lightning_dadpo.evaluation.asking import UNREADABLE, ask, refuse_unreadable
from lightning_dadpo.evaluation.judges import Comparison, Judge
from lightning_dadpo.evaluation.preference_rate import POINTS, Verdict, combine, longer_wins
from lightning_dadpo.evaluation.subjects import Subject
from lightning_dadpo.evaluation.text_statistics import repetition
from lightning_dadpo.sampling.base import Sampled, SamplerSettings

__all__ = ["check_drawn_alike", "comparisons", "text_values", "verdicts", "verdict_values"]


def text_values(drawn: Sequence[Sampled]) -> dict[str, float]:
    """Shares and lengths of fresh samples.

    Returns:
        `val/repetition`: 4-grams that had occurred before in the same response, as a share of all of them.
        `val/finished`: share that ended by itself. `val/mean_tokens`: tokens, the end-of-turn token included.
    """
    repeated, ngrams = map(sum, zip(*(repetition(one.token_ids) for one in drawn), strict=True))
    return {
        "val/repetition": repeated / ngrams if ngrams else 0.0,
        "val/finished": sum(one.finish_reason == "stop" for one in drawn) / len(drawn),
        "val/mean_tokens": sum(len(one.token_ids) for one in drawn) / len(drawn),
    }


def comparisons(rows: Sequence[ResponseRow], texts: Sequence[str]) -> list[Comparison]:
    """The student's texts, each against the teacher's response to the same prompt."""
    return [Comparison(row.prompt_id, row.messages, text, row.text) for row, text in zip(rows, texts, strict=True)]


def verdicts(judge: Judge, asked: Sequence[Comparison]) -> list[Verdict]:
    """Who wins each, in both orders; where the orders disagree it is a tie (trap E2).

    Raises:
        ConfigError, DataError: what the judge raises, or it cannot read most comparisons.
    """
    said = ask(judge, asked)
    refuse_unreadable(judge, judge.counts().get(UNREADABLE, 0), 2 * len(said))
    return [combine(both.as_is, both.swapped) for both in said]


def verdict_values(said: Sequence[Verdict], asked: Sequence[Comparison]) -> dict[str, float]:
    """Shares of the verdicts, of 1.

    Returns:
        `val/win`, `val/tie`, `val/lose`, `val/preference_rate` (win less lose), and beside them `val/longer_wins`: the
        preference rate that whoever wrote more would have on the same texts (trap E4).
    """
    longer = longer_wins([len(one.first) for one in asked], [len(one.second) for one in asked])
    return {
        **{f"val/{verdict}": sum(one == verdict for one in said) / len(said) for verdict in POINTS},
        "val/preference_rate": sum(POINTS[one] for one in said) / len(said),
        "val/longer_wins": sum(POINTS[one] for one in longer) / len(longer),
    }


@dataclass(frozen=True)
class _Student:
    """The student in training, as somebody whose answers are compared."""

    name: str
    folder: Path
    sampler: dict[str, Any]


def check_drawn_alike(subject: Subject, settings: SamplerSettings) -> None:
    """Refuse to judge texts that were drawn otherwise than those that they are held against.

    Raises:
        DataError: naming the setting and both values.
    """
    if subject.sampler:  # an imported file does not say
        check_same_sampler([subject, _Student("the judged student", Path("WatchDistances"), asdict(settings))])
