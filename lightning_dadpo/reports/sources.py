"""Reads what a report shows. A source that is missing or broken becomes a sentence on the page, not a crash."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lightning_dadpo.data.artifacts import Manifest, read_manifest
from lightning_dadpo.data.rows import PairRow, ResponseRow, ScoreRow, read_rows
from lightning_dadpo.errors import DadpoError, DataError

__all__ = [
    "Series", "Rewards", "PairFacts", "read_each", "read_metrics", "read_gaps", "read_rewards", "read_heldout",
    "read_pair_facts",
]  # fmt: skip

Found = TypeVar("Found")
ROWS = "rows.jsonl"
REWARD_KEYS = ("margin", "chosen_reward", "rejected_reward")


@dataclass(frozen=True)
class Series:
    """One logged metric: the steps at which it was logged and its values, non-finite ones included."""

    steps: list[float]
    values: list[float]


@dataclass(frozen=True)
class Rewards:
    """What one run gives to the pairs, in nats: margins and implicit rewards, an entry a pair."""

    margin: list[float]
    chosen_reward: list[float]
    rejected_reward: list[float]


@dataclass(frozen=True)
class PairFacts:
    """The pairs in numbers; `ids` are what scores must cover."""

    manifest: Manifest
    ids: frozenset[str]
    splits: dict[str, int]
    chosen_tokens: float
    rejected_tokens: float
    chosen_cut: int
    rejected_cut: int


def read_each(paths: Mapping[str, Path], read: Callable[[Path], Found]) -> tuple[dict[str, Found], list[str]]:
    """Read every named source; what cannot be read is returned as sentences instead."""
    found, problems = {}, []
    for name, path in paths.items():
        try:
            found[name] = read(Path(path))
        except (DadpoError, OSError, UnicodeDecodeError, csv.Error) as error:
            problems.append(f"{name}: {error}")
    return found, problems


def read_metrics(path: Path) -> dict[str, Series]:
    """The columns of a CSVLogger file. Its cells are sparse: an empty one means "not logged at this step".

    Raises:
        DataError: there is no such file, it has no column `step`, or a cell is no number (file:line).
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    columns: dict[str, Series] = {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if "step" not in (rows.fieldnames or ()):
            raise DataError(f"{path}:1: has no column `step`")
        for row in rows:
            place = f"{path}:{rows.line_num}"
            step = _cell(row["step"], place, "step")
            for name, text in row.items():
                if name is None or name in ("step", "epoch") or not text:
                    continue
                series = columns.setdefault(name, Series([], []))
                series.steps.append(step)
                series.values.append(_cell(text, place, name))
    return columns


def _cell(text: str | None, place: str, name: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise DataError(f"{place}: `{name}`: expected a number, found {text!r}") from None


def read_gaps(folder: Path) -> dict[str, float]:
    """Pair id -> D = log p(chosen) - log p(rejected) of one anchor, in nats."""
    read_manifest(folder, "scores")
    rows = read_rows(folder / ROWS, ScoreRow)
    return {row.pair_id: row.chosen_log_prob - row.rejected_log_prob for row in rows}


def read_rewards(path: Path) -> Rewards:
    """The predictions of one run, a pair counted once.

    Raises:
        DataError: no such file, or a line that is no such row (file:line).
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    rows: dict[str, list[float]] = {}
    with path.open(encoding="utf-8") as lines:
        for line_number, line in enumerate(lines, 1):
            if line.strip():
                pair_id, values = _prediction(line, f"{path}:{line_number}")
                rows[pair_id] = values
    return Rewards(*([values[index] for values in rows.values()] for index in range(len(REWARD_KEYS))))


def _prediction(line: str, place: str) -> tuple[str, list[float]]:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get("pair_id"), str):
        raise DataError(f"{place}: `pair_id`: expected a string")
    for key in REWARD_KEYS:
        if not isinstance(row.get(key), int | float) or isinstance(row[key], bool):
            raise DataError(f"{place}: `{key}`: expected a number, found {row.get(key)!r}")
    return row["pair_id"], [float(row[key]) for key in REWARD_KEYS]


def read_heldout(folder: Path, split: str = "heldout") -> dict[str, ResponseRow]:
    """Prompt id -> the first response to it, prompts of one split only, in the order of the file."""
    read_manifest(folder, "responses")
    found: dict[str, ResponseRow] = {}
    for row in read_rows(folder / ROWS, ResponseRow):
        if row.split == split:
            found.setdefault(row.prompt_id, row)
    return found


def read_pair_facts(folder: Path) -> PairFacts:
    """Splits, mean lengths in tokens and responses stopped by the length cap."""
    manifest = read_manifest(folder, "pairs")
    rows = list(read_rows(folder / ROWS, PairRow))
    count = max(len(rows), 1)
    return PairFacts(
        manifest=manifest,
        ids=frozenset(row.pair_id for row in rows),
        splits=dict(Counter(row.split for row in rows)),
        chosen_tokens=sum(len(row.chosen_token_ids) for row in rows) / count,
        rejected_tokens=sum(len(row.rejected_token_ids) for row in rows) / count,
        chosen_cut=sum(row.chosen_finish_reason == "length" for row in rows),
        rejected_cut=sum(row.rejected_finish_reason == "length" for row in rows),
    )
