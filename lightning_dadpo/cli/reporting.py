"""`dadpo report`: an experiment's folder to one HTML file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from lightning_dadpo.cli.analysing import write_analysis
from lightning_dadpo.cli.nearness import nearness
from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.errors import ArtifactError, ConfigError, DadpoError
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.reports.inputs import Nearness, ReportInputs
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
    fits = _made_by(index, "fit")
    problems: list[str] = []
    evaluation = folders.get("evaluation")
    split = _split(evaluation)
    said = yaml.safe_load(index["configuration"]) or {}
    return ReportInputs(
        title=_title(index["name"], said, folders.get("pruned")),
        experiment=index["name"],
        summary=json.loads((root / "summary.json").read_text("utf-8")),
        curves={name: path / "curves.csv" for name, path in fits.items()},
        scores=_named(folders, "score-"),
        pairs=folders.get("pairs"),
        analysis=_analysis(root, index, problems),
        evaluation=evaluation,
        nearness=_nearness(evaluation, problems),
        analysis_problems=problems,
        verdicts=next(iter(_made_by(index, "judge").values()), None),
        judge_validations=list(_made_by(index, "validate-judge").values()),
        ifeval=next(iter(_made_by(index, "ifeval").values()), None),
        split=split,
        models=_models(folders, said),
        teacher_name=_model_name(said.get("teacher")),
        student_origin=_origin(said, folders.get("pruned")),
        rounds=root / "rounds.json" if (root / "rounds.json").is_file() else None,
        predictions={name: path / "validation_pairs.jsonl" for name, path in fits.items() if _on_pairs(path)},
        responses={"teacher": folders["sample-teacher"], **_named(folders, f"{split}-", "sample-")},
        configuration=index["configuration"],
        stages=_stages(root, folders),
        notes=index["notes"],
        command=index["command"],
    )


def _made_by(index: dict[str, Any], command: str) -> dict[str, Path]:
    """Stage name -> folder of every stage of one command."""
    return {stage["name"]: Path(stage["folder"]) for stage in index["stages"] if stage["command"] == command}


def _stages(root: Path, folders: dict[str, Path]) -> list[dict[str, Any]]:
    times = _times(root)
    stages = [{"name": name, "folder": path.name, **_manifest(path)} for name, path in folders.items()]
    for stage in stages:
        stage["seconds"] = times.get(stage["folder"], stage["seconds"])
    return stages


def _analysis(root: Path, index: dict[str, Any], problems: list[str]) -> Path | None:
    try:
        return write_analysis(root, index)
    except DadpoError as error:
        problems.append(str(error))
        return None


def _nearness(evaluation: Path | None, problems: list[str]) -> list[Nearness]:
    if evaluation is None:
        return []
    try:
        return nearness(evaluation)
    except DadpoError as error:
        problems.append(str(error))
        return []


def _split(evaluation: Path | None) -> str:
    """The prompts that students were compared on."""
    return "heldout" if evaluation is None else str(read_manifest(evaluation).made_from.get("split", "heldout"))


def _models(folders: dict[str, Path], said: dict[str, Any]) -> dict[str, Path]:
    """Model name -> its folder or GGUF file, of those that are on this machine.

    A model given as a GGUF file is that file; what the stages run on is its export, whose size is not the model's.
    """
    found = {name: path for name, path in folders.items() if name in ("teacher", "pruned")}
    found |= _named(folders, "model-")
    given = {"teacher": said.get("teacher"), "initial": said.get("student")}
    found |= {name: _weights(spec) for name, spec in given.items() if spec}
    return {name: path for name, path in found.items() if path.exists()}


def _weights(spec: dict[str, Any]) -> Path:
    """Where a model's weights are, or would be."""
    try:
        folder = Path(ModelSpec(spec["path"]).location())
    except ConfigError:  # no such folder or package here
        folder = Path(spec["path"])
    return folder / spec["gguf_file"] if spec.get("gguf_file") else folder


def _model_name(spec: dict[str, Any] | None) -> str:
    """A model as people call it: the file's name where there is one, else the last part of its path."""
    if not spec:
        return ""
    return Path(spec["gguf_file"]).stem if spec.get("gguf_file") else Path(spec["path"]).name


def _origin(said: dict[str, Any], pruned: Path | None) -> str:
    """Where the student came from."""
    if said.get("student"):
        return f"the smaller model {_model_name(said['student'])}"
    if pruned is None:
        return ""
    results = read_manifest(pruned, "model").results
    return f"a copy of itself without {len(results['layers_removed'])} of its {results['layers_before']} layers"


def _title(name: str, said: dict[str, Any], pruned: Path | None) -> str:
    """What page one is headed."""
    teacher, student = _model_name(said.get("teacher")), _model_name(said.get("student"))
    if teacher and student:
        return f"{student}, taught by {teacher}"
    return (
        f"{teacher}, made smaller" if teacher and pruned is not None else f"{name}: a small student after its teacher"
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
