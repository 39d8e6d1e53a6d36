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
    questions = sorted({row.question_id for row in rows})
    counts = {
        "questions": len(questions),
        "unread": len(rows) - len(graded),
        "empty": sum(row.graded_by == "rule" for row in rows),
    }

    def mean(units: list[GradeRow], number: Number) -> Interval | None:
        return _mean_by_question(questions, [(row.question_id, float(number(row))) for row in units], resamples)

    estimates = {
        name: mean([row for row in graded if row.turn in turns], lambda row: row.grade or 0)
        for name, turns in TURNS.items()
    }
    for turn in (1, 2):
        estimates[f"mean_tokens_{turn}"] = mean([row for row in rows if row.turn == turn], lambda row: row.tokens)
    estimates["finished"] = mean(rows, lambda row: row.finished)
    return {**said, **counts, **with_interval(estimates)}


def _mean_by_question(questions: list[int], numbers: list[tuple[int, float]], resamples: int) -> Interval | None:
    """The mean of numbers that belong to questions; a question without any weighs nothing. None of no numbers."""
    if not numbers:
        return None
    place = {question: at for at, question in enumerate(questions)}
    sums, counts = [0.0] * len(questions), [0] * len(questions)
    for question, number in numbers:
        sums[place[question]] += number
        counts[place[question]] += 1
    return ratio_interval(sums, counts, resamples=resamples)


def _difference(name: str, own: list[GradeRow], other: str, theirs: list[GradeRow], resamples: int) -> dict[str, Any]:
    """`name` minus `other` over the answers that have a grade on both sides."""
    by_unit = {(row.question_id, row.turn): row.grade for row in theirs}
    pairs = [(row, by_unit[row.question_id, row.turn]) for row in own]
    both = [(row, float(row.grade - grade)) for row, grade in pairs if row.grade is not None and grade is not None]
    questions = sorted({row.question_id for row in own})
    estimates = {
        key: _mean_by_question(questions, [(row.question_id, gap) for row, gap in both if row.turn in turns], resamples)
        for key, turns in TURNS.items()
    }
    return {"model": name, "other": other, "questions": len(questions), **with_interval(estimates)}
