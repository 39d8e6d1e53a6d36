"""Held-out prompts with the answers of every model beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_dadpo.data.rows import Message, ResponseRow
from lightning_dadpo.reports.table import display_name

__all__ = ["Answer", "Conversation", "conversations", "fold", "MOST"]

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
    opening, rest = fold(row.text)
    ended = "ended by itself" if row.finish_reason == "stop" else "cut at the length cap"
    count = len(row.token_ids)
    return Answer(display_name(model), opening, rest, f"{count} token{'' if count == 1 else 's'}, {ended}")


def fold(text: str) -> tuple[str, str]:
    """A long text cut at a space: what stands open and what goes behind a fold."""
    if len(text) <= FOLD_AFTER + FOLD_LEAST:
        return text, ""
    cut = text.rfind(" ", FOLD_AFTER - 80, FOLD_AFTER)
    cut = FOLD_AFTER if cut < 0 else cut
    return text[:cut], text[cut:].lstrip()


def conversations(
    answers: Mapping[str, Mapping[str, ResponseRow]], picked: Sequence[str] = ()
) -> tuple[list[Conversation], list[Conversation], int]:
    """Picked prompts, then the first ones in the order of the teacher's file, and how many there are in all.

    Args:
        answers: model -> prompt id -> response; the teacher is put first.
        picked: prompts that page one shows in part, in its order.
    """
    models = sorted(answers, key=lambda model: model != "teacher")
    prompts: dict[str, ResponseRow] = {}
    for model in models:
        for prompt_id, row in answers[model].items():
            prompts.setdefault(prompt_id, row)

    def whole(prompt_id: str) -> Conversation:
        said = [_answer(model, answers[model].get(prompt_id)) for model in models]
        return Conversation(prompts[prompt_id].messages, said)

    chosen = [whole(prompt_id) for prompt_id in picked if prompt_id in prompts]
    return chosen, [whole(prompt_id) for prompt_id in list(prompts)[:MOST]], len(prompts)
