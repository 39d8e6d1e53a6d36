"""Peak memory of one side, measured in a process of its own: `python -m experiments.throughput.memory ...`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from experiments.throughput.setting import Setting, sizes_for

__all__ = ["in_own_process", "resident", "peak", "ROOT"]

ROOT = Path(__file__).resolve().parents[2]
STEPS = 2  # the second one has the optimizer's moments beside the activations


def _status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def resident() -> int:
    """Bytes in memory now: of the process, or on the GPU where there is one."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status("VmRSS")


def peak() -> int:
    """The most bytes there ever were."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def in_own_process(module: str, **arguments: Any) -> Any:
    """Run a module of this folder and read the JSON of its last line.

    Raises:
        RuntimeError: it failed; its last lines of output.
    """
    command = [sys.executable, "-m", f"experiments.throughput.{module}"]
    for name, value in arguments.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """One side's steps, and what they took at most."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=("ours", "trl"))
    parser.add_argument("--set")
    parser.add_argument("--size", type=int, help="pairs of TRL's micro-batch")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--quick", type=int)
    asked = parser.parse_args()
    # every import that a side makes comes before the base is read
    import transformers  # noqa: F401

    from experiments.throughput import ours, rivals

    if asked.side == "trl":
        rivals.import_trl()
    setting = Setting.make(sizes_for(bool(asked.quick)), asked.folder)
    pairs = setting.pairs(asked.set, setting.sizes.step[asked.set])
    base = resident()
    side: Any = (
        ours.Ours(setting, pairs) if asked.side == "ours" else rivals.Trl(setting, pairs, asked.size, defaults=False)
    )
    for _ in range(STEPS):
        side.step(pairs)
    print(json.dumps({"base": base, "peak": peak()}))


if __name__ == "__main__":
    main()
