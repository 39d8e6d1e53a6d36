"""What a chat looks like, and that no model can write on the terminal what it likes."""

from __future__ import annotations

import io
import os
import pty
import sys
import termios

import pytest
from rich.console import Console

from lightning_dadpo.cli.chat_screen import Column, Lines, Terminal
from lightning_dadpo.cli.terminal_text import harmless

HOSTILE = "\x1b[2J\x1b]0;title\x07[bold red]x[/] \x9b31m \u202ekcab :smile: \x00\x7f\u2028end"
HARMLESS = "\\x1b[2J\\x1b]0;title\\x07[bold red]x[/] \\x9b31m \\u202ekcab :smile: \\x00\\x7f\\u2028end"


def terminal(width: int, height: int = 40) -> tuple[Terminal, io.StringIO]:
    shown = io.StringIO()
    return Terminal(
        Console(file=shown, force_terminal=True, width=width, height=height, color_system=None, highlight=False)
    ), shown


def final(width: int, columns: list[Column], height: int = 40) -> list[str]:
    """What stands there when the answers are whole, without what was wiped away before."""
    screen, shown = terminal(width, height)
    with screen.writing(columns):
        pass
    return shown.getvalue().rsplit("\x1b[2K", 1)[-1].splitlines()


def test_two_answers_stand_beside_one_another_where_there_is_room() -> None:
    lines = final(100, [Column("teacher", "one\ntwo", "5 tokens"), Column("student", "three", "7 tokens")])
    assert any("one" in line and "three" in line for line in lines)
    assert any("teacher" in line and "student" in line for line in lines)
    assert all(len(line) <= 100 for line in lines)


def test_and_one_below_the_other_where_there_is_not() -> None:
    lines = final(60, [Column("teacher", "one\ntwo", "5 tokens"), Column("student", "three", "7 tokens")])
    assert not any("one" in line and "three" in line for line in lines)
    found = [next(at for at, line in enumerate(lines) if word in line) for word in ("teacher", "one", "two", "three")]
    assert found == sorted(found)


def test_while_it_grows_the_end_of_a_long_answer_is_in_sight_and_afterwards_all_of_it() -> None:
    screen, shown = terminal(60, height=12)
    column = Column("teacher", "\n".join(f"line{number}." for number in range(50)))
    with screen.writing([column]) as grown:
        growing = shown.getvalue()
        grown()
    assert "line49." in growing
    assert "line10." not in growing
    assert growing.count("\n") < 12
    whole = shown.getvalue()[len(growing) :]
    assert all(f"line{number}." in whole for number in range(50))


@pytest.mark.parametrize("width", [60, 120])
def test_hostile_text_is_spelled_out(width: int) -> None:
    screen, shown = terminal(width)
    column = Column(HOSTILE, HOSTILE, HOSTILE)
    with screen.writing([column]):
        growing = shown.getvalue()
    for text in (growing, shown.getvalue()):
        assert "\x1b[2J" not in text
        assert "[bold red]x[/]" in text
        assert ":smile:" in text
        assert not set("\x00\x07\x7f\x9b\u2028\u202e") & set(text)
    screen, shown = terminal(width)
    screen.say(HOSTILE)
    screen.complain(HOSTILE)
    screen.heard(HOSTILE)
    screen.table([HOSTILE, "a"], [[HOSTILE, "1"]])
    assert not set("\x00\x07\x7f\x9b\u2028\u202e") & set(shown.getvalue())
    assert "\x1b[2J" not in shown.getvalue()


def test_plain_lines_are_harmless_too(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Lines()
    with screen.writing([Column(HOSTILE, HOSTILE, HOSTILE)]):
        pass
    screen.say(HOSTILE)
    screen.complain(HOSTILE)
    screen.heard(HOSTILE)
    screen.table([HOSTILE, "a"], [[HOSTILE, "1"]])
    said = "".join(capsys.readouterr())
    assert not {character for character in said if not character.isprintable()} - {"\n"}
    assert said.count(HARMLESS) == 8


def test_plain_tables_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    Lines().table(["what", "by a"], [["longer than that", "-1.2"], ["x", "-10.25"]])
    assert capsys.readouterr().out == "what                by a\nlonger than that    -1.2\nx                 -10.25\n"


def test_what_people_write_stays_as_it_is() -> None:
    for text in ("Zürich\n\tnaïve Ελλάδα 日本語 العربية 👩‍🔬", "", "a\u200cb"):
        assert harmless(text) == text
    assert harmless("a\r\nb\rc") == "a\nb\\x0dc"
    assert harmless("\udc80") == "\\udc80"


def test_keys_pressed_while_answers_grow_are_not_shown_and_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """An echoed ^C shifts the picture, whose first lines then stay behind."""
    keyboard, typed_at = pty.openpty()
    with open(typed_at, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        screen, _ = terminal(80)
        before = termios.tcgetattr(stdin)
        assert before[3] & termios.ECHO
        with screen.writing([Column("teacher")]):
            os.write(keyboard, b"next\n")
            assert not termios.tcgetattr(stdin)[3] & termios.ECHO
        assert termios.tcgetattr(stdin) == before
        assert stdin.readline() == "next\n"
    os.close(keyboard)
