"""From results.json to the README's table and figure; experiments/tables.py writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.wording import cell, made_with, markdown

__all__ = ["figures", "tables"]

Results = dict[str, Any]


def tables(results: Results) -> dict[str, str]:
    """The one table, a row a method, number of prompts and number of rounds."""
    head = ["prompts", "pairs", "rounds", "method", "forward KL, nats/token", "reverse KL", "reverse KL less dsft's"]
    rows = [
        [
            *(str(row[key]) for key in ("prompts", "pairs", "rounds", "method")),
            *(cell(row, key, "{:.3f}") for key in ("forward_kl", "reverse_kl")),
            *(_shown(row, f"reverse_kl{{}}_{kind}") for kind in ("change", "gain")),
        ]
        for row in results["rows"]
    ]
    said = (
        f"{results['prompts']} held-out prompts, seed {results['seed']}; in brackets 95 % bootstrap intervals over "
        f"prompts, differences paired by prompt. Pairs include those of validation. {made_with(results)}"
    )
    return {"more_data": f"{markdown([*head, 'less the row before of its method'], rows)}\n\n{said}"}


def _shown(row: Results, key: str) -> str:
    return cell(row, key, "{:+.3f}") if key.format("") in row else ""


def figures(results: Results, folder: Path) -> None:
    """Reverse KL by prompts in one round, and by rounds at all prompts: `curves.svg`."""
    from experiments.drawing import COLOURS, MARKERS, figure

    rows, most = results["rows"], max(row["prompts"] for row in results["rows"])
    views = (
        ("prompts", [row for row in rows if row["rounds"] == 1]),
        ("rounds", [row for row in rows if row["prompts"] == most]),
    )
    with figure(folder / "curves.svg", columns=2) as (_, axes):
        for axis, (asked, shown) in zip(axes, views, strict=True):
            for number, method in enumerate(("dsft", "ddpo", "dadpo")):
                mine = sorted((row for row in shown if row["method"] == method), key=lambda row: row[asked])
                ends = ("reverse_kl_low", "reverse_kl_high")
                bounds = [[abs(row["reverse_kl"] - row[end]) for row in mine] for end in ends]
                axis.errorbar(
                    [row[asked] for row in mine], [row["reverse_kl"] for row in mine], bounds,
                    color=COLOURS[number], marker=MARKERS[number], label=method, capsize=2,
                )  # fmt: skip
            axis.set_xlabel(asked)
            axis.set_xticks(sorted({row[asked] for row in shown}))
        axes[0].set_ylabel("reverse KL, nats/token")
        axes[0].legend(frameon=False)
