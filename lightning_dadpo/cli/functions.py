"""Runs a typed function as a command: its signature is the parser, its docstring the help."""

from __future__ import annotations

from importlib import import_module

from lightning_dadpo.cli.command_parser import CommandParser, check_files

__all__ = ["run_function"]

TAKES_A_PATH = ("run", "report")
"""Commands whose first argument is a path and needs no flag."""


def run_function(name: str, module: str, function: str, summary: str, arguments: list[str]) -> int:
    """Parse `arguments` for the function and call it.

    A function's return value is its exit status when it is an int, else the path that it made, which is printed.
    """
    check_files(arguments)
    target = getattr(import_module(module), function)
    parser = CommandParser(prog=f"dadpo {name}", description=summary)
    parser.add_argument("-c", "--config", action="config", help="a YAML file with any of the options below")
    parser.add_function_arguments(target, as_group=False, as_positional=name in TAKES_A_PATH)
    config = parser.instantiate(parser.parse_args(arguments))
    values = {key: value for key, value in config.as_dict().items() if key != "config"}
    result = target(**values)
    if isinstance(result, int):
        return result
    if result is not None:
        print(result)
    return 0
