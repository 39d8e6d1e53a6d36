"""Documents of lm-eval's tasks that stand in the training data, and those that are left to ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lightning_dadpo.data.rows import Message
from lightning_dadpo.errors import DataError
from lightning_dadpo.evaluation.left_out import leave_out

__all__ = ["Selection", "not_trained_on"]


@dataclass(frozen=True)
class Selection:
    """What is asked of tasks of which something may have been trained on.

    Attributes:
        asked: by task, places of the documents that are asked, from 0; at least one each.
        left_out: of the others, by task and place, what they have in common with the training data.
    """

    asked: dict[str, list[int]]
    left_out: dict[str, str]


def not_trained_on(tasks: Mapping[str, Any], limit: int | None, trained_on: Sequence[str]) -> Selection:
    """Leave out what stands in the training data, word for word or nearly (`data.overlap`).

    Args:
        tasks: lm-eval's own objects by their names.
        limit: the first so many documents of each are looked at; by default all.
        trained_on: prompt files (.jsonl), or artefacts of kind "responses" or "pairs".

    Raises:
        ArtifactError, ConfigError: a file or folder of the training data is none of these.
        DataError: nothing is left of a task, or a document asks something else than one text.
    """
    questions = {
        name: [_question(name, task, document) for document in islice(task.eval_docs, limit)]
        for name, task in tasks.items()
    }
    asked = {_named(name, at): [Message("user", text)] for name in tasks for at, text in enumerate(questions[name])}
    found = leave_out(asked, trained_on, f"documents of {', '.join(tasks)}")
    places = {
        name: [at for at in range(len(texts)) if _named(name, at) not in found] for name, texts in questions.items()
    }
    if empty := [name for name, kept in places.items() if not kept]:  # which the library would take for all of them
        raise DataError(f"lm-eval, task {empty[0]}: all of its documents stand in the training data; leave it out")
    return Selection(places, {name: str(overlap) for name, overlap in found.items()})


def _named(task: str, at: int) -> str:
    return f"{task} {at}"


def _question(name: str, task: Any, document: Any) -> str:
    """What a document asks: what the task says it is known by, or else its text without its answer.

    `Task.doc_to_decontamination_query` is the same in name, but reads what a template comes to as a Python literal,
    so it breaks off at ordinary text.
    """
    known_by = task.config.doc_to_decontamination_query
    text = task.resolve_field(document, known_by) if isinstance(known_by, str) else task.doc_to_text(document)
    if not isinstance(text, str):
        raise DataError(
            f"lm-eval, task {name}: a document asks {type(text).__name__}, expected one text, so it cannot be compared "
            "with training data; run this task without trained_on"
        )
    return text
