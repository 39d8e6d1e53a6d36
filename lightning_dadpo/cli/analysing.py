"""Which pairs, scores and weights of an experiment belong together; `analysis.json` from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_dadpo.data.analysis import Analysis
from lightning_dadpo.data.artifacts import Manifest, read_manifest, write_atomically

__all__ = ["write_analysis"]

FILE = "analysis.json"
ROWS = "rows.jsonl"
LOG_SIGMOID = ("DaDPO", "DPO", "AnchoredPreference")
"""Objectives whose pairs pull with the weight sigmoid(-margin); others have a weight of their own."""


def write_analysis(root: Path, index: dict[str, Any]) -> Path | None:
    """Analyse the scored pairs of an experiment.

    Args:
        root: its folder, where the file goes.
        index: its `experiment.json`.

    Returns:
        the file; None where no pairs were scored.

    Raises:
        ArtifactError, DataError: a folder is not what it was.
    """
    from lightning_dadpo.evaluation.agreement import analyse_pairs  # torch

    stages = [(stage["name"], stage["command"], Path(stage["folder"])) for stage in index["stages"]]
    scored = {folder: read_manifest(folder, "scores") for _, command, folder in stages if command == "score"}
    fits = {name: folder for name, command, folder in stages if command == "fit"}
    made = {name: folder for name, command, folder in stages if command == "export"}
    betas = {
        name: found
        for name in fits
        if f"model-{name}" in made and (found := _betas(read_manifest(made[f"model-{name}"])))
    }
    sets = []
    for name, command, folder in stages:
        if command not in ("pair", "mix", "import"):
            continue
        digest = read_manifest(folder, "pairs").files[ROWS]
        anchors = {said.made_from["anchor"]: at for at, said in scored.items() if said.made_from["pairs"] == digest}
        names = {at.name for at in anchors.values()}
        own = {run: weights for run, weights in betas.items() if names & set(_scores_of(fits[run]))}
        if anchors:
            sets.append(analyse_pairs(name, folder, anchors, own))
    if not sets:
        return None
    path = root / FILE
    write_atomically(path, json.dumps(asdict(Analysis(sets)), indent=1, ensure_ascii=False) + "\n")
    return path


def _betas(model: Manifest) -> dict[str, float]:
    """An objective's weights by anchor, from its model's card; none for one that weighs its pairs otherwise."""
    objective = (model.results.get("card") or {}).get("objective") or {}
    return dict(objective.get("betas") or {}) if objective.get("name") in LOG_SIGMOID else {}


def _scores_of(fit: Path) -> Iterator[str]:
    """Names of the scores folders that a training was given."""
    model = read_manifest(fit, "fit").made_from["settings"].get("model", {}).get("init_args", {})
    for source in (model.get("anchors") or {}).values():
        scores = source.get("scores") or []
        for folder in [scores] if isinstance(scores, str) else scores:
            yield Path(folder).name
