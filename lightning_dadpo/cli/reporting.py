"""`dadpo report`: an experiment's folder to one HTML file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_dadpo.cli.analysing import write_analysis
from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.errors import ArtifactError, DadpoError
from lightning_dadpo.reports.inputs import ReportInputs
from lightning_dadpo.reports.page import write_report

__all__ = ["report"]


def report(folder: str, out: str | None = None) -> Path:
    """Write the report of an experiment that `dadpo run` has finished, and `analysis.json`: does the teacher agree?

    Args:
        folder: the experiment's folder, for example runs/demo.
        out: where to; by default report.html in that folder.

    Raises:
        ArtifactError: the folder holds no finished experiment.
    """
    root = Path(folder)
    index = root / "experiment.json"
    if not index.is_file():
        raise ArtifactError(f"{root}: no experiment.json; finish `dadpo run` first")
    return write_report(_inputs(root, json.loads(index.read_text("utf-8"))), Path(out or root / "report.html"))


def _inputs(root: Path, index: dict[str, Any]) -> ReportInputs:
    folders = {stage["name"]: Path(stage["folder"]) for stage in index["stages"]}
    fits = {stage["name"]: Path(stage["folder"]) for stage in index["stages"] if stage["command"] == "fit"}
    times = _times(root)
    stages = [{"name": name, "folder": path.name, **_manifest(path)} for name, path in folders.items()]
    for stage in stages:
        stage["seconds"] = times.get(stage["folder"], stage["seconds"])
    problems = []
    try:
        analysis = write_analysis(root, index)
    except DadpoError as error:
        analysis = None
        problems.append(str(error))
    return ReportInputs(
        title=f"{index['name']}: a small student after its teacher",
        experiment=index["name"],
        summary=json.loads((root / "summary.json").read_text("utf-8")),
        curves={name: path / "curves.csv" for name, path in fits.items()},
        scores=_named(folders, "score-"),
        pairs=folders.get("pairs"),
        analysis=analysis,
        analysis_problems=problems,
        evaluation=folders.get("evaluation"),
        rounds=root / "rounds.json" if (root / "rounds.json").is_file() else None,
        predictions={name: path / "validation_pairs.jsonl" for name, path in fits.items() if _on_pairs(path)},
        responses={"teacher": folders["sample-teacher"], **_named(folders, "heldout-", "sample-")},
        configuration=index["configuration"],
        stages=stages,
        notes=index["notes"],
        command=index["command"],
    )


def _on_pairs(fit: Path) -> bool:
    """Only such trainings write down what they give to each pair."""
    data = read_manifest(fit, "fit").made_from["settings"].get("data") or {}
    return bool(data.get("class_path") == "PreferenceData")


def _named(folders: dict[str, Path], prefix: str, before: str = "") -> dict[str, Path]:
    start = before + prefix
    return {name.removeprefix(start): path for name, path in folders.items() if name.startswith(start)}


def _manifest(folder: Path) -> dict[str, Any]:
    """What the page says of a stage; a model's card has a file of its own."""
    manifest = asdict(read_manifest(folder))
    manifest["results"].pop("card", None)
    return {key: manifest[key] for key in ("seconds", "counts", "results", "versions")}


def _times(root: Path) -> dict[str, float]:
    """Wall-clock seconds of each stage's processes, by folder name; an earlier, failed attempt counts too."""
    spent: Counter[str] = Counter()
    if (root / "times.jsonl").is_file():
        for line in (root / "times.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            spent[row["folder"]] += row["seconds"]
    return dict(spent)
