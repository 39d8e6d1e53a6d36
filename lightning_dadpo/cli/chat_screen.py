"""What a chat looks like: columns on a terminal, plain lines anywhere else. No text is ever read as markup."""

from __future__ import annotations

import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lightning_dadpo.cli.terminal_text import harmless

__all__ = ["Column", "Screen", "Terminal", "Lines"]

NARROWEST = 44
"""Letters that a column needs; where the terminal has fewer for each, answers stand one below the other."""

FRAME = 4
"""Letters of a column that its frame takes."""

SECONDS_BETWEEN_PICTURES = 0.05


@dataclass
class Column:
    """One model's answer as it is shown: who, what, and a note below."""

    name: str
    text: str = ""
    note: str = ""


class Screen(Protocol):
    """Where a chat is shown."""

    def say(self, text: str) -> None:
        """Something that is no answer."""

    def complain(self, text: str) -> None:
        """A mistake, in one line."""

    def heard(self, question: str) -> None:
        """A question that came from no keyboard."""

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A few words in rows and columns, the first column's to the left and numbers to the right."""

    def writing(self, columns: list[Column]) -> AbstractContextManager[Callable[[], None]]:
        """A context in which answers grow; it yields what is to be called when they have grown."""


class Lines:
    """Plain lines: answers when they are whole."""

    def say(self, text: str) -> None:
        """See `Screen.say`."""
        print(harmless(text), flush=True)

    def complain(self, text: str) -> None:
        """See `Screen.complain`."""
        print(harmless(f"error: {text}"), file=sys.stderr, flush=True)

    def heard(self, question: str) -> None:
        """See `Screen.heard`."""
        self.say(f"> {question}")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """See `Screen.table`."""
        widths = [max(map(len, cells)) for cells in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            first, *others = [cell.ljust(width) if not at else cell.rjust(width)
                              for at, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
            self.say("  ".join([first, *others]).rstrip())

    @contextmanager
    def writing(self, columns: list[Column]) -> Iterator[Callable[[], None]]:
        """See `Screen.writing`."""
        yield lambda: None
        for column in columns:
            self.say(f"[{column.name}]\n{column.text}\n({column.note})")


@contextmanager
def _silent_keys() -> Iterator[None]:
    """Keys that are pressed inside are not shown: an echoed ^C would shift the picture. They are read afterwards."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    silent = termios.tcgetattr(sys.stdin)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class Terminal:
    """Columns beside one another where there is room, each answer as it grows.

    Args:
        console: the terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """See `Screen.say`."""
        self.console.print(Text(harmless(text)))

    def complain(self, text: str) -> None:
        """See `Screen.complain`."""
        self.console.print(Text(harmless(f"error: {text}"), style="bold"))

    def heard(self, question: str) -> None:
        """See `Screen.heard`."""
        self.say(f"> {question}")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """See `Screen.table`."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        for at, cell in enumerate(head):
            table.add_column(Text(harmless(cell)), justify="right" if at else "left")
        for row in rows:
            table.add_row(*(Text(harmless(cell)) for cell in row))
        self.console.print(table)

    @contextmanager
    def writing(self, columns: list[Column]) -> Iterator[Callable[[], None]]:
        """See `Screen.writing`; the end of what is longer than the terminal is high stays in sight."""
        drawn = 0.0
        with _silent_keys(), Live(console=self.console, auto_refresh=False, transient=True) as live:

            def draw() -> None:
                nonlocal drawn
                if time.monotonic() - drawn >= SECONDS_BETWEEN_PICTURES:
                    live.update(self._picture(columns, cropped=True), refresh=True)
                    drawn = time.monotonic()

            draw()
            yield draw
        self.console.print(self._picture(columns, cropped=False))

    def _picture(self, columns: list[Column], cropped: bool) -> RenderableType:
        beside = len(columns) > 1 and self.console.width // len(columns) >= NARROWEST
        width = self.console.width // len(columns) if beside else self.console.width
        # a line each for the frame's top and bottom, the note, and the cursor below
        lines = max(1, (self.console.height - 1) // (1 if beside else len(columns)) - 3) if cropped else None
        panels = [self._panel(column, width, lines) for column in columns]
        if not beside:
            return Group(*panels)
        grid = Table.grid(expand=True)
        for _ in panels:
            grid.add_column(ratio=1)
        grid.add_row(*panels)
        return grid

    def _panel(self, column: Column, width: int, lines: int | None) -> Panel:
        text = Text(harmless(column.text) or " ", overflow="fold")
        if lines is not None:
            text = Text("\n").join(text.wrap(self.console, width - FRAME, overflow="fold")[-lines:])
        title = Text(harmless(column.name), style="bold")
        note = Text(harmless(column.note) or " ", style="dim", no_wrap=lines is not None, overflow="ellipsis")
        return Panel(Group(text, note), title=title, title_align="left")
