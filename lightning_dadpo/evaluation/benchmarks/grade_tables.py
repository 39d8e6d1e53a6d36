"""Grades to means with intervals, resampled by question: the two turns of one question hang together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from lightning_dadpo.data.rows import STRICT
from lightning_dadpo.evaluation.benchmarks.responses import with_interval
from lightning_dadpo.evaluation.bootstrap import Interval, ratio_interval

__all__ = ["GradeRow", "summarise"]


@dataclass(frozen=True, config=STRICT)
class GradeRow:
    """One answer and its grade.

    Attributes:
        model: the candidate's name. question_id, category: of the question. turn: 1 or 2.
        grade: 1 to 10; None when the grader's reply held none.
        graded_by: "rule" where there was no text to grade, else "grader".
        tokens: of the answer. finished: it ended by itself.
        said: the grader's reply.
    """

    model: str
    question_id: int
    category: str
    turn: int
    grade: int | None
    graded_by: Literal["grader", "rule"]
    tokens: int
    finished: bool
    said: str


TURNS = {"overall": (1, 2), "turn_1": (1,), "turn_2": (2,)}
Number = Callable[[GradeRow], float | int]


def summarise(rows: Sequence[GradeRow], resamples: int) -> dict[str, Any]:
    """`rows`, `categories` and `differences` as `dadpo mt-bench` says them."""
    models = {name: [row for row in rows if row.model == name] for name in dict.fromkeys(row.model for row in rows)}
    categories = list(dict.fromkeys(row.category for row in rows))
    names = list(models)
    return {
        "rows": [_line({"model": name}, own, resamples) for name, own in models.items()],
        "categories": [
            _line({"model": name, "category": one}, [row for row in own if row.category == one], resamples)
            for name, own in models.items()
            for one in categories
        ],
        "differences": [
            _difference(name, models[name], other, models[other], resamples)
            for at, name in enumerate(names)
            for other in names[at + 1 :]
        ],
    }


def _line(said: dict[str, Any], rows: list[GradeRow], resamples: int) -> dict[str, Any]:
    graded = [row for row in rows if row.grade is not None]
    counts = {
        "questions": _questions(rows),
        "graded": _questions(graded),
        "unread": len(rows) - len(graded),
        "empty": sum(row.graded_by == "rule" for row in rows),
    }

    def mean(units: list[GradeRow], number: Number) -> Interval | None:
        return _mean_by_question([(row.question_id, float(number(row))) for row in units], resamples)

    estimates = {
        name: mean([row for row in graded if row.turn in turns], lambda row: row.grade or 0)
        for name, turns in TURNS.items()
    }
    for turn in (1, 2):
        estimates[f"mean_tokens_{turn}"] = mean([row for row in rows if row.turn == turn], lambda row: row.tokens)
    estimates["finished"] = mean(rows, lambda row: row.finished)
    return {**said, **counts, **with_interval(estimates)}


def _questions(rows: Sequence[GradeRow]) -> int:
    return len({row.question_id for row in rows})


def _mean_by_question(numbers: Sequence[tuple[int, float]], resamples: int) -> Interval | None:
    """The mean of numbers that belong to questions; None of no numbers.

    Only questions that have a number are drawn: a draw of questions without any would be 0, which is no grade.
    """
    if not numbers:
        return None
    by_question: dict[int, list[float]] = {}
    for question, number in sorted(numbers):
        by_question.setdefault(question, []).append(number)
    groups = by_question.values()
    return ratio_interval([sum(one) for one in groups], [len(one) for one in groups], resamples=resamples)


def _difference(name: str, own: list[GradeRow], other: str, theirs: list[GradeRow], resamples: int) -> dict[str, Any]:
    """`name` minus `other` over the answers that have a grade on both sides."""
    by_unit = {(row.question_id, row.turn): row.grade for row in theirs}
    pairs = [(row, by_unit[row.question_id, row.turn]) for row in own]
    both = [(row, float(row.grade - grade)) for row, grade in pairs if row.grade is not None and grade is not None]
    estimates = {
        key: _mean_by_question([(row.question_id, gap) for row, gap in both if row.turn in turns], resamples)
        for key, turns in TURNS.items()
    }
    counts = {"questions": _questions(own), "graded": _questions([row for row, _ in both])}
    return {"model": name, "other": other, **counts, **with_interval(estimates)}
