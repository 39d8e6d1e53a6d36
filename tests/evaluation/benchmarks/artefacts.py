"""Artefacts of responses that were written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import draft
from lightning_dadpo.data.rows import FinishReason, Message, ResponseRow, RowWriter

__all__ = ["SAMPLER", "responses"]

SAMPLER: dict[str, Any] = {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 64, "seed": 0}


def responses(
    folder: Path,
    said: Mapping[str, tuple[str, str]],
    finish_reason: FinishReason = "stop",
    sampler: Mapping[str, Any] = SAMPLER,
) -> str:
    """An artefact of kind "responses" with a prompt and its response by prompt id."""
    made_from = {"model": folder.name, "sampler": dict(sampler)}
    with draft(folder, "responses", made_from) as work, RowWriter(work.path / "rows.jsonl") as writer:
        for prompt_id, (prompt, text) in said.items():
            ids = list(range(3, 3 + len(text.split())))
            messages = [Message("user", prompt)]
            writer.write(ResponseRow(prompt_id, "heldout", messages, [1], ids, text, finish_reason, None))
    return str(folder)
