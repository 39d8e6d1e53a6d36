"""From evaluations of several seeds to estimates with intervals, and to differences paired by prompt.

A prompt is drawn with all its seeds, since one question's answers are not independent of one another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["DIFFERENCES", "ESTIMATES", "Sums", "compared", "pooled", "rows_by_method", "single_seeds"]

ESTIMATES = {
    "finished": ("finished", "answers"),
    "mean_tokens": ("tokens", "answers"),
    "repetition": ("repeated", "ngrams"),
    "cut_tokens": ("cut_tokens", "tokens"),
    "teacher_nll": ("teacher_nats", "tokens"),
    "forward_kl": ("forward_kl", "teacher_tokens"),
    "reverse_kl": ("reverse_kl", "tokens"),
    "reverse_kl_each": ("reverse_kl_each", "answers"),
}
"""Of an evaluation's rows: what is summed over what. Long answers weigh more in `reverse_kl`, which is METHOD's; each
answer weighs the same in `reverse_kl_each`. `cut_tokens` are those of answers that the cap ended."""

DIFFERENCES = ("forward_kl", "reverse_kl", "reverse_kl_each")
"""What is a distance, so that less is nearer."""

Sums = Mapping[str, Mapping[str, float]]
"""Prompt id -> sums of an evaluation's columns over its seeds."""

Row = dict[str, Any]


def rows_by_method(seeds: Iterable[list[Row]], methods: Mapping[str, str]) -> dict[str, Sums]:
    """Sums by method and prompt, of all seeds together.

    Args:
        seeds: each seed's rows, as an evaluation has them.
        methods: what the models are called in the rows -> the method's name.

    Raises:
        ValueError: a method lacks a prompt in some seed, or is in none.
    """
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    for rows in seeds:
        for row in rows:
            if row["model"] in methods:
                sums = found[methods[row["model"]]][row["prompt_id"]]
                for column, value in _with_columns(row).items():
                    if isinstance(value, int | float):
                        sums[column] += value
    counts = {sums["answers"] for prompts in found.values() for sums in prompts.values()}
    if len(counts) > 1 or len({frozenset(prompts) for prompts in found.values()}) > 1:
        raise ValueError("some method lacks an answer in some seed; finish every walk first")
    if lost := set(methods.values()) - found.keys():
        raise ValueError(f"{min(lost)} was not evaluated; finish every walk first")
    return {method: {prompt: dict(sums) for prompt, sums in prompts.items()} for method, prompts in found.items()}


def _with_columns(row: Row) -> Row:
    return row | {
        "answers": 1,
        "finished": float(row["finished"]),
        "cut_tokens": 0 if row["finished"] else row["tokens"],
        "teacher_nats": -row["teacher_log_prob"],
        "reverse_kl_each": row["reverse_kl"] / row["tokens"],
    }


def _columns(sums: Sums, estimate: str) -> tuple[list[float], list[float]]:
    above, below = ESTIMATES[estimate]
    prompts = sorted(sums)
    return [sums[prompt][above] for prompt in prompts], [sums[prompt][below] for prompt in prompts]


def pooled(sums: Sums) -> Row:
    """Every estimate X of a method with X_low and X_high, 95 % bootstrap intervals over prompts."""
    from lightning_dadpo.evaluation.bootstrap import ratio_interval

    found: Row = {}
    for estimate in ESTIMATES:
        interval = ratio_interval(*_columns(sums, estimate))
        found |= {estimate: interval.value, f"{estimate}_low": interval.low, f"{estimate}_high": interval.high}
    return found


def compared(sums: Sums, other: Sums) -> Row:
    """A method less another one on the same prompts, with intervals of the difference: the distances alone."""
    from lightning_dadpo.evaluation.bootstrap import ratio_difference

    found: Row = {}
    for estimate in DIFFERENCES:
        interval = ratio_difference(*_columns(sums, estimate), *_columns(other, estimate))
        found |= {estimate: interval.value, f"{estimate}_low": interval.low, f"{estimate}_high": interval.high}
    return found


def single_seeds(seeds: Iterable[list[Row]], model: str, estimate: str) -> list[float]:
    """An estimate seed by seed, to see how far trainings lie apart.

    Args:
        seeds: each seed's rows.
        model: what the model is called in them.
        estimate: which one.
    """
    found = []
    for rows in seeds:
        above, below = _columns(rows_by_method([rows], {model: model})[model], estimate)
        found.append(sum(above) / sum(below))
    return found
