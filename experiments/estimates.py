"""From evaluations of several seeds to estimates with intervals, and to differences paired by prompt.

A prompt is drawn with all its seeds, since one question's answers are not independent of one another.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["ESTIMATES", "Sums", "compared", "evaluated", "pooled", "rows_by_method", "single_seeds"]

ESTIMATES = {
    "finished": ("finished", None),
    "mean_tokens": ("tokens", None),
    "repetition": ("repeated", "ngrams"),
    "teacher_nll": ("teacher_nats", "tokens"),
    "forward_kl": ("forward_kl", "teacher_tokens"),
    "reverse_kl": ("reverse_kl", "tokens"),
}
"""Of an evaluation's rows: what is summed over what; None: over answers."""

Sums = Mapping[str, Mapping[str, float]]
"""Prompt id -> sums of an evaluation's columns over its seeds."""

Row = dict[str, Any]


def evaluated(summary: Path) -> list[Row]:
    """The rows of a walked experiment's evaluation, a row a model and prompt, by what `walking.walk` has kept."""
    stages = json.loads(summary.read_text("utf-8"))["stages"]
    lines = (Path(stages["evaluation"]) / "rows.jsonl").read_text("utf-8").splitlines()
    return [_with_counts(json.loads(line)) for line in lines]


def _with_counts(row: Row) -> Row:
    return row | {"teacher_nats": -row["teacher_log_prob"], "answers": 1, "finished": float(row["finished"])}


def rows_by_method(seeds: Iterable[list[Row]], methods: Mapping[str, str]) -> dict[str, Sums]:
    """Sums by method and prompt, of all seeds together.

    Args:
        seeds: each seed's rows.
        methods: what the models are called in the rows -> the method's name.

    Raises:
        ValueError: a method lacks a prompt in some seed.
    """
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    for rows in seeds:
        for row in rows:
            if row["model"] in methods:
                sums = found[methods[row["model"]]][row["prompt_id"]]
                for column, value in row.items():
                    if isinstance(value, int | float):
                        sums[column] += value
    counts = {sums["answers"] for prompts in found.values() for sums in prompts.values()}
    if len(counts) > 1 or len({frozenset(prompts) for prompts in found.values()}) > 1:
        raise ValueError("some method lacks an answer in some seed; finish every walk first")
    return {method: {prompt: dict(sums) for prompt, sums in prompts.items()} for method, prompts in found.items()}


def _columns(sums: Sums, estimate: str) -> tuple[list[float], list[float]]:
    above, below = ESTIMATES[estimate]
    prompts = sorted(sums)
    return [sums[prompt][above] for prompt in prompts], [sums[prompt][below or "answers"] for prompt in prompts]


def pooled(sums: Sums) -> Row:
    """Every estimate X of a method with X_low and X_high, 95 % bootstrap intervals over prompts."""
    from lightning_dadpo.evaluation.bootstrap import ratio_interval

    found: Row = {}
    for estimate in ESTIMATES:
        interval = ratio_interval(*_columns(sums, estimate))
        found |= {estimate: interval.value, f"{estimate}_low": interval.low, f"{estimate}_high": interval.high}
    return found


def compared(sums: Sums, other: Sums, estimates: Sequence[str] = ("teacher_nll", "forward_kl", "reverse_kl")) -> Row:
    """A method less another one on the same prompts, with intervals of the difference."""
    from lightning_dadpo.evaluation.bootstrap import ratio_difference

    found: Row = {}
    for estimate in estimates:
        interval = ratio_difference(*_columns(sums, estimate), *_columns(other, estimate))
        found |= {estimate: interval.value, f"{estimate}_low": interval.low, f"{estimate}_high": interval.high}
    return found


def single_seeds(seeds: Iterable[list[Row]], model_names: Sequence[str], estimate: str) -> list[float]:
    """An estimate seed by seed, to see how far seeds lie apart.

    Args:
        seeds: each seed's rows.
        model_names: what the method's model is called in each.
        estimate: which one.
    """
    above, below = ESTIMATES[estimate]
    found = []
    for rows, name in zip(seeds, model_names, strict=True):
        mine = [row for row in rows if row["model"] == name]
        found.append(sum(row[above] for row in mine) / sum(row[below or "answers"] for row in mine))
    return found
