"""The columns of the result table, once, for the terminal and for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

__all__ = [
    "Column", "COLUMNS", "columns", "ESTIMATES", "terminal_table", "display_name", "plain_name", "main_student",
    "format_estimate", "number",
]  # fmt: skip

MISSING = "not measured"
DISPLAY_NAMES = {
    "teacher": "teacher",
    "pruned": "pruned",
    "dsft": "dSFT",
    "ddpo": "dDPO",
    "dadpo": "daDPO",
    "reference": "reference",
}

TEACHER = "teacher"
OURS = "dadpo"
# For page one, whose reader knows no names of methods.
PLAIN_NAMES = {
    "teacher": "Teacher",
    "pruned": "Cut smaller, not yet trained",
    "initial": "Small model, not yet trained",
    "dsft": "Trained on the teacher's answers",
    "ddpo": "… then on preferences",
    "dadpo": "… and on the teacher's odds",
}


@dataclass(frozen=True)
class Column:
    """One column of the result table.

    Attributes:
        key: the summary's key; `key_low` and `key_high` bound its 95 % interval where there is one.
        label: the heading.
        unit: what the number counts, as printed below the heading.
        better: which direction is better, None where neither is.
        digits: decimals after scaling.
        scale: what the stored number is multiplied with for display (100 for a share in per cent).
        meaning: one sentence for the reader.
    """

    key: str
    label: str
    unit: str
    better: Literal["lower", "higher"] | None
    digits: int
    scale: float
    meaning: str


COLUMNS = (
    Column("parameters", "Size", "million", None, 1, 1e-6, "Parameters; shared ones count once."),
    Column("prompts", "Prompts", "compared on", None, 0, 1.0, "Prompts that took no part in training."),
    Column("finished", "Finished", "% of answers", "higher", 0, 100.0, "Share that ended before the length cap."),
    Column("mean_tokens", "Length", "tokens", None, 1, 1.0, "Mean length of an answer; longer is not better."),
    Column("repetition", "Repetition", "%", "lower", 1, 100.0, "How much of an answer repeats itself."),
    Column(
        "teacher_nll", "Teacher NLL", "nats/token", "lower", 3, 1.0,
        "How improbable the teacher finds the model's own fresh answers. Dull or looping text can score low too, "
        "even below the teacher's own value, so read it beside repetition and length.",
    ),
    Column(
        "forward_kl", "Forward KL", "nats/token", "lower", 3, 1.0,
        "KL(teacher || model) on the teacher's answers: how much of what the teacher does the model misses.",
    ),
    Column(
        "reverse_kl", "Reverse KL", "nats/token", "lower", 3, 1.0,
        "KL(model || teacher) on the model's own fresh answers: how much it does that the teacher would not.",
    ),
)  # fmt: skip
DISTINCT = (
    Column(
        "distinct_1", "Distinct-1", "% of tokens", None, 0, 100.0,
        "Share of an answer's tokens that are new to it; falls with length, so read it beside the length.",
    ),
    Column(
        "distinct_2", "Distinct-2", "% of pairs", None, 0, 100.0,
        "The same for pairs of neighbouring tokens.",
    ),
)  # fmt: skip
"""Shown on the page alone, of evaluations that measured them: the terminal has no room."""
ESTIMATES = tuple(column for column in COLUMNS if column.key in ("forward_kl", "reverse_kl", "teacher_nll"))


def columns(summary: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """The columns of the page's table: the distinct shares stand before the distances, where they were measured."""
    measured = tuple(column for column in DISTINCT if any(column.key in row for row in summary))
    place = next(at for at, column in enumerate(COLUMNS) if column.key == "teacher_nll")
    return (*COLUMNS[:place], *measured, *COLUMNS[place:])


def display_name(model: str) -> str:
    """The name as papers spell it, or the name itself; further rounds are called so.

    Example:
        >>> display_name("dadpo-round2")
        'daDPO, round 2'
    """
    name, found, number = model.rpartition("-round")
    if found and number.isdecimal():
        return f"{display_name(name)}, round {number}"
    return DISPLAY_NAMES.get(model, model)


def plain_name(model: str) -> str:
    """What was done to a student, for somebody who knows no names of methods; its own name where nothing is known.

    Example:
        >>> plain_name("dsft"), plain_name("my-run-round2")
        ("Trained on the teacher's answers", 'my-run, round 2')
    """
    name, found, number = model.rpartition("-round")
    if found and number.isdecimal():
        return f"{plain_name(name)}, round {number}"
    return PLAIN_NAMES.get(model, display_name(model))


def main_student(names: Sequence[str]) -> str | None:
    """The student that an experiment is about: daDPO's of the last round where there is one, else the last named."""
    students = [name for name in names if name != TEACHER]
    ours = [name for name in students if name.split("-round")[0] == OURS]
    return (ours or students)[-1] if students else None


def number(row: Mapping[str, Any], key: str) -> float | None:
    """The number under a key, non-finite ones included; None when it is absent or no number."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def format_number(value: float | None, column: Column) -> str:
    """One number in a column's format; what is missing or not finite is said in words or as nan, inf."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    return f"{value * column.scale:.{column.digits}f}"


def format_interval(row: Mapping[str, Any], column: Column) -> str:
    """`[low, high]`, or nothing when neither bound was given."""
    low, high = number(row, f"{column.key}_low"), number(row, f"{column.key}_high")
    if low is None and high is None:
        return ""
    return f"[{format_number(low, column)}, {format_number(high, column)}]"


def format_estimate(row: Mapping[str, Any], column: Column) -> str:
    """A number with its interval: `1.23 [1.10, 1.37]`."""
    return f"{format_number(number(row, column.key), column)} {format_interval(row, column)}".rstrip()


def terminal_table(summary: list[dict[str, Any]]) -> Table:
    """The result table for the terminal; nothing in the rows is read as markup."""
    table = Table(
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        caption_justify="left",
        caption="In brackets: 95 % intervals; where two overlap, the run does not tell the models apart.\n"
        "↓ lower is better, ↑ higher is better.",
    )
    table.add_column("Model", no_wrap=True)
    arrows = {"lower": " ↓", "higher": " ↑", None: ""}
    for column in COLUMNS:
        table.add_column(Text(f"{column.label}{arrows[column.better]}\n{column.unit}"), justify="right")
    for row in summary:
        # the interval below its number keeps the table within a hundred letters
        cells = [format_estimate(row, column).replace(" [", "\n[") for column in COLUMNS]
        table.add_row(Text(display_name(str(row.get("model", MISSING)))), *map(Text, cells))
    return table
