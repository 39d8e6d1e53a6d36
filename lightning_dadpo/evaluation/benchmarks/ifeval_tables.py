"""IFEval's verdicts to accuracies with intervals; instructions are resampled with the prompt that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic.dataclasses import dataclass

from lightning_dadpo.data.rows import STRICT
from lightning_dadpo.evaluation.benchmarks.responses import with_interval
from lightning_dadpo.evaluation.bootstrap import Interval, mean_interval, ratio_interval

__all__ = ["IfevalRow", "accuracies", "summarise"]


@dataclass(frozen=True, config=STRICT)
class IfevalRow:
    """What one model's response to one prompt followed.

    Attributes:
        model: the candidate's name. prompt_id: the prompt.
        instructions: as FAMILY:NAME. strict, loose: whether each was followed (`ifeval_checks.Verdict`).
        tokens: of the response. finished: it ended by itself; one that the cap cut may have failed for that alone.
    """

    model: str
    prompt_id: str
    instructions: list[str]
    strict: list[bool]
    loose: list[bool]
    tokens: int
    finished: bool


def summarise(rows: list[IfevalRow], resamples: int) -> dict[str, Any]:
    """What `ifeval.json` says; instructions are resampled with the prompt that they belong to."""
    models = {name: [row for row in rows if row.model == name] for name in dict.fromkeys(row.model for row in rows)}
    families = sorted({_family(name) for row in rows for name in row.instructions})
    names = list(models)
    return {
        "rows": [_model(name, own, resamples) for name, own in models.items()],
        "families": [_in_family(name, own, one, resamples) for name, own in models.items() for one in families],
        "differences": [
            _difference(name, models[name], other, models[other], resamples)
            for at, name in enumerate(names)
            for other in names[at + 1 :]
        ],
    }


Followed = Callable[[IfevalRow], list[bool]]
READINGS: dict[str, Followed] = {"strict": lambda row: row.strict, "loose": lambda row: row.loose}


def accuracies(rows: list[IfevalRow], resamples: int) -> dict[str, Interval]:
    """`prompt_strict`, `instruction_strict`, `prompt_loose` and `instruction_loose` of one model."""
    counts = [len(row.instructions) for row in rows]
    estimates: dict[str, Interval] = {}
    for reading, followed in READINGS.items():
        whole = [all(followed(row)) for row in rows]
        estimates[f"prompt_{reading}"] = mean_interval(whole, resamples=resamples)
        single = [sum(followed(row)) for row in rows]
        estimates[f"instruction_{reading}"] = ratio_interval(single, counts, resamples=resamples)
    return estimates


def _model(name: str, rows: list[IfevalRow], resamples: int) -> dict[str, Any]:
    estimates = accuracies(rows, resamples)
    estimates["finished"] = mean_interval([row.finished for row in rows], resamples=resamples)
    estimates["mean_tokens"] = mean_interval([row.tokens for row in rows], resamples=resamples)
    instructions = sum(len(row.instructions) for row in rows)
    return {"model": name, "prompts": len(rows), "instructions": instructions, **with_interval(estimates)}


def _family(instruction: str) -> str:
    return instruction.partition(":")[0]


def _in_family(name: str, rows: list[IfevalRow], family: str, resamples: int) -> dict[str, Any]:
    """Accuracy over the instructions of one family, in the prompts that have any."""
    places = [[at for at, one in enumerate(row.instructions) if _family(one) == family] for row in rows]
    counts = [len(at) for at in places if at]
    estimates = {}
    for reading, followed in READINGS.items():
        right = [sum(followed(row)[one] for one in at) for row, at in zip(rows, places, strict=True) if at]
        estimates[reading] = ratio_interval(right, counts, resamples=resamples)
    said = {"model": name, "family": family, "prompts": len(counts), "instructions": sum(counts)}
    return {**said, **with_interval(estimates)}


def _difference(name: str, own: list[IfevalRow], other: str, theirs: list[IfevalRow], resamples: int) -> dict[str, Any]:
    """`name` minus `other`, prompt by prompt."""
    by_prompt = {row.prompt_id: row for row in theirs}
    pairs = [(row, by_prompt[row.prompt_id]) for row in own]
    counts = [len(row.instructions) for row in own]
    estimates: dict[str, Interval] = {}
    for reading, followed in READINGS.items():
        whole = [int(all(followed(one))) - int(all(followed(two))) for one, two in pairs]
        estimates[f"prompt_{reading}"] = mean_interval(whole, resamples=resamples)
        single = [sum(followed(one)) - sum(followed(two)) for one, two in pairs]
        estimates[f"instruction_{reading}"] = ratio_interval(single, counts, resamples=resamples)
    return {"model": name, "other": other, "prompts": len(pairs), **with_interval(estimates)}
