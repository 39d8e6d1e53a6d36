"""Five conversations chosen by a rule that does not flatter: from the student's nearest answer to its farthest."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import Message, ResponseRow
from lightning_dadpo.errors import DataError
from lightning_dadpo.reports.table import TEACHER

__all__ = ["Pick", "Shown", "RULE", "picks", "read_own_distances", "shown"]

PLACES = (
    (0.0, "nearest"), (0.25, "quarter"), (0.5, "middle"), (0.75, "three quarters"),
    (1.0, "farthest"),
)  # fmt: skip
RULE = (
    "Chosen by a fixed rule: all {prompts} prompts in the order of the student's distance on its own answer; shown are "
    "the nearest, those at a quarter, at the middle and at three quarters of that order, and the farthest, each with "
    "its distance."
)
JUDGED = {"win": "judge for the student", "tie": "judge undecided", "lose": "judge for the teacher"}
PROMPT_LETTERS, ANSWER_LETTERS = 100, 140


@dataclass(frozen=True)
class Pick:
    """A prompt by its place in the order: `distance` is the student's reverse KL on it, nats/token."""

    prompt_id: str
    place: str
    distance: float


@dataclass(frozen=True)
class Shown:
    """A picked conversation as page one has room for it.

    Attributes:
        pick: which it is. prompt: the last question. before: what stood in front of it, in a few words.
        judged: whom a judge that is believed prefers, in a few words; empty where none was asked.
        teacher, student: their answers.
    """

    pick: Pick
    prompt: str
    before: str
    judged: str
    teacher: str
    student: str


def read_own_distances(folder: Path) -> dict[str, dict[str, float]]:
    """Model -> prompt id -> reverse KL on the model's own answer, nats/token.

    Raises:
        ArtifactError: the folder is no finished evaluation. DataError: it has no rows, or one is broken (file:line).
    """
    read_manifest(folder, "evaluation")
    path = folder / "rows.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    found: dict[str, dict[str, float]] = {}
    with path.open(encoding="utf-8") as lines:
        for line_number, line in enumerate(lines, 1):
            if line.strip():
                model, prompt_id, distance = _row(line, f"{path}:{line_number}")
                found.setdefault(model, {})[prompt_id] = distance
    return found


def _row(line: str, place: str) -> tuple[str, str, float]:
    try:
        row = json.loads(line)
        distance = float(row["reverse_kl"]) / int(row["tokens"])
        return str(row["model"]), str(row["prompt_id"]), distance
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        raise DataError(f"{place}: expected `model`, `prompt_id`, `reverse_kl` and `tokens` above 0") from None


def picks(distances: Mapping[str, float]) -> list[Pick]:
    """The prompts at fixed places of the order of distances; fewer where there are fewer prompts.

    Equal distances are put in the order of their prompts' names, so that the same numbers pick the same prompts.
    """
    order = sorted((value, name) for name, value in distances.items() if math.isfinite(value))
    found: dict[str, Pick] = {}
    for share, place in PLACES if order else ():
        value, name = order[round(share * (len(order) - 1))]
        found.setdefault(name, Pick(name, place, value))
    return list(found.values())


def shown(
    chosen: Sequence[Pick],
    answers: Mapping[str, Mapping[str, ResponseRow]],
    student: str,
    verdicts: Mapping[str, str],
) -> list[Shown]:
    """The picked prompts whose answers by teacher and student are there.

    Args:
        chosen: the prompts.
        answers: model -> prompt id -> response.
        student: whose answers stand beside the teacher's.
        verdicts: prompt id -> what the comparison with the teacher was for the student: win, tie or lose.
    """
    return [
        _shown(pick, answers[TEACHER][pick.prompt_id], answers[student][pick.prompt_id], verdicts.get(pick.prompt_id))
        for pick in chosen
        if all(pick.prompt_id in answers.get(name, {}) for name in (TEACHER, student))
    ]


def _shown(pick: Pick, teacher: ResponseRow, student: ResponseRow, verdict: str | None) -> Shown:
    turns = teacher.messages
    return Shown(
        pick,
        prompt=short(turns[-1].content, PROMPT_LETTERS),
        before=_before(turns[:-1]),
        judged=JUDGED.get(verdict or "", ""),
        teacher=_answer(teacher),
        student=_answer(student),
    )


def _before(turns: Sequence[Message]) -> str:
    """What came before the question, in a few words."""
    system = any(turn.role == "system" for turn in turns)
    rest = sum(turn.role != "system" for turn in turns)
    said = ["with instructions"] if system else []
    said += [f"after {rest} earlier messages"] if rest else []
    return ", ".join(said)


def _answer(row: ResponseRow) -> str:
    mark = "" if row.finish_reason == "stop" else " [cut]"
    return (short(row.text, ANSWER_LETTERS - len(mark)) or "(nothing)") + mark


def short(text: str, limit: int) -> str:
    """One line as wide as `limit` letters at most, cut at a space where there is one near; no control characters."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    room, cut = limit, len(plain)
    for place, letter in enumerate(plain):
        room -= 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if room < 0:
            cut = place
            break
    if cut == len(plain):
        return plain
    space = plain.rfind(" ", max(cut - 30, 0), cut)
    return f"{plain[: cut if space <= 0 else space]} …"
