"""IFEval: which share of instructions that a program can check did each model follow? No model judges."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.errors import DadpoError, DataError
from lightning_dadpo.reports.preference import percent_of, points_of
from lightning_dadpo.reports.table import TEACHER, display_name, number

__all__ = ["InstructionSection", "instruction_section", "HEAD"]

FILE = "ifeval.json"
NOT_RUN = "Whether it does as it is told was not measured (IFEval was not run)."
SHARES = {
    "prompt_strict": "Prompts, strictly", "instruction_strict": "Instructions, strictly",
    "prompt_loose": "Prompts, loosely", "instruction_loose": "Instructions, loosely", "finished": "Finished",
}  # fmt: skip
HEAD = ("Model", "Prompts", *SHARES.values(), "The first less this one")


@dataclass
class InstructionSection:
    """One sentence for page one, and a row a model behind it."""

    lead: str = NOT_RUN
    rows: list[list[str]] = field(default_factory=list)
    left_out: int = 0
    problems: list[str] = field(default_factory=list)


def instruction_section(folder: Path | None, student: str | None) -> InstructionSection:
    """The section; empty where IFEval was not asked for, a sentence where it cannot be read."""
    if folder is None:
        return InstructionSection()
    try:
        found, left_out = _read(folder)
    except (DadpoError, OSError) as error:
        return InstructionSection(
            "Whether it does as it is told is not known: IFEval's results cannot be read.",
            problems=[f"IFEval: {error}"],
        )
    rows = {str(row.get("model")): row for row in found["rows"]}
    differences = {(str(row.get("model")), str(row.get("other"))): row for row in found["differences"]}
    first = next(iter(rows), "")
    section = InstructionSection(left_out=left_out)
    section.rows = [_cells(row, differences.get((first, name))) for name, row in rows.items()]
    if student in rows:
        section.lead = _lead(rows[student], rows.get(TEACHER))
    return section


def _read(folder: Path) -> tuple[dict[str, Any], int]:
    manifest = read_manifest(folder, "ifeval")
    path = folder / FILE
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    for key in ("rows", "differences"):
        rows = found.get(key) if isinstance(found, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: `{key}`: expected a list with an object a row")
    return dict(found), len(manifest.results.get("left_out") or {})


def _cells(row: Mapping[str, Any], difference: Mapping[str, Any] | None) -> list[str]:
    """`difference` is the first model's less this one's."""
    prompts = number(row, "prompts")
    said = [display_name(str(row.get("model"))), "\u2013" if prompts is None else f"{prompts:.0f}"]
    said += [percent_of(row, key) for key in SHARES]
    return [*said, "\u2013" if difference is None else points_of(difference, "prompt_strict")]


def _lead(row: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> str:
    prompts = number(row, "prompts")
    count = "" if prompts is None else f" {prompts:.0f}"
    beside = "" if teacher is None else f", the teacher in {percent_of(teacher, 'prompt_strict')}"
    return (
        f"The student does all that is asked in {percent_of(row, 'prompt_strict')} of{count} prompts that a program "
        f"can check (IFEval){beside}."
    )
