"""Command lines in forked processes: imports are paid for once, and each can be killed like any other process.

`python -m tests.forks` imports what the commands need and waits for orders, one JSON a line. It never runs anything
itself, so that what it forks begins like a process that has just imported the same.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from tests.faults import Fault, arm

__all__ = ["Forks", "Ended"]

ROOT = Path(__file__).parents[1]
IMPORTED = [
    "transformers.models.llama.modeling_llama", "matplotlib.pyplot",
    *(
        f"lightning_dadpo.{module}"
        for module in (
            "cli.main", "cli.running", "cli.training", "cli.reporting", "evaluation.evaluate", "models.export",
            "models.pruning", "sampling.stage", "sampling.transformers_sampler", "scoring.stage",
        )
    ),
]  # fmt: skip
PATIENCE = 100.0
"""Seconds that a command may take."""


@dataclass(frozen=True)
class Ended:
    """How the ranks of a command ended: exit statuses (negative for a signal), and what each has said."""

    statuses: list[int]
    outputs: list[str]
    errors: list[str]

    @property
    def status(self) -> int:
        return self.statuses[0]


class Forks:
    """A server of forked command lines; a context."""

    def __init__(self) -> None:
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment},
        )  # fmt: skip

    def __enter__(self) -> Forks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.communicate()

    def run(
        self,
        *arguments: str,
        cwd: Path,
        faults: Sequence[Fault | None] = (None,),
        environments: Sequence[dict[str, str]] = ({},),
    ) -> Ended:
        """Run `dadpo ARGUMENTS` in as many ranks as there are environments.

        Args:
            arguments: of the command line.
            cwd: where; also what the files of faults are under.
            faults: one a rank.
            environments: what each rank finds beside the server's own.
        """
        order = {
            "arguments": arguments,
            "cwd": str(cwd),
            "faults": [fault and asdict(fault) for fault in faults],
            "environments": environments,
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return Ended(**json.loads(self._server.stdout.readline()))


def torchrun(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "TORCHELASTIC_RUN_ID": "test"}
    shared |= {"LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def slurm(ranks: int, **also: str) -> list[dict[str, str]]:
    """What srun tells each rank."""
    (first, *_) = torchrun(ranks)
    shared = {"SLURM_NTASKS": str(ranks), "SLURM_NTASKS_PER_NODE": str(ranks), "SLURM_JOB_ID": "4711", **also}
    shared |= {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "test", "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = first["MASTER_PORT"]
    return [shared | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(ranks)]


def serve() -> None:
    """Fork what is ordered, until there are no more orders."""
    import_everything()
    for line in sys.stdin:
        order = json.loads(line)
        folder = Path(order["cwd"])
        children = [
            fork(order["arguments"], folder, folder / f".said-{rank}", Fault(**fault) if fault else None, environment)
            for rank, (fault, environment) in enumerate(zip(order["faults"], order["environments"], strict=True))
        ]
        statuses = wait(children)
        outputs, errors = (
            [(folder / f".said-{rank}.{kind}").read_text("utf-8") for rank in range(len(children))]
            for kind in ("out", "err")
        )
        print(json.dumps(asdict(Ended(statuses, outputs, errors))), flush=True)


def import_everything() -> None:
    """What any command needs."""
    for module in IMPORTED:
        importlib.import_module(module)


def fork(arguments: Sequence[str], cwd: Path, said: Path, fault: Fault | None, environment: dict[str, str]) -> int:
    """Start `dadpo ARGUMENTS` as a child with a process group of its own."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.setpgid(0, 0)
        become(arguments, cwd, said, environment)
        if fault is not None:
            arm(fault, cwd)
        status = run(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def become(arguments: Sequence[str], cwd: Path, said: Path, environment: dict[str, str]) -> None:
    """Like a process that a shell has started."""
    os.chdir(cwd)
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(said.with_name(f"{said.name}.{kind}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["dadpo", *arguments]
    # what Lightning starts further ranks with
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("lightning_dadpo.__main__")
    os.environ["PYTHONPATH"] = str(ROOT)


def run(arguments: Sequence[str]) -> int:
    """`sys.exit(main(...))`, as a number."""
    from lightning_dadpo.cli.main import main

    try:
        return main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def wait(children: list[int]) -> list[int]:
    """The statuses of all; as launchers do, the others are killed soon after one has failed."""
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + PATIENCE
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    statuses[child] = os.waitstatus_to_exitcode(status)
                    if statuses[child]:
                        deadline = min(deadline, time.monotonic() + 10)
        if time.monotonic() > deadline:
            for child in set(children) - set(statuses):
                os.killpg(child, signal.SIGKILL)
            deadline += 5
        time.sleep(0.01)
    return [statuses[child] for child in children]


if __name__ == "__main__":
    serve()
