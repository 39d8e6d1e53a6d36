"""Pairs of responses that people have judged, in the forms in which PandaLM and LLMBar are published.

PandaLM (arXiv 2306.05087, `testset-v1.json`): three labels a pair, each 0 (equally good), 1 or 2.
LLMBar (arXiv 2310.07641): one label a pair, 1 or 2, on which its authors agree; in the adversarial parts the worse
response looks better.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated_dataclass

from lightning_dadpo.data.rows import Message, parse_row
from lightning_dadpo.errors import DataError
from lightning_dadpo.evaluation.judges import Comparison, Preference
from lightning_dadpo.evaluation.people_files import PeopleFiles, part_of

__all__ = ["PANDALM", "LLMBAR", "JudgedPair", "read_people", "majority"]

PANDALM = "PandaLM"
LLMBAR = "LLMBar"

PREFERENCES: tuple[Preference, ...] = ("tie", "first", "second")
"""What labels 0, 1 and 2 say."""


@dataclass(frozen=True)
class JudgedPair:
    """Two responses and what people say of them.

    Attributes:
        kind: PandaLM or LLMBar.
        part: the file's name without its ending.
        comparison: the pair, in the order in which people saw it.
        people: what they prefer.
    """

    kind: str
    part: str
    comparison: Comparison
    people: Preference


FREE = ConfigDict(extra="ignore", strict=True)


@validated_dataclass(frozen=True, config=FREE)
class _PandaLM:
    instruction: str
    input: str
    response1: str | bool
    response2: str | bool
    annotator1: Literal[0, 1, 2]
    annotator2: Literal[0, 1, 2]
    annotator3: Literal[0, 1, 2]


@validated_dataclass(frozen=True, config=FREE)
class _LLMBar:
    input: str
    output_1: str
    output_2: str
    label: Literal[1, 2]


Row = TypeVar("Row", _PandaLM, _LLMBar)


def read_people(files: PeopleFiles) -> list[JudgedPair]:
    """Every pair of every file, in their order.

    Raises:
        DataError: a file is missing, is no such JSON, a row of it is not in that form (file and row first), or people
            call every pair of it a tie.
    """
    pairs = []
    if (path := files.pandalm) is not None:
        pairs += _some_untied(path, [_from_pandalm(part_of(path), *row) for row in enumerate(_read(path, _PandaLM))])
    for path in files.llmbar:
        pairs += _some_untied(path, [_from_llmbar(part_of(path), *row) for row in enumerate(_read(path, _LLMBar))])
    return pairs


def _some_untied(path: str, pairs: list[JudgedPair]) -> list[JudgedPair]:
    if all(pair.people == "tie" for pair in pairs):
        raise DataError(f"{path}: people call every pair a tie, expected some of which they prefer one response")
    return pairs


def majority(labels: Sequence[Preference]) -> Preference:
    """What more than half of the people say; a tie where no answer has such a majority.

    Example:
        >>> majority(["first", "tie", "first"]), majority(["first", "tie", "second"])
        ('first', 'tie')
    """
    most, times = Counter(labels).most_common(1)[0]
    return most if 2 * times > len(labels) else "tie"


def _from_pandalm(part: str, number: int, row: _PandaLM) -> JudgedPair:
    # the instruction and what it is about are one message, as a person would write them
    question = f"{row.instruction}\n\n{row.input}" if row.input.strip() else row.instruction
    # a spreadsheet on the way has made booleans of the answers True and False
    comparison = Comparison(f"{part}/{number}", [Message("user", question)], str(row.response1), str(row.response2))
    labels = [PREFERENCES[label] for label in (row.annotator1, row.annotator2, row.annotator3)]
    return JudgedPair(PANDALM, part, comparison, majority(labels))


def _from_llmbar(part: str, number: int, row: _LLMBar) -> JudgedPair:
    comparison = Comparison(f"{part}/{number}", [Message("user", row.input)], row.output_1, row.output_2)
    return JudgedPair(LLMBAR, part, comparison, PREFERENCES[row.label])


def _read(path: str, form: type[Row]) -> list[Row]:
    try:
        found: Any = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(found, list) or not found:
        raise DataError(f"{path}: expected a JSON list of pairs")
    wanted = form.__name__[1:]
    try:
        return [parse_row(json.dumps(row), form, f"{path}, pair {number}") for number, row in enumerate(found)]
    except DataError as error:
        raise DataError(f"{error}; expected the form of {wanted}") from error
