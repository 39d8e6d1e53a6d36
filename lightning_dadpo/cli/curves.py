"""Curves of a run that was killed and resumed: one file of the parts that each attempt wrote."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

__all__ = ["join_curves"]


def join_curves(parts: Sequence[Path], out: Path) -> None:
    """Join metrics.csv files in the order of their attempts; where two wrote the same step, the later one counts.

    A resumed attempt begins at its checkpoint, so what the earlier one logged from there on was done again.
    """
    kept: list[dict[str, str]] = []
    columns: dict[str, None] = {}
    for part in parts:
        with part.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if rows:
            first = min(int(row["step"]) for row in rows)
            kept = [row for row in kept if int(row["step"]) < first] + rows
        columns |= dict.fromkeys(name for row in rows for name in row)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(kept)
