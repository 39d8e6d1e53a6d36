"""What each round of an experiment did, from its `rounds.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_dadpo.errors import DataError
from lightning_dadpo.reports.table import display_name

__all__ = ["RoundSection", "round_section", "HEAD"]

HEAD = ("Round", "Rejected from", "Responses", "Pairs", "Scores", "Mean margin", "Student")
NOTHING = "\u2013"


@dataclass
class RoundSection:
    """A row a round, cells in the order of `HEAD`; and what could not be read."""

    rows: list[list[str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def round_section(path: Path | None) -> RoundSection:
    """The rounds in order; nothing when the experiment has none."""
    if path is None:
        return RoundSection()
    try:
        return RoundSection([_row(found) for found in _read(path)])
    except (DataError, OSError) as error:
        return RoundSection(problems=[f"rounds: {error}"])


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a list with an object a round")
    return rows


def _row(found: Mapping[str, Any]) -> list[str]:
    return [
        f"{_model(found.get('objective'))}, round {_said(found.get('round'))}",
        _drawn(found),
        _responses(found),
        _pairs(found),
        _scores(found),
        _margin(found.get("margin")),
        _said(Path(str(found["student_folder"])).name if found.get("student_folder") else None),
    ]


def _said(value: Any) -> str:
    if value is None:
        return NOTHING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _model(name: Any) -> str:
    return NOTHING if name is None else display_name(str(name))


def _margin(value: Any) -> str:
    return f"{value:+.4f}" if isinstance(value, float) else NOTHING


def _drawn(found: Mapping[str, Any]) -> str:
    """Who drew the rejected responses, and the chosen ones where that is not the teacher."""
    chosen = found.get("chosen_from")
    return _model(found.get("rejected_from")) + (
        "" if chosen in (None, "teacher") else f"; chosen from {_model(chosen)}"
    )


def _responses(found: Mapping[str, Any]) -> str:
    said = [_said(found.get("responses"))]
    finished = found.get("finished")
    if isinstance(finished, float):
        said.append(f"{100 * finished:.0f}\u00a0% ended by themselves")
    elif finished is not None:
        said.append(f"{finished} ended by themselves")
    if found.get("mean_tokens") is not None:
        said.append(f"{_said(found['mean_tokens'])} tokens on average")
    return ", ".join(said)


def _pairs(found: Mapping[str, Any]) -> str:
    dropped = found.get("dropped")
    reasons = [f"{_said(count)} {str(reason).replace('_', ' ')}" for reason, count in _items(dropped) if count]
    said = _said(found.get("pairs")) + (f"; dropped: {', '.join(reasons)}" if reasons else "")
    if found.get("repeated_pairs"):
        said += f"; trained on {_said(found.get('trained_on'))}, {found['repeated_pairs']} of them of earlier rounds"
    return said


def _items(counts: Any) -> list[tuple[str, Any]]:
    return list(counts.items()) if isinstance(counts, Mapping) else []


def _scores(found: Mapping[str, Any]) -> str:
    said = [f"{_said(found[key])} {words}" for key, words in (("scored", "new"), ("reused", "kept")) if key in found]
    if found.get("reference") is not None:
        said.append(f"reference: {_model(found['reference'])}")
    return ", ".join(said) or NOTHING
