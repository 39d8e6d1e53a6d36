"""Walks experiments whose methods train side by side: what restore_pruned, beta_plane and more_data have in common.

As many methods train at a time as there are cores, one thread each, under which a machine repeats its numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

__all__ = ["ROOT", "SEEDS", "Settings", "at", "chosen_rates", "dadpo", "for_seed", "named", "walk"]

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
        SystemExit: it failed, with its status.
    """
    environment = {"HF_HUB_OFFLINE": "1"} | dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lightning_dadpo", *arguments]
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise SystemExit(status)


def walk(settings: Settings, name: str) -> Path:
    """`dadpo run` of an experiment whose methods train side by side; its summary, under the experiment's own name.

    The first method's walk makes what all share, so it must be one that needs every anchor's scores; then each core
    walks its part of the methods, which skips that, and a last walk over everything finds all of it and evaluates.

    Args:
        settings: the experiment.
        name: of its files in `ROOT`/settings, and of the summary.
    """
    kept = ROOT / "summaries" / f"{name}.json"
    methods = list(settings["objectives"])
    lanes = max(1, min(os.cpu_count() or 1, len(methods)))
    shares = [methods[:1], *(methods[lane::lanes] for lane in range(lanes))]
    files = [_written(settings, f"{name}-part{number}", share) for number, share in enumerate(shares)]
    dadpo("run", str(files[0]), "--until", "evaluation")
    with ThreadPoolExecutor(lanes) as pool:
        for done in [pool.submit(dadpo, "run", str(file), "--until", "evaluation") for file in files[1:]]:
            done.result()
    dadpo("run", str(_written(settings, name, methods)))
    kept.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(settings["folder"])
    index = json.loads((folder / "experiment.json").read_text("utf-8"))
    stages = {stage["name"]: stage["folder"] for stage in index["stages"]}
    rows = json.loads((folder / "summary.json").read_text("utf-8"))
    kept.write_text(json.dumps({"stages": stages, "rows": rows}, indent=1) + "\n", "utf-8")
    return kept


def _written(settings: Settings, name: str, methods: list[str]) -> Path:
    """The experiment with some of its methods, as a file."""
    file = ROOT / "settings" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    chosen = {method: settings["objectives"][method] for method in methods}
    text = yaml.safe_dump(settings | {"objectives": chosen}, sort_keys=False)
    file.write_text(f"# dadpo run {file}\n{text}", "utf-8")
    return file


def for_seed(seed: int) -> Settings:
    """restore_pruned/seed.yaml with everything that a seed decides."""
    settings: Settings = json.loads(json.dumps(yaml.safe_load(ONE_SEED.read_text("utf-8"))))
    settings["name"] += f"-seed{seed}"
    settings["folder"] = str(ROOT / f"seed{seed}")
    settings["sampling"]["seed"] = seed
    for recipe in (settings["dsft"], *settings["objectives"].values()):
        recipe["settings"]["data"]["init_args"]["seed"] = seed
    return settings


def at(recipe: Settings, rate: float, **loss: float) -> Settings:
    """A method's recipe at another learning rate, and with other numbers in its loss."""
    model: Settings = {"optimizer": {"init_args": {"lr": rate}}}
    if loss:
        model["loss"] = {"init_args": loss}
    return recipe | {"settings": recipe["settings"] | {"model": {"init_args": model}}}


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
