"""What the experiments' READMEs have in common: tables, cells with intervals, what the numbers were made with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["cell", "made_with", "markdown"]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def cell(row: Mapping[str, Any], key: str, form: str) -> str:
    """`value [low, high]` of an estimate; `{}` in the key is where `_low` and `_high` belong, by default its end."""
    key = key if "{}" in key else key + "{}"
    value, low, high = (form.format(row[key.format(bound)]) for bound in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


def made_with(results: Mapping[str, Any]) -> str:
    """The command, the hardware and the versions, as a sentence."""
    made = ", ".join(f"{name} {results['versions'][name]}" for name in ("torch", "transformers", "lightning"))
    return f"`{results['command']}` on {results['hardware']}, {results['precision']}, with {made}."
