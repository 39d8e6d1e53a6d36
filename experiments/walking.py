"""Walks experiments whose methods train side by side: what restore_pruned, beta_plane and more_data have in common.

As many methods train at a time as there are cores, one thread each, under which a machine repeats its numbers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from experiments.hardware import cores, processor
from lightning_dadpo.cli.recipe import merge

__all__ = [
    "ROOT", "SEEDS", "Settings", "as_yaml", "at", "chosen_rates", "dadpo", "for_seed", "judging", "named",
    "pass_on_requests_to_stop", "ship", "walk", "walk_side_by_side",
]  # fmt: skip

ROOT = Path("runs/restore_pruned")
"""Where all of them work: the others take over what restore_pruned has sampled and scored."""

SEEDS = (10, 20, 30)
"""Of everything behind the pruning: the teacher's answers, the students', the order of training. A student draws with
the seed after its teacher's, so they lie apart."""

ONE_SEED = Path(__file__).resolve().parent / "restore_pruned" / "seed.yaml"

Settings = dict[str, Any]


def dadpo(*arguments: str) -> None:
    """Run a command of the project to its end.

    Raises:
        SystemExit: it failed, with its status, or the script was asked to stop.
    """
    if ASKED_TO_STOP:
        raise SystemExit(128 + ASKED_TO_STOP[0])
    environment = {"HF_HUB_OFFLINE": "1"} | dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "lightning_dadpo", *arguments], env=environment)
    RUNNING.add(process)
    if ASKED_TO_STOP:  # meanwhile, when it was not yet among those that are told
        process.send_signal(ASKED_TO_STOP[0])
    try:
        status = process.wait()
    finally:
        RUNNING.discard(process)
    if status:
        raise SystemExit(status)


RUNNING: set[subprocess.Popen[bytes]] = set()
"""The commands under way, one a lane."""
ASKED_TO_STOP: list[int] = []


def pass_on_requests_to_stop() -> None:
    """Who asks a script to go (SIGTERM) asks its commands: each training writes its checkpoint, and nothing begins."""

    def stop(number: int, frame: Any) -> None:
        ASKED_TO_STOP.append(number)
        for process in list(RUNNING):
            process.send_signal(number)

    signal.signal(signal.SIGTERM, stop)


def walk_side_by_side(walks: Mapping[str, Settings]) -> None:
    """Whole walks that share nothing, as many at a time as cores.

    Args:
        walks: by the names that `walk` takes; each has a folder of its own.
    """
    files = {name: _written(settings, name, list(settings["objectives"])) for name, settings in walks.items()}
    for name in walks:
        _summary(name).unlink(missing_ok=True)
    _side_by_side([("run", str(file)) for file in files.values()])
    for name, settings in walks.items():
        _forget_checkpoints(Path(settings["folder"]))
        _keep(Path(settings["folder"]), name, files[name])


def walk(settings: Settings, name: str) -> Path:
    """`dadpo run` of an experiment whose methods train side by side; what it came to, under the experiment's own name.

    The first method's walk makes what all share, so it must be one that needs every anchor's scores; then each core
    walks its part of the methods, which skips that, and a last walk over everything finds all of it and evaluates.
    The first method stands in every part: what a token-level method is watched beside are the pairs' answers. On a GPU
    they train one after another.

    Args:
        settings: the experiment.
        name: of its files in `ROOT`/settings, and of the summary.
    """
    methods, until = list(settings["objectives"]), _comparing(settings)
    lanes = min(_cores(), len(methods))
    shares = [methods[:1], *(list(dict.fromkeys([methods[0], *methods[lane::lanes]])) for lane in range(lanes))]
    files = [_written(settings, f"{name}-part{number}", share) for number, share in enumerate(shares)]
    parts = [("run", str(file), "--until", until) for file in files]
    _summary(name).unlink(missing_ok=True)
    _side_by_side(parts[:1])
    _side_by_side(parts[1:])
    dadpo("run", str(file := _written(settings, name, methods)))
    _forget_checkpoints(Path(settings["folder"]))
    return _keep(Path(settings["folder"]), name, file)


def _side_by_side(commands: Sequence[tuple[str, ...]]) -> None:
    with ThreadPoolExecutor(_cores()) as pool:
        for done in [pool.submit(dadpo, *command) for command in commands]:
            done.result()


def _cores() -> int:
    """How many trainings may run at a time: cores that this process may use, or one GPU."""
    return 1 if _has_gpu() else cores()


