"""Commands as processes of their own, forked from one that has imported what they import."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from lightning_dadpo.cli.forks import Fork

__all__ = ["dadpo", "python_module", "python_code"]

ROOT = Path(__file__).parents[1]


def dadpo(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`dadpo ARGUMENTS`."""
    return python_module("lightning_dadpo", *arguments, cwd=cwd)


def python_module(
    module: str, *arguments: str, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENTS` to its end; what Lightning starts beside it is no fork.

    Args:
        module: see above.
        arguments: its own.
        cwd: where.
        environment: beside this process's.
    """
    found = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with tempfile.TemporaryDirectory() as place:
        said = [Path(place) / name for name in ("stdout", "stderr")]
        fork = Fork("tests.commands", [*map(str, said), str(cwd), module, *arguments], found)
        try:
            status = fork.wait()
        except BaseException:  # a test that was stopped
            fork.send_signal(signal.SIGKILL)
            raise
        return subprocess.CompletedProcess([module, *arguments], status, *(path.read_text("utf-8") for path in said))


def python_code(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -c CODE ARGUMENTS`."""
    return python_module("-c", code, *arguments)


def main(stdout: str, stderr: str, cwd: str, module: str, *arguments: str) -> None:
    """In the fork."""
    for number, place in ((1, stdout), (2, stderr)):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    os.chdir(cwd)
    sys.argv = [module, *arguments]
    if module == "-c":
        del sys.argv[1]
        exec(arguments[0], {"__name__": "__main__"})
        return
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
