"""What `dadpo judge` and `dadpo validate-judge` say in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["say_preferences", "say_validation", "validation_line"]

WIDTH = 100
"""Where there is no terminal, so that a log file holds whole rows."""


def say_preferences(found: Mapping[str, Any]) -> None:
    """Print `preference.json`: rates, differences, and how far the judge can be believed."""
    table = _table("Model", "Win/tie/\nlose, %", "Preference\nrate", "At equal\nlength", '"Longer\nwins"',
                   "Orders\nagree, %", "Tokens\n(its)")  # fmt: skip
    for row in found["rows"]:
        shares = "/".join(f"{100 * row[key]:.0f}" for key in ("win", "tie", "lose"))
        rates = [_points(row, key) for key in ("preference_rate", "length_controlled", "longer_wins")]
        lengths = f"{row['mean_tokens']:.1f}\n({row['opponent_mean_tokens']:.1f})"
        cells = [row["model"], shares, *rates, f"{100 * row['consistent']:.0f}", lengths]
        table.add_row(*map(Text, cells))
    lines = [
        f"judge {found['judge']['name']}, against {found['opponent']} (its tokens in brackets), "
        f"{found['rows'][0]['prompts']} prompts; rates in points of 100, with 95 % intervals over prompts",
        *(
            f"{one['model']} less {one['other']}: {_points(one, 'difference', ' ')} points, prompt by prompt"
            for one in found["differences"]
        ),
        validation_line(found["judge"]["validations"]),
    ]
    _say(table, lines)


def say_validation(found: Mapping[str, Any]) -> None:
    """Print `validation.json`: agreement with people by set, and whether that is enough."""
    table = _table("Set", "Pairs\n(untied)", "Agreement\nuntied, %", '"Longer\nwins", %', "Judge less\nlonger",
                   "Orders\nagree", "Ties\n%")  # fmt: skip
    for row in found["sets"]:
        cells = [
            row["set"].removeprefix("LLMBar__").replace("__", " "),
            f"{row['pairs']}\n({row['untied']})",
            _percent(row, "agreement"),
            _percent(row, "longer_wins"),
            _points(row, "difference", digits=1),
            f"{100 * row['consistent']:.1f}",
            f"{100 * row['ties']:.1f}",
        ]
        table.add_row(*map(Text, cells))
    verdict = f"judge {found['judge']['name']}: {'passes' if found['passes'] else 'does not pass'}"
    _say(
        table,
        [
            "chance: 50 %; in brackets 95 % intervals over questions; orders agree in % of pairs",
            found["criterion"],
            verdict,
            *found["reasons"],
        ],
    )


def validation_line(validations: list[dict[str, Any]]) -> str:
    """How far a judge can be believed, in one line."""
    if not validations:
        return "this judge was not held against people (dadpo validate-judge): its verdicts show nothing yet"
    said = []
    for one in validations:
        sets = {row["set"]: row for row in one["sets"]}
        rates = [f"{name} {_percent(sets[name], 'agreement', ' ')}" for name in sets if name in ("PandaLM", "LLMBar")]
        passes = "passes" if one["passes"] else f"does not pass ({'; '.join(one['reasons'])})"
        said.append(f"agreement with people, untied pairs: {', '.join(rates)} %; {passes}")
    return "; ".join(said)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(Text(heading), justify="left" if number == 0 else "right", no_wrap=number > 0)
    return table


def _points(row: Mapping[str, Any], key: str, gap: str = "\n", digits: int = 0) -> str:
    """A rate in points of 100 with its sign, and its interval, its bounds with so many digits."""
    value, low, high = (100 * row[f"{key}{bound}"] for bound in ("", "_low", "_high"))
    return f"{value:+.1f}{gap}[{low:+.{digits}f}, {high:+.{digits}f}]"


def _percent(row: Mapping[str, Any], key: str, gap: str = "\n") -> str:
    value, low, high = (100 * row[f"{key}{bound}"] for bound in ("", "_low", "_high"))
    return f"{value:.1f}{gap}[{low:.1f}, {high:.1f}]"


def _say(table: Table, lines: list[str]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(table)
    for line in lines:
        console.print(Text(line))
