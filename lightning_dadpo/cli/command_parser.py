"""A person's mistakes on a command line or in a YAML file, in one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml
from jsonargparse import ArgumentParser

from lightning_dadpo.errors import ConfigError

__all__ = ["CommandParser", "one_line", "check_files", "read_yaml"]


def one_line(message: str) -> str:
    """Jsonargparse explains over several indented lines; this joins them, and shortens what is very long."""
    lines = [line.strip(" -") for line in str(message).splitlines() if line.strip()]
    text = " ".join(lines)
    return text if len(text) < 600 else f"{text[:300]} ... {text[-250:]}"


def read_yaml(path: str | Path) -> str:
    """The text of a YAML file that holds keys with values; jsonargparse would not say in which file the fault is.

    Raises:
        ConfigError: it is no such file (file:line first).
    """
    try:
        text = Path(path).read_text("utf-8")
        found = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: not YAML ({problem or one_line(str(error))})") from error
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"{path}: expected keys with values, found {type(found).__name__}")
    return text


def check_files(arguments: Sequence[str]) -> None:
    """Read the files behind `-c` and `--config` before anything is parsed; a file that is missing is the parser's.

    Raises:
        ConfigError: see `read_yaml`.
    """
    for before, argument in zip(["", *arguments], arguments, strict=False):
        path = argument.removeprefix("--config=") if argument.startswith("--config=") else argument
        if (before in ("-c", "--config") or path != argument) and Path(path).is_file():
            read_yaml(path)


class CommandParser(ArgumentParser):  # type: ignore[misc]
    """A parser whose mistakes are one line and a hint, with exit status 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """See the class."""
        print(f"error: {one_line(message)}", file=sys.stderr)
        print(f"hint: {self.prog} --help lists every option", file=sys.stderr)
        sys.exit(2)
