"""`dadpo sweep`: the grid of a wandb sweep file, run here; wandb's own agent needs its server."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_dadpo.cli.command_parser import read_yaml
from lightning_dadpo.cli.processes import run_stage
from lightning_dadpo.data.artifacts import write_atomically
from lightning_dadpo.data.rows import content_digest
from lightning_dadpo.errors import ConfigError

__all__ = ["Sweep", "read_sweep", "sweep"]

ARGUMENTS = "${args}"
RUN_ID = "WANDB_RUN_ID"
RESULT = "sweep.json"
GOALS = ("minimize", "maximize")


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        command: what a run is started with; the element `${args}` stands for its parameters.
        grid: the values of each parameter.
        metric: name of what the runs are compared by.
        goal: minimize or maximize.
        configs: what the files hold that the command names with -c.
    """

    command: tuple[str, ...]
    grid: dict[str, list[Any]]
    metric: str
    goal: str
    configs: tuple[str, ...]

    def runs(self) -> Iterator[dict[str, Any]]:
        """The points of the grid, the last parameter varying fastest."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))

    def command_of(self, run: dict[str, Any]) -> list[str]:
        """A run's command, as wandb's agent would start it."""
        given = [f"--{name}={value}" for name, value in run.items()]
        return [part for one in self.command for part in (given if one == ARGUMENTS else [one])]

    def run_id(self, run: dict[str, Any]) -> str:
        """What a run is called; another command, another value or other text in its files is another run."""
        return content_digest(self.command, run, self.configs)[:8]

    def folder_of(self, run_id: str) -> Path:
        """Where a run leaves its curves, by its command."""
        return Path(_folder_in(self.command).replace(f"${RUN_ID}", run_id))


def read_sweep(path: str) -> Sweep:
    """A sweep file whose runs are known beforehand.

    Raises:
        ConfigError: it is no such file (file and key first).
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such sweep file")
    said = yaml.safe_load(read_yaml(path)) or {}
    if said.get("method") != "grid":
        raise ConfigError(f"{path}: method {said.get('method')!r}: expected grid; any other needs `wandb sweep {path}`")
    metric = said.get("metric") or {}
    if not isinstance(metric, dict) or not metric.get("name") or metric.get("goal", GOALS[0]) not in GOALS:
        raise ConfigError(f"{path}: metric {metric!r}: expected {{name: val/reverse_kl, goal: minimize}} or so")
    command = said.get("command")
    if not isinstance(command, list) or ARGUMENTS not in command:
        raise ConfigError(f"{path}: command: expected a list with {ARGUMENTS} in it")
    command = [str(part) for part in command]
    if not _folder_in(command):
        raise ConfigError(f"{path}: command: expected --trainer.default_root_dir FOLDER/${RUN_ID} in it, for each run")
    parameters = said.get("parameters")
    grid = {
        str(name): _values(path, str(name), one)
        for name, one in (parameters.items() if isinstance(parameters, dict) else ())
    }
    if not grid:
        raise ConfigError(f"{path}: parameters: none given, expected at least one")
    return Sweep(tuple(command), grid, str(metric["name"]), str(metric.get("goal", GOALS[0])), _configs_in(command))


def _values(path: str, name: str, said: Any) -> list[Any]:
    values = None
    if isinstance(said, dict):
        values = [said["value"]] if "value" in said else said.get("values")
    if not isinstance(values, list) or not values or any(isinstance(value, dict | list) for value in values):
        raise ConfigError(f"{path}: parameters.{name}: expected values: [...] or value: ..., found {said!r}")
    return values


def _folder_in(command: list[str] | tuple[str, ...]) -> str:
    found = re.search(rf"--trainer\.default_root_dir[= ]+(\S*\${RUN_ID}\S*)", " ".join(command))
    return found[1].strip("\"'") if found else ""


def _configs_in(command: list[str]) -> tuple[str, ...]:
    """The texts behind -c and --config; a file that is not there is said by the first run."""
    named = re.findall(r"(?<!\S)(?:-c|--config)[= ]+(\S+)", " ".join(command))
    files = [Path(name.strip("\"'")) for name in named]
    return tuple(file.read_text("utf-8") for file in files if file.is_file())


def sweep(file: str) -> int:
    """Run the grid of a wandb sweep file, one run after another; what is finished is skipped.

    Each run is a process with its id in WANDB_RUN_ID, as wandb's agent starts it, and logs as any training does. Its
    result stands in `sweep.json` of its folder; at the end all are listed, the best first.

    Args:
        file: the sweep file, for example configs/sweep/grid.yaml; its paths are relative to the current folder.

    Returns:
        0; or the exit status of the run that failed.
    """
    said = read_sweep(file)
    runs = {said.run_id(run): run for run in said.runs()}
    for number, (run_id, run) in enumerate(runs.items(), 1):
        result = said.folder_of(run_id) / RESULT
        if result.is_file():
            continue
        print(f"\n[{number}/{len(runs)}] {run_id}: {_spoken(run)}", flush=True)
        with _environment(run_id):
            status = run_stage(said.command_of(run))
        if status:
            print(f"run {run_id} failed with status {status}; the same command goes on here", file=sys.stderr)
            return status
        value = _last_value(said.folder_of(run_id), said.metric)
        write_atomically(result, json.dumps({"parameters": run, "metric": said.metric, "value": value}) + "\n")
    _print_results(said, runs)
    return 0


@contextmanager
def _environment(run_id: str) -> Iterator[None]:
    """What a run's process sees; `dadpo` is found beside this Python, also where its environment is not active."""
    before = dict(os.environ)
    beside = str(Path(sys.executable).parent)
    os.environ |= {RUN_ID: run_id, "PATH": os.pathsep.join([beside, before.get("PATH", os.defpath)])}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _last_value(folder: Path, metric: str) -> float:
    """The last value in the run's curves.

    Raises:
        ConfigError: nobody logged it.
    """
    values: list[float] = []
    for curves in sorted(folder.glob("**/metrics.csv"), key=lambda path: path.stat().st_mtime_ns):
        with curves.open(newline="", encoding="utf-8") as file:
            values += [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]
    if not values:
        raise ConfigError(f"{folder}: no {metric} in its metrics.csv; expected a callback and a CSVLogger that log it")
    return values[-1]


def _print_results(said: Sweep, runs: dict[str, dict[str, Any]]) -> None:
    found = [json.loads((said.folder_of(run_id) / RESULT).read_text("utf-8")) for run_id in runs]
    sign = 1 if said.goal == GOALS[0] else -1
    ordered = sorted(zip(runs, found, strict=True), key=lambda one: _rank(sign * one[1]["value"]))
    print(f"\n{said.metric}, {said.goal}:")
    for run_id, result in ordered:
        print(f"  {result['value']:.6g}  {said.folder_of(run_id)}  {_spoken(result['parameters'])}")


def _rank(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _spoken(run: dict[str, Any]) -> str:
    return ", ".join(f"{name.rsplit('.', 1)[-1]} {value}" for name, value in run.items())
