"""Runs a typed function as a command: its signature is the parser, its docstring the help."""

from __future__ import annotations

import io
import sys
import time
from contextlib import redirect_stderr
from importlib import import_module
from typing import Any

from lightning_dadpo.cli.command_parser import CommandParser, check_files
from lightning_dadpo.data.company import LeaderStoppedError
from lightning_dadpo.data.ranks import Ranks, ranks_here
from lightning_dadpo.errors import ConfigError, DadpoError

__all__ = ["run_function"]

TAKES_A_PATH = ("run", "report", "plan", "sweep")
"""Commands whose first argument is a path and needs no flag."""

MAY_TAKE_A_FOLDER = ("chat",)
"""Commands whose first argument may be a folder without its flag `--folder`."""

SPLIT = ("sample", "score", "score-responses")
"""Commands whose work several processes share; `fit` is Lightning's."""

SECONDS_FOR_RANK_ZERO = 2.0
"""Most mistakes are made on every rank at once; in this time the launcher stops the others, and one line is said."""


def run_function(name: str, module: str, function: str, summary: str, arguments: list[str]) -> int:
    """Parse `arguments` for the function and call it.

    A function's return value is its exit status when it is an int, else the path that it made, which is printed.
    Started as one of several ranks, rank 0 speaks for all; another one that fails alone says which it is.

    Raises:
        DadpoError: whatever the function raises; or the command cannot be split over several processes.
    """
    ranks = ranks_here()
    try:
        if ranks.size > 1 and name not in SPLIT:
            raise ConfigError(
                f"dadpo {name} is one process and was started as {ranks.size}; sample, score and fit are split"
            )
        return _call(name, module, function, summary, arguments, ranks)
    except LeaderStoppedError:
        return 2
    except DadpoError as error:
        if ranks.leads:
            raise
        time.sleep(SECONDS_FOR_RANK_ZERO)
        raise type(error)(f"rank {ranks.rank} of {ranks.size}: {error}") from error


def _call(name: str, module: str, function: str, summary: str, arguments: list[str], ranks: Ranks) -> int:
    check_files(arguments)
    target = getattr(import_module(module), function)
    several = f"; on several GPUs: torchrun --nproc_per_node 8 -m lightning_dadpo {name} -c FILE, or srun dadpo {name}"
    parser = CommandParser(prog=f"dadpo {name}", description=summary + (several if name in SPLIT else ""))
    parser.add_argument("-c", "--config", action="config", help="a YAML file with any of the options below")
    parser.add_function_arguments(target, as_group=False, as_positional=name in TAKES_A_PATH)
    if name in MAY_TAKE_A_FOLDER and arguments and not arguments[0].startswith("-"):
        arguments = ["--folder", *arguments]
    config = _parsed(parser, arguments, ranks)
    values = {key: value for key, value in config.as_dict().items() if key != "config"}
    result = target(**values)
    if isinstance(result, int):
        return result
    if result is not None and ranks.leads:
        print(result)
    return 0


def _parsed(parser: CommandParser, arguments: list[str], ranks: Ranks) -> Any:
    if ranks.leads:
        return parser.instantiate(parser.parse_args(arguments))
    try:
        with redirect_stderr(io.StringIO()) as said:
            return parser.instantiate(parser.parse_args(arguments))
    except SystemExit:
        time.sleep(SECONDS_FOR_RANK_ZERO)
        print(f"rank {ranks.rank} of {ranks.size}: {said.getvalue()}", end="", file=sys.stderr)
        raise
