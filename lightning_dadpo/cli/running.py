"""`dadpo run` and `dadpo demo`: walk the stages, each as its own process, skipping what is finished."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from lightning_dadpo.cli.curves import join_curves
from lightning_dadpo.cli.experiment import Experiment, read_experiment
from lightning_dadpo.cli.functions import SPLIT
from lightning_dadpo.cli.planner import values_of
from lightning_dadpo.cli.processes import run_stage
from lightning_dadpo.cli.round_record import record_rounds
from lightning_dadpo.cli.stages import Stage, plan_rounds, plan_stages
from lightning_dadpo.data.artifacts import draft, read_manifest, write_atomically
from lightning_dadpo.data.prompts import read_prompts
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.model_card import add_measurements

__all__ = ["run", "demo", "DEMO"]

DEMO = "configs/recipes/demo.yaml"


def run(experiment: str, until: str | None = None) -> int:
    """Walk an experiment: what is finished is skipped, what was killed goes on where it stopped.

    Args:
        experiment: the experiment's YAML, for example configs/recipes/demo.yaml.
        until: a stage to stop before. All stages in front of it run, in the order of `[N/M]`; judge and IFEval, where
            there are any, stand in front of evaluation.

    Returns:
        0; or the exit status of the stage that failed.

    Raises:
        ConfigError: no stage is called so.
    """
    return _walk(read_experiment(experiment), experiment, until)[0]


def demo(experiment: str = DEMO) -> int:
    """Distil a real chat model and check what comes out.

    Args:
        experiment: the experiment's YAML.

    Returns:
        0 when every check holds, 1 when one fails; or the exit status of the stage that failed.
    """
    read = read_experiment(experiment)
    status, summary = _walk(read, experiment)
    if status:
        return status
    from lightning_dadpo.evaluation.checks import check_summary

    failures = check_summary(summary)
    for failure in failures:
        print(f"check failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _walk(experiment: Experiment, path: str, until: str | None = None) -> tuple[int, list[dict[str, Any]]]:
    root, start = Path(experiment.folder), time.monotonic()
    stages = _before(until, plan_stages(experiment))
    waiting = [stage for stage in stages if not (stage.folder / "manifest.json").is_file()]
    if waiting:
        _check_inputs(experiment)
        root.mkdir(parents=True, exist_ok=True)
        _say_hello(experiment, stages, waiting)
    for stage in waiting:
        print(f"\n[{stages.index(stage) + 1}/{len(stages)}] {stage.name}", flush=True)
        begun = time.monotonic()
        status = _run_stage(experiment, stage)
        _note_time(root, stage, time.monotonic() - begun, status)
        if status:
            print(f"stage {stage.name} failed with status {status}; the same command goes on here", file=sys.stderr)
            return status, []
        _track(experiment, stage)
    if until is not None:
        return 0, []
    summary_text = (stages[-1].folder / "summary.json").read_text("utf-8")
    report = _publish(experiment, path, stages, summary_text, made_anew=bool(waiting))
    summary: list[dict[str, Any]] = json.loads(summary_text)
    _print_end(summary, root, report, time.monotonic() - start)
    return 0, summary


def _before(until: str | None, stages: list[Stage]) -> list[Stage]:
    names = [stage.name for stage in stages]
    if until is None:
        return stages
    if until not in names:
        raise ConfigError(f"--until {until}: no stage is called so; expected one of {', '.join(names)}")
    return stages[: names.index(until)]


def _note_time(root: Path, stage: Stage, seconds: float, status: int) -> None:
    """What each attempt at a stage took, start of its process included; a killed attempt leaves no line."""
    row = {"stage": stage.name, "folder": stage.folder.name, "seconds": round(seconds, 1), "status": status}
    with (root / "times.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _check_inputs(experiment: Experiment) -> None:
    """Launchers, prompts, models and what judges need, before anything is written; the stages would say the same, late.

    Raises:
        ConfigError, DataError: see `read_prompts` and `ModelSpec.location`.
    """
    for launcher in (experiment.launch, experiment.launch_inference):
        _dadpo(launcher)
    read_prompts(experiment.prompts)
    for model in (experiment.teacher, experiment.student, *experiment.anchors.values()):
        if model is not None:
            model.location()
    _check_judging(experiment)


def _check_judging(experiment: Experiment) -> None:
    """A judge is asked when everything else is done, which would be late for a missing key or file."""
    for place, judge in experiment.judges.items():
        key = judge.get("init_args", {}).get("server", {}).get("api_key_variable")
        if key is not None and not os.environ.get(key, "").strip():
            raise ConfigError(f"{place}: {key} is not set; expected the key of its server")
    for file in experiment.people.paths if experiment.people else []:
        if not Path(file).is_file():
            raise ConfigError(f"experiment.people: {file}: no such file")


def _say_hello(experiment: Experiment, stages: list[Stage], waiting: list[Stage]) -> None:
    from lightning_dadpo.cli.estimate import estimate_minutes
    from lightning_dadpo.models.numerics import describe

    print(describe())
    done = len(stages) - len(waiting)
    minutes = estimate_minutes(experiment, stages, waiting)
    guess = f"about {minutes:.0f} minutes on this machine" if minutes else "no estimate, for a model is not here yet"
    print(f"{experiment.name}: {len(stages)} stages, {done} finished; {guess}", flush=True)


def _run_stage(experiment: Experiment, stage: Stage) -> int:
    """Start the stage's command as a process of its own, with its settings in a YAML that repeats it by hand."""
    settings = Path(experiment.folder) / "settings" / f"{stage.folder.name}.yaml"
    settings.parent.mkdir(parents=True, exist_ok=True)
    if stage.command != "fit":
        launcher = experiment.launch_inference if stage.command in SPLIT else []
        command = [*_dadpo(launcher), stage.command, "-c", str(settings), "--out", str(stage.folder)]
        _write_settings(settings, command, stage.settings)
        return _start(command)
    try:
        _fit(experiment, stage, settings)
    except _FitFailedError as failed:
        return failed.status
    return 0


