"""The sentences that page one opens with: what was made, how near it comes, what the method added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_dadpo.reports.costs import CostRow
from lightning_dadpo.reports.inputs import Nearness, ReportInputs
from lightning_dadpo.reports.strips import FORWARD
from lightning_dadpo.reports.table import TEACHER, display_name, number, plain_name

MOST = 2
"""More trainings than this are not described one by one."""

__all__ = ["made", "near", "beside", "share_words"]


def made(inputs: ReportInputs, student: str | None, costs: Sequence[CostRow], train_pairs: int | None) -> str:
    """What was distilled into what, and how much smaller that is."""
    if student is None:
        return "No student was measured yet."
    teacher = f"{inputs.teacher_name}, the teacher," if inputs.teacher_name else "The teacher"
    origin = inputs.student_origin or "a smaller student"
    _, found, rounds = student.rpartition("-round")
    first = f" in round 1 of {rounds}" if found and rounds.isdigit() else ""
    pairs = f", trained on {train_pairs} pairs of answers{first}" if train_pairs else ""
    row = next((row for row in costs if row.label == "Parameters"), None)
    size = ""
    if row is not None and row.share[0].isdigit():
        size = f" The student has {row.share} of the teacher's parameters: {row.student} instead of {row.teacher}."
    return f"{teacher} was distilled into {origin}{pairs}.{size}"


def near(found: Sequence[Nearness], summary: Sequence[Mapping[str, Any]]) -> str:
    """How much of the untrained student's distance to the teacher the training took away."""
    start = next((str(row.get("model")) for row in summary if row.get("model") != TEACHER), None)
    one = next((one for one in found if one.other == start), None)
    if one is None or start is None:
        return "How much nearer the training brought the student to its teacher was not measured."
    rows = {str(row.get("model")): row for row in summary}
    before, after = (number(rows.get(name, {}), FORWARD.key) for name in (start, one.model))
    values = ""
    if before is not None and after is not None:
        values = f" ({before:.2f} before, {after:.2f} after, on the teacher's answers)"
    if one.share_high < 1:
        return f"Training took away {share_words(one)} of the distance to the teacher{values}."
    if one.share_low > 1:
        return f"Training took the student farther from the teacher than it was untrained{values}."
    return f"This run does not show that training brought the student nearer to the teacher{values}."


def share_words(one: Nearness) -> str:
    """The share of the other's distance that is gone, with its interval: `22 % [18, 25]`."""
    low, high = 1 - one.share_high, 1 - one.share_low
    digits = 0 if max(abs(low), abs(high)) >= 0.05 else 1
    return f"{100 * (1 - one.share):.{digits}f}\u00a0% [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def beside(found: Sequence[Nearness], summary: Sequence[Mapping[str, Any]]) -> str:
    """Whether the student comes nearer than the other trained ones, and by how much."""
    start = next((str(row.get("model")) for row in summary if row.get("model") != TEACHER), None)
    others = [one for one in found if one.other != start]
    if not others:
        return ""
    nearer = [one for one in others if one.difference_high < 0]
    farther = [one for one in others if one.difference_low > 0]
    same = [one for one in others if one not in nearer and one not in farther]
    said = []
    if nearer:
        gains = " and ".join(share_words(one) for one in nearer[:MOST]) if len(nearer) <= MOST else ""
        by = f" (by {gains} of {'that distance' if len(nearer) == 1 else 'those distances'})" if gains else ""
        said.append(f"nearer to the teacher than {_listed(nearer)}{by}")
    if farther:
        said.append(f"farther from the teacher than {_listed(farther)}")
    if same:
        said.append(f"not told apart by this run from {_listed(same)}")
    return f"The student is {'; '.join(said)}."


def _named(one: Nearness) -> str:
    plain, paper = plain_name(one.other), display_name(one.other)
    words = plain.lstrip("… ").removeprefix("then on ")
    if plain == paper:
        return f"“{paper}”"
    trained = words[0].lower() + words[1:]
    return f"the one {trained if trained.startswith('trained') else f'trained on {trained}'} ({paper})"


def _listed(found: Sequence[Nearness]) -> str:
    """The trainings by name; many are counted."""
    if len(found) > MOST:
        return f"{len(found)} of the other trainings ({', '.join(display_name(one.other) for one in found)})"
    names = [_named(one) for one in found]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
