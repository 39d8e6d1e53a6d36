"""Responses as coloured text: where the teacher finds a token more probable than the student does, and where less.

Colour is never alone: a solid line stands below what the teacher finds more probable, a dotted one below what the
student does, the thicker the more; and every token's numbers stand in its tooltip.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_dadpo.data.analysis import TokenMapRow, Unit
from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import Message, read_rows
from lightning_dadpo.errors import DataError
from lightning_dadpo.reports.table import TEACHER, display_name, main_student

__all__ = ["MapSection", "StudentMaps", "PromptMaps", "TokenMap", "Token", "STEPS", "step_of", "read_maps", "students"]

FILE = "token_maps.jsonl"
STEPS = (0.5, 1.0, 2.0, 4.0)
"""Differences in nats from which a token is marked, and marked more strongly."""
MOST_UNITS, MOST_STRONGEST = 240, 6
JOINERS = "\u200c\u200d"
"""Invisible, and needed inside words of some scripts and inside emoji."""


@dataclass(frozen=True)
class Token:
    """One unit of text as it is drawn.

    Attributes:
        parts: text, and marks for what cannot be seen (`is_mark`).
        style: CSS classes: t1 to t4 where the teacher finds it more probable, s1 to s4 where the student does.
        title: every number.
    """

    parts: list[tuple[str, bool]]
    style: str
    title: str


@dataclass(frozen=True)
class TokenMap:
    """One response between the teacher and one student.

    Attributes:
        title: whose response it is. tokens: what is drawn of it. facts: its sums.
        head: columns of `strongest`, each with a word below. strongest: the units that differ most, in the order of
            the text.
        left_out: units that are not drawn.
    """

    title: str
    tokens: list[Token]
    facts: str
    head: list[tuple[str, str]]
    strongest: list[list[str]]
    left_out: int


@dataclass(frozen=True)
class PromptMaps:
    """A prompt with the maps of the student's own answer and of the teacher's."""

    messages: list[Message]
    maps: list[TokenMap]


@dataclass(frozen=True)
class StudentMaps:
    """Every map of one student."""

    model: str
    prompts: list[PromptMaps]


@dataclass(frozen=True)
class MapSection:
    """The student that the experiment is about, and the others."""

    main: StudentMaps | None
    others: list[StudentMaps]


def step_of(difference: float) -> str:
    """The CSS class of log pi_te - log pi_student: `t` where positive, `s` where negative, with the step that it is on.

    Example:
        >>> step_of(-2.5), step_of(0.4), step_of(4.0)
        ('s3', '', 't4')
    """
    step = sum(abs(difference) >= bound for bound in STEPS)
    return f"{'t' if difference > 0 else 's'}{step}" if step else ""


def read_maps(folder: Path) -> list[TokenMapRow]:
    """The maps of an evaluation; none for one that was made before there were any.

    Raises:
        ArtifactError: the folder is no finished evaluation. DataError: a row is none, or lacks a model's numbers.
    """
    read_manifest(folder, "evaluation")
    path = folder / FILE
    rows = list(read_rows(path, TokenMapRow)) if path.is_file() else []
    for number, row in enumerate(rows, 1):
        wanted = {TEACHER, row.sampled_by}
        if lacking := sorted(wanted - row.log_probs.keys()):
            raise DataError(f"{path}:{number}: log_probs: nothing of {lacking[0]}")
    return rows


def students(rows: Sequence[TokenMapRow]) -> MapSection:
    """The maps by student; those of daDPO's last round come first, where there is one, else the last student's."""
    names = list(dict.fromkeys(row.sampled_by for row in rows if row.sampled_by != TEACHER))
    main = main_student(names)
    made = {name: _student(name, rows) for name in names}
    return MapSection(made.get(main) if main else None, [one for name, one in made.items() if name != main])


def _student(name: str, rows: Sequence[TokenMapRow]) -> StudentMaps:
    prompts: dict[str, PromptMaps] = {}
    own_first = sorted(rows, key=lambda row: row.sampled_by != name)
    for row in own_first:
        if row.sampled_by in (name, TEACHER) and name in row.log_probs:
            prompts.setdefault(row.prompt_id, PromptMaps(row.messages, [])).maps.append(_map(row, name))
    return StudentMaps(display_name(name), list(prompts.values()))


def _map(row: TokenMapRow, student: str) -> TokenMap:
    models = list(dict.fromkeys([TEACHER, *([row.reference] if row.reference else []), student]))
    models = [model for model in models if model in row.log_probs]
    sums = {model: _unit_sums(row, row.log_probs[model]) for model in models}
    differences = [te - st for te, st in zip(sums[TEACHER], sums[student], strict=True)]
    by_token = [te - st for te, st in zip(row.log_probs[TEACHER], row.log_probs[student], strict=True)]
    drawn = row.units[:MOST_UNITS]
    titles = _titles(row.units, {_named(model, row): values for model, values in sums.items()}, differences, by_token)
    worst = sorted(range(len(row.units)), key=lambda at: -abs(differences[at]))[:MOST_STRONGEST]
    marked = sorted(at for at in worst if step_of(differences[at]))
    whose = "The teacher's answer" if row.sampled_by == TEACHER else f"The answer of {display_name(student)}"
    return TokenMap(
        title=whose,
        tokens=[
            Token(parts(unit), " ".join(filter(None, (step_of(differences[at]), _kind(unit)))), titles[at])
            for at, unit in enumerate(drawn)
        ],
        facts=_facts(row, student, models, by_token),
        head=[("Token", ""), *((display_name(model), _role(model, row)) for model in models), ("Difference", "")],
        strongest=[
            [
                "".join(text for text, _ in parts(row.units[at])).strip() or "(space)",
                *(signed(sums[model][at], plus=False) for model in models),
                signed(differences[at]),
            ]
            for at in marked
        ],
        left_out=len(row.units) - len(drawn),
    )


def _unit_sums(row: TokenMapRow, values: Sequence[float]) -> list[float]:
    """One number a unit: a character of three tokens has the sum of their log-probs."""
    found, at = [], 0
    for unit in row.units:
        found.append(math.fsum(values[at : at + unit.tokens]))
        at += unit.tokens
    return found


def _role(model: str, row: TokenMapRow) -> str:
    return "reference" if model == row.reference else ""


def _named(model: str, row: TokenMapRow) -> str:
    return f"{display_name(model)} (reference)" if _role(model, row) else display_name(model)


def signed(value: float, plus: bool = True) -> str:
    """Two decimals with a sign as it is printed, and no minus before a zero."""
    text = f"{value:+.2f}" if plus else f"{value:.2f}"
    if float(text) == 0:
        text = "0.00"
    return text.replace("-", "\u2212")


def _titles(
    units: Sequence[Unit], sums: dict[str, list[float]], differences: Sequence[float], by_token: Sequence[float]
) -> list[str]:
    said, at = [], 0
    for place, unit in enumerate(units):
        each = "; ".join(f"{name} {signed(values[place], plus=False)}" for name, values in sums.items())
        words = f"{signed(differences[place])} nats: {each}"
        if unit.tokens > 1:
            words += f" ({unit.tokens} tokens: {', '.join(signed(one) for one in by_token[at : at + unit.tokens])})"
        said.append(words + (" (bytes that are no whole character)" if unit.kind == "broken" else ""))
        at += unit.tokens
    return said


def _facts(row: TokenMapRow, student: str, models: Sequence[str], by_token: Sequence[float]) -> str:
    whole = ", ".join(f"{_named(model, row)} {signed(math.fsum(row.log_probs[model]), plus=False)}" for model in models)
    total, count = math.fsum(by_token), len(by_token)
    ended = "" if row.finish_reason == "stop" else ", cut at the length cap"
    return (
        f"{count} token{'' if count == 1 else 's'}{ended}. Log-probability of all of it, nats: {whole}. "
        f"The differences sum to {signed(total)}, {signed(total / max(count, 1))} a token."
    )


def _kind(unit: Unit) -> str:
    return "" if unit.kind == "text" else unit.kind


def parts(unit: Unit) -> list[tuple[str, bool]]:
    """The unit's text, with a mark (True) for every character that cannot be seen."""
    if not unit.text:
        return [("∅", True)]
    found: list[tuple[str, bool]] = []
    for letter in unit.text:
        if letter in "\n\t":
            found.append(("↵" if letter == "\n" else "⇥", True))
        if letter in "\n\t" or _can_be_seen(letter) or (letter in JOINERS and len(unit.text) > 1):
            if found and not found[-1][1]:
                found[-1] = (found[-1][0] + letter, False)
            else:
                found.append((letter, False))
        else:
            found.append((f"U+{ord(letter):04X}", True))
    return found


def _can_be_seen(letter: str) -> bool:
    """Neither a control character nor one that turns the text around it."""
    return unicodedata.category(letter) not in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
