"""What the experiments' READMEs have in common: tables, cells with intervals, what the numbers were made with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["DISTANCES", "cell", "made_with", "markdown", "packages", "rate", "single", "took"]

DISTANCES = {"reverse_kl": "Reverse KL, nats/token", "forward_kl": "Forward KL, nats/token"}
"""What the two distances of an evaluation are called."""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def cell(row: Mapping[str, Any], key: str, form: str) -> str:
    """`value [low, high]` of an estimate; `{}` in the key is where `_low` and `_high` belong, by default its end."""
    key = key if "{}" in key else key + "{}"
    value, low, high = (form.format(row[key.format(bound)]) for bound in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


def single(values: Sequence[float], form: str) -> str:
    """Values of one seed each."""
    return ", ".join(form.format(value) for value in values)


def rate(value: float | None) -> str:
    """A learning rate; empty for what was not trained at one."""
    return "" if value is None else f"{value:.0e}"


def packages(results: Mapping[str, Any]) -> str:
    """The versions that decide numbers."""
    return ", ".join(f"{name} {results['versions'][name]}" for name in ("torch", "transformers", "lightning"))


def made_with(results: Mapping[str, Any]) -> str:
    """The command, the sampler, the hardware and the versions, in two sentences."""
    sampler = results["sampler"]
    drawn = f"temperature {sampler['temperature']:g}, top_p {sampler['top_p']:g}"
    return (
        f"Answers of up to {sampler['max_new_tokens']} tokens at {drawn}. `{results['command']}` at "
        f"{results['commit']} on {results['hardware']}, {results['precision']}, with {packages(results)}."
    )


def took(results: Mapping[str, Any]) -> str:
    """How long, of an experiment that goes on from another one's stages."""
    hours = results["thread_hours"]
    return f"What restore_pruned had not made took {hours:.1f} hours of one thread, other work on the machine included."