def _forget_checkpoints(folder: Path) -> None:
    """Remove what finished trainings could have gone on from, 1.2 GB each: their students have been exported."""
    for manifest in folder.glob("*/manifest.json"):
        for checkpoint in manifest.parent.glob("checkpoints/*.ckpt"):
            checkpoint.unlink()


def _comparing(settings: Settings) -> str:
    """The first stage that compares all methods."""
    return "judge-validation" if settings.get("people") else "verdicts" if settings.get("judge") else "evaluation"


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _keep(folder: Path, name: str, file: Path) -> Path:
    """Where the walk's stages are, its summary, what a judge has said, and what it ran on; the next walk in the same
    folder writes its own.

    Raises:
        SystemExit: another walk wrote there meanwhile.
    """
    index = json.loads((folder / "experiment.json").read_text("utf-8"))
    if index["command"] != f"dadpo run {file}":
        raise SystemExit(f"{folder}: {index['command']} wrote there meanwhile; the same command goes on here")
    stages = {stage["name"]: stage["folder"] for stage in index["stages"]}
    rows = json.loads((folder / "summary.json").read_text("utf-8"))
    found = {"commit": _commit(), "hardware": processor(), "stages": stages, "rows": rows}
    if "verdicts" in stages:
        found["preference"] = json.loads((Path(stages["verdicts"]) / "preference.json").read_text("utf-8"))
    kept = _summary(name)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return kept


def _summary(name: str) -> Path:
    return ROOT / "summaries" / f"{name}.json"


def _commit() -> str | None:
    """Of the sources that walk, with a mark where files were changed since; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _written(settings: Settings, name: str, methods: list[str]) -> Path:
    """The experiment with some of its methods, as a file."""
    file = ROOT / "settings" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    chosen = {method: settings["objectives"][method] for method in methods}
    file.write_text(as_yaml(settings | {"objectives": chosen}, str(file)), "utf-8")
    return file


def as_yaml(settings: Settings, file: str) -> str:
    """An experiment as a file that opens with the command that runs it."""
    return f"# dadpo run {file}\n{yaml.safe_dump(settings, sort_keys=False)}"


def ship(settings: Settings, beside: Path, name: str) -> None:
    """Write an experiment next to its results: one command repeats it, a training after another.

    Args:
        settings: the experiment.
        beside: a file of the experiment's folder.
        name: of the YAML file.
    """
    place = beside.with_name(f"{name}.yaml")
    place.write_text(as_yaml(settings, f"experiments/{place.parent.name}/{place.name}"), "utf-8")


def for_seed(seed: int) -> Settings:
    """restore_pruned/seed.yaml with everything that a seed decides."""
    settings: Settings = json.loads(json.dumps(yaml.safe_load(ONE_SEED.read_text("utf-8"))))
    settings["name"] += f"-seed{seed}"
    settings["folder"] = str(ROOT / f"seed{seed}")
    settings["sampling"]["seed"] = seed
    for recipe in (settings["dsft"], *settings["objectives"].values()):
        recipe["settings"]["data"]["init_args"]["seed"] = seed
    settings["objectives"]["reverse_kl"]["settings"]["model"]["init_args"]["on_policy"]["sampler"]["seed"] = seed
    return settings | judging()


def judging() -> Settings:
    """`judge` and `people` of an experiment, from the file that JUDGE names; nobody judges without one.

    Raises:
        SystemExit: there is no such file, or it holds no judge.
    """
    name = os.environ.get("JUDGE")
    if not name:
        return {}
    found = yaml.safe_load(Path(name).read_text("utf-8")) if Path(name).is_file() else {}
    if not isinstance(found, dict) or found.keys() != {"judge", "people"}:
        sys.exit(f"JUDGE={name}: expected a YAML file with `judge` and `people`, as in the README")
    return found


def at(recipe: Settings, rate: float, **loss: float) -> Settings:
    """A method's recipe at another learning rate, and with other numbers in its loss."""
    model: Settings = {"optimizer": {"init_args": {"lr": rate}}}
    if loss:
        model["loss"] = {"init_args": loss}
    return recipe | {"settings": merge(recipe["settings"], {"model": {"init_args": model}})}


def named(method: str, rate: float) -> str:
    """What a method is called with its rate, in the runs."""
    return f"{method}-{rate:.0e}"


def chosen_rates() -> dict[str, float]:
    """Each method's learning rate, as restore_pruned chose it on validation prompts.

    Raises:
        SystemExit: it has not yet.
    """
    file = ROOT / "chosen.json"
    if not file.is_file():
        sys.exit(f"{file}: no such file; run experiments/restore_pruned/run.py first")
    rates: dict[str, float] = json.loads(file.read_text("utf-8"))["rates"]
    return rates
