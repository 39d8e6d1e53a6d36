"""From results.json to the README's table; experiments/tables.py writes it."""

from __future__ import annotations

from typing import Any

from experiments.wording import markdown

__all__ = ["tables"]


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The one table, by the name of its markers."""
    head = ["weights", "against", "D of a pair, root mean square", "D's own spread", "preference turned", "per token"]
    rows = [
        [
            row["held"],
            row["against"],
            _cell(row["noise"], "{:.2f}"),
            f"{row['spread']:.1f}",
            _cell(row["turned"], "{:.0%}"),
            _cell(row["per_token"], "{:+.3f}"),
        ]
        for row in results["rows"]
    ]
    made = ", ".join(f"{package} {number}" for package, number in results["versions"].items())
    seconds = ", ".join(f"{name} {number:.0f} s" for name, number in results["seconds"].items())
    said = (
        f"{results['model']}, {results['pairs']} pairs of {results['tokens']} response tokens; nats, in brackets 95 % "
        f"bootstrap intervals over pairs. `{results['command']}` on {results['hardware']}, with {made}; scoring took "
        f"{seconds}."
    )
    return {"quantisation": f"{markdown(head, rows)}\n\n{said}"}


def _cell(interval: dict[str, float], form: str) -> str:
    value, low, high = (form.format(interval[name]) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
