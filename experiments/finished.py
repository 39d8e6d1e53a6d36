"""Reads finished walks: what `walking` has kept of them, and the artefacts that stand there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.walking import ROOT

__all__ = ["about", "evaluated", "folder_of", "kept", "manifest", "thread_hours"]

SPLIT = "heldout"


def kept(name: str, split: str = SPLIT) -> dict[str, Any]:
    """What a walk has kept: `stages`, a folder by name, `rows` of its summary, and what it ran on.

    Raises:
        SystemExit: it is not finished, or compares on other prompts, as the one that tunes does.
    """
    path = ROOT / "summaries" / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; the walk is not finished")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if not any(stage.startswith(f"sample-{split}-") for stage in found["stages"]):
        raise SystemExit(f"{path}: compares on other prompts than {split}; run the experiment again")
    return found


def folder_of(walk: dict[str, Any], stage: str) -> Path:
    """The folder of a stage of a walk."""
    return Path(walk["stages"][stage])


def manifest(folder: Path) -> dict[str, Any]:
    """What an artefact says of itself."""
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return found


def evaluated(walk: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a walk's evaluation, a row a model and prompt."""
    lines = (folder_of(walk, "evaluation") / "rows.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def about(walk: dict[str, Any]) -> dict[str, Any]:
    """What every results.json says of how its numbers were made."""
    evaluation = manifest(folder_of(walk, "evaluation"))
    answers = manifest(folder_of(walk, f"sample-{SPLIT}-dsft"))
    return {
        "hardware": walk["hardware"],
        "commit": walk["commit"],
        "versions": evaluation["versions"],
        "precision": evaluation["results"]["precision"],
        "prompts": evaluation["counts"]["prompts"],
        "sampler": {key: answers["made_from"]["sampler"][key] for key in ("temperature", "top_p", "max_new_tokens")},
    }


def thread_hours(walks: Iterable[dict[str, Any]], before: Iterable[dict[str, Any]] = ()) -> float:
    """What the stages of walks took, restarts counted too: they ran with one thread, beside one another.

    Args:
        walks: whose stages.
        before: walks whose stages were there already.
    """
    known, own = (
        {Path(folder).name for walk in some for folder in walk["stages"].values()} for some in (before, walks)
    )
    lines = [line for file in sorted(ROOT.glob("seed*/times.jsonl")) for line in file.read_text("utf-8").splitlines()]
    rows = [json.loads(line) for line in lines]
    return float(sum(row["seconds"] for row in rows if row["folder"] in own - known) / 3600)
