"""The distances of page one: each model's dot and interval on a scale that begins at the teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_dadpo.reports.table import COLUMNS, TEACHER, Column, display_name, format_number, number, plain_name

__all__ = ["Strip", "StripRow", "StripTable", "strip_table", "FORWARD", "REVERSE"]

FORWARD = next(column for column in COLUMNS if column.key == "forward_kl")
REVERSE = next(column for column in COLUMNS if column.key == "reverse_kl")
FINISHED = next(column for column in COLUMNS if column.key == "finished")
LENGTH = next(column for column in COLUMNS if column.key == "mean_tokens")
MOST = 7


@dataclass(frozen=True)
class Strip:
    """One estimate: as text, and where its dot and interval lie, in hundredths of the scale; None without them."""

    value: str
    interval: str
    dot: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class StripRow:
    """One student; `shape` is main, start or other."""

    name: str
    paper_name: str
    shape: str
    strips: tuple[Strip, Strip]
    finished: str
    length: str


@dataclass(frozen=True)
class StripTable:
    """Students in the order of the summary, the teacher's own habits, the scales' ends and what is left out."""

    rows: list[StripRow]
    teacher_finished: str
    teacher_length: str
    ends: tuple[str, str]
    left_out: int


def strip_table(summary: Sequence[Mapping[str, Any]], main: str | None) -> StripTable | None:
    """The students' distances; the first, the last ones and the one in question where there are many.

    Args:
        summary: a row a model, the untrained student first.
        main: the student in question.
    """
    students = [row for row in summary if row.get("model") != TEACHER]
    if not students or main is None:
        return None
    kept = _kept(students, main)
    scales = [_scale(kept, column) for column in (FORWARD, REVERSE)]
    teacher: Mapping[str, Any] = next((row for row in summary if row.get("model") == TEACHER), {})
    return StripTable(
        rows=[_row(row, main, row is students[0], scales) for row in kept],
        teacher_finished=_plain(teacher, FINISHED),
        teacher_length=_plain(teacher, LENGTH),
        ends=(f"{scales[0]:.2g}", f"{scales[1]:.2g}"),
        left_out=len(students) - len(kept),
    )


def _kept(students: Sequence[Mapping[str, Any]], main: str) -> list[Mapping[str, Any]]:
    needed = [row for row in students if row is students[0] or row.get("model") == main]
    others = [row for row in students if row not in needed][: MOST - len(needed)]
    return [row for row in students if row in needed or row in others]


def _scale(rows: Sequence[Mapping[str, Any]], column: Column) -> float:
    """The end of the scale: a little beyond the farthest finite bound."""
    found = [number(row, key) for row in rows for key in (column.key, f"{column.key}_high")]
    finite = [value for value in found if value is not None and math.isfinite(value) and value > 0]
    return max(finite, default=1.0) * 1.04


def _row(row: Mapping[str, Any], main: str, is_start: bool, scales: Sequence[float]) -> StripRow:
    name = str(row.get("model"))
    paper = display_name(name)
    plain = plain_name(name)
    return StripRow(
        name=plain,
        paper_name="" if paper in (plain, name) else paper,
        shape="main" if name == main else "start" if is_start else "other",
        strips=(_strip(row, FORWARD, scales[0]), _strip(row, REVERSE, scales[1])),
        finished=_plain(row, FINISHED),
        length=_plain(row, LENGTH),
    )


def _strip(row: Mapping[str, Any], column: Column, scale: float) -> Strip:
    value, low, high = (number(row, f"{column.key}{end}") for end in ("", "_low", "_high"))
    places = [_place(found, scale) for found in (value, low, high)]
    whole = None not in (places[1], places[2])
    interval = f"[{low:.2f}, {high:.2f}]" if whole else "no interval"
    said = f"{value:.2f}" if places[0] is not None else format_number(value, column)
    bounds = places[1:] if whole else [None, None]
    return Strip(said, interval, places[0], bounds[0], bounds[1])


def _place(value: float | None, scale: float) -> float | None:
    return round(100 * max(value, 0.0) / scale, 2) if value is not None and math.isfinite(value) else None


def _plain(row: Mapping[str, Any], column: Column) -> str:
    return format_number(number(row, column.key), column if column is FINISHED else _whole(column))


def _whole(column: Column) -> Column:
    from dataclasses import replace

    return replace(column, digits=0)
