"""A person's mistakes on a command line or in a YAML file, in one line."""

from __future__ import annotations

import sys
from typing import NoReturn

from jsonargparse import ArgumentParser

__all__ = ["CommandParser", "one_line"]


def one_line(message: str) -> str:
    """Jsonargparse explains over several indented lines; this joins them, and shortens what is very long."""
    lines = [line.strip(" -") for line in str(message).splitlines() if line.strip()]
    text = " ".join(lines)
    return text if len(text) < 600 else f"{text[:300]} ... {text[-250:]}"


class CommandParser(ArgumentParser):  # type: ignore[misc]
    """A parser whose mistakes are one line and a hint, with exit status 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """See the class."""
        print(f"error: {one_line(message)}", file=sys.stderr)
        print(f"hint: {self.prog} --help lists every option", file=sys.stderr)
        sys.exit(2)
