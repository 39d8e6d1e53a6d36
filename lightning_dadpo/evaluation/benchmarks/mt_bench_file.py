"""MT-bench's questions (arXiv 2306.05685): two turns of one user, in eight categories.

They are no part of this package: `data/mt_bench/question.jsonl` of FastChat's `llm_judge` holds the 80 (Apache-2.0).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic.dataclasses import dataclass

from lightning_dadpo.data.artifacts import write_atomically
from lightning_dadpo.data.rows import STRICT, Message, PromptRow, parse_row
from lightning_dadpo.errors import DataError

__all__ = ["Question", "read_questions", "first_turn", "second_turn", "write_prompts"]


@dataclass(frozen=True, config=STRICT)
class Question:
    """One line of the file.

    Attributes:
        question_id: its number. category: writing, math ...
        turns: what the user says first, and then.
        reference: right answers to the two turns, where there are any; the grader is shown them.
    """

    question_id: int
    category: str
    turns: list[str]
    reference: list[str] | None = None

    def prompt_id(self, turn: int) -> str:
        """What a turn (1 or 2) is called in prompt files and responses."""
        return f"mt-bench-{self.question_id}/{turn}"


def read_questions(path: str | Path) -> list[Question]:
    """The file's questions, in its order.

    Raises:
        DataError: there is no such file, it is empty, or a line is not such a question (file:line first).
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected MT-bench's question.jsonl")
    questions: dict[int, Question] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                question = parse_row(line, Question, f"{path}:{number}")
                _check(question, f"{path}:{number}")
                if question.question_id in questions:
                    raise DataError(f"{path}:{number}: question_id {question.question_id} stands there already")
                questions[question.question_id] = question
    if not questions:
        raise DataError(f"{path}: holds no questions")
    return list(questions.values())


def _check(question: Question, place: str) -> None:
    if len(question.turns) != 2 or not all(turn.strip() for turn in question.turns):
        raise DataError(f"{place}: `turns`: expected two, each with text")
    if question.reference and len(question.reference) > 2:
        raise DataError(f"{place}: `reference`: {len(question.reference)} answers, expected one for each of two turns")


def first_turn(question: Question) -> PromptRow:
    """What a model is asked first."""
    return PromptRow(question.prompt_id(1), [Message("user", question.turns[0])], "mt-bench")


def second_turn(question: Question, answer: str) -> PromptRow:
    """What it is asked then, behind its own first answer."""
    messages = [*first_turn(question).messages, Message("assistant", answer), Message("user", question.turns[1])]
    return PromptRow(question.prompt_id(2), messages, "mt-bench")


def write_prompts(path: Path, prompts: Sequence[PromptRow]) -> None:
    """A prompt file for the sampler."""
    write_atomically(path, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in prompts))