def _fit(experiment: Experiment, stage: Stage, settings: Path) -> None:
    """A training in a draft of its own; a failed one leaves its checkpoints there, to go on with."""
    made_from = {"settings": stage.settings, "configs": {file: values_of(file) for file in stage.configs}}
    with draft(stage.folder, "fit", made_from) as work:
        overlay = _trainer_overlay(experiment, stage, work.path)
        command = [*_dadpo(experiment.launch), "fit"]
        command += [part for file in (*stage.configs, str(settings)) for part in ("-c", file)]
        last = work.path / "checkpoints" / "last.ckpt"
        if last.exists():  # a folder under some strategies
            command += ["--ckpt_path", str(last)]
        _write_settings(settings, command, overlay)
        status = _start(command)
        if status:
            raise _FitFailedError(status)
        join_curves(sorted(work.path.glob("curves-*/metrics.csv")), work.path / "curves.csv")


class _FitFailedError(Exception):
    """Leaves the draft unfinished."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _trainer_overlay(experiment: Experiment, stage: Stage, folder: Path) -> dict[str, Any]:
    tracking = {"experiment": experiment.name, "stage": stage.name, "run_id": stage.folder.name}
    settings: dict[str, Any] = json.loads(json.dumps(stage.settings))
    trainer = settings.setdefault("trainer", {})
    trainer["default_root_dir"] = str(folder)
    # CSVLogger empties a folder that it finds, so each attempt has its own; `join_curves` joins them
    attempt = len(list(folder.glob("curves-*")))
    curves = {"save_dir": str(folder), "name": "", "version": f"curves-{attempt}"}
    trainer["logger"] = [
        {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": curves},
        {"class_path": "ExperimentLogger", "init_args": {**tracking, "save_dir": str(experiment.folder)}},
    ]
    return settings


def _dadpo(launcher: Sequence[str] = ()) -> list[str]:
    """The command, started once, or by a launcher: that of this environment where the name alone is given.

    Raises:
        ConfigError: there is no such launcher.
    """
    if not launcher:
        return [sys.executable, "-m", "lightning_dadpo"]
    beside = Path(sys.executable).with_name(launcher[0])
    found = str(beside) if beside.is_file() else shutil.which(launcher[0])
    if found is None:
        raise ConfigError(f"experiment: launch and launch_inference: no command {launcher[0]!r} here")
    return [found, *launcher[1:], "-m", "lightning_dadpo"]


def _write_settings(path: Path, command: list[str], settings: dict[str, Any]) -> None:
    own = command[command.index("lightning_dadpo") + 1 :]
    shown = ["dadpo", *own] if command[0] == sys.executable else [Path(command[0]).name, *command[1:]]
    write_atomically(path, f"# {' '.join(shown)}\n{yaml.safe_dump(settings, sort_keys=False)}")


def _start(command: list[str]) -> int:
    """A stage without a launcher is forked: on Linux, where libraries bear it, and not beside a GPU, which may not."""
    from lightning_dadpo.models.numerics import default_device

    own = command[:3] == _dadpo()
    return run_stage(command, forked=own and sys.platform == "linux" and default_device().type == "cpu")


def _track(experiment: Experiment, stage: Stage) -> None:
    if stage.command == "fit":
        return  # it has a run of its own, with curves
    from lightning_dadpo.tracking.runs import record_stage

    manifest = read_manifest(stage.folder)
    root = Path(experiment.folder)
    record_stage(experiment.name, stage.name, stage.folder.name, stage.folder, manifest, root, stage.settings)


def _publish(experiment: Experiment, path: str, stages: list[Stage], summary: str, made_anew: bool) -> Path:
    """summary.json, experiment.json, rounds.json and the report; made again only when something is new."""
    from lightning_dadpo.tracking.analysis import record_analysis

    root = Path(experiment.folder)
    report = root / "report.html"
    index = {
        "name": experiment.name,
        "command": f"dadpo run {path}",
        "notes": experiment.notes,
        "configuration": yaml.safe_dump(asdict(experiment), sort_keys=False),
        "stages": [{"name": s.name, "command": s.command, "folder": str(s.folder)} for s in stages],
    }
    text = json.dumps(index, indent=1)
    same = (root / "experiment.json").is_file() and (root / "experiment.json").read_text("utf-8") == text
    published = (report, root / "summary.json", root / "rounds.json")
    if made_anew or not same or not all(file.is_file() for file in published):
        write_atomically(root / "experiment.json", text)
        write_atomically(root / "rounds.json", record_rounds(plan_rounds(experiment)))
        write_atomically(root / "summary.json", summary)
        for stage in stages:
            if stage.name.startswith("model-"):
                add_measurements(stage.folder, json.loads(summary))
        status = _start([*_dadpo(), "report", str(root)])
        if status:
            raise ConfigError(f"the report failed with status {status}")
        record_analysis(experiment.name, root / "analysis.json", stages[-1].folder / "token_maps.jsonl", root)
    return report


def _print_end(summary: list[dict[str, Any]], root: Path, report: Path, seconds: float) -> None:
    from rich.console import Console

    from lightning_dadpo.reports.table import terminal_table

    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(terminal_table(summary))
    print(f"summary: {root / 'summary.json'}\nreport:  {report}\n{seconds / 60:.1f} minutes in this run")
