"""Artefacts of responses that were written by hand, and intervals that are drawn one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lightning_dadpo.data.artifacts import draft
from lightning_dadpo.data.rows import FinishReason, Message, ResponseRow, RowWriter

__all__ = ["SAMPLER", "expected_ratio", "responses", "trained_prompts"]

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


def trained_prompts(path: Path, *prompts: str) -> str:
    """A prompt file with t0, t1 ... that models are said to have been trained on."""
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    rows = [{"prompt_id": f"t{at}", "messages": messages} for at, messages in enumerate(turns)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def expected_ratio(numerators: list[float], denominators: list[float], resamples: int) -> tuple[float, float, float]:
    """Ratio of sums and its percentile interval, prompt by prompt."""
    draws = np.random.default_rng(0).integers(0, len(numerators), size=(resamples, len(numerators)))
    ratios = sorted(sum(numerators[at] for at in row) / sum(denominators[at] for at in row) for row in draws)

    def quantile(share: float) -> float:
        at = share * (resamples - 1)
        low = int(at)
        return ratios[low] + (at - low) * (ratios[min(low + 1, resamples - 1)] - ratios[low])

    return sum(numerators) / sum(denominators), quantile(0.025), quantile(0.975)
