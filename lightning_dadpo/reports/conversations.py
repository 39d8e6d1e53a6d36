"""Held-out prompts with the answers of every model beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_dadpo.data.rows import Message, ResponseRow
from lightning_dadpo.reports.table import display_name

__all__ = ["Answer", "Conversation", "conversations", "MOST"]

MOST = 12
# Letters of an answer that stand on the page before the rest goes behind a fold.
FOLD_AFTER, FOLD_LEAST = 480, 160


@dataclass(frozen=True)
class Answer:
    """What one model said: the text that stands open, the rest behind a fold, and how it ended."""

    model: str
    opening: str
    rest: str
    facts: str


@dataclass(frozen=True)
class Conversation:
    """A prompt with its answers, the teacher's first."""

    messages: list[Message]
    answers: list[Answer]


def _answer(model: str, row: ResponseRow | None) -> Answer:
    if row is None:
        return Answer(display_name(model), "", "", "no answer to this prompt was recorded")
    opening, rest = row.text, ""
    if len(row.text) > FOLD_AFTER + FOLD_LEAST:
        cut = row.text.rfind(" ", FOLD_AFTER - 80, FOLD_AFTER)
        cut = FOLD_AFTER if cut < 0 else cut
        opening, rest = row.text[:cut], row.text[cut:].lstrip()
    ended = "ended by itself" if row.finish_reason == "stop" else "cut at the length cap"
    count = len(row.token_ids)
    return Answer(display_name(model), opening, rest, f"{count} token{'' if count == 1 else 's'}, {ended}")


def conversations(answers: Mapping[str, Mapping[str, ResponseRow]]) -> tuple[list[Conversation], int]:
    """The first held-out prompts in the order of the teacher's file, and how many there are in all.

    Args:
        answers: model -> prompt id -> response; the teacher is put first.
    """
    models = sorted(answers, key=lambda model: model != "teacher")
    prompts: dict[str, ResponseRow] = {}
    for model in models:
        for prompt_id, row in answers[model].items():
            prompts.setdefault(prompt_id, row)
    shown = [
        Conversation(row.messages, [_answer(model, answers[model].get(prompt_id)) for model in models])
        for prompt_id, row in list(prompts.items())[:MOST]
    ]
    return shown, len(prompts)
