"""From results.json to the README's table and figure; experiments/tables.py writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.wording import cell, made_with, markdown

__all__ = ["figures", "tables"]

GAINS = {"forward_kl": "forward KL", "reverse_kl": "reverse KL"}
MARGINS = {"per_token": "nats/token", "whole": "nats an answer"}
Results = dict[str, Any]


def tables(results: Results) -> dict[str, str]:
    """A table a margin, a row a tenth of the answers."""
    per_token, whole = (_tenths(results, by, unit) for by, unit in MARGINS.items())
    said = (
        f"{results['prompts']} held-out prompts, seeds {', '.join(map(str, results['seeds']))}; gains in nats/token, "
        f"above 0 where daDPO is nearer to the teacher; 95 % bootstrap intervals over prompts. {made_with(results)}"
    )
    return {"teacher_confidence": f"{per_token}\n\n{said}", "teacher_confidence whole": whole}


def _tenths(results: Results, by: str, unit: str) -> str:
    head = ["tenth by the teacher's margin", "answers", f"mean margin, {unit}"]
    head += [f"daDPO's gain on dDPO in {name}" for name in GAINS.values()]
    rows = [
        [str(row["part"]), str(row["answers"]), f"{row['margin']:+.2f}", *(cell(row, key, "{:+.3f}") for key in GAINS)]
        for row in results["rows"][by]
    ]
    correlations = results["correlations"][by].items()
    ranks, held = (
        "; ".join(f"{GAINS[key]} {_range(one, names)}" for key, one in correlations)
        for names in (("value", "low", "high"), ("partial", "partial_low", "partial_high"))
    )
    said = (
        f"Rank correlation (Spearman) of margin and gain: {ranks}. With the length of the teacher's answer held fixed: "
        f"{held}."
    )
    return f"{markdown(head, rows)}\n\n{said}"


def _range(one: dict[str, float], names: tuple[str, str, str]) -> str:
    value, low, high = (f"{one[name]:+.2f}" for name in names)
    return f"{value} [{low}, {high}]"


def figures(results: Results, folder: Path) -> None:
    """Gain by tenth: `tenths.svg`."""
    from experiments.drawing import COLOURS, MARKERS, figure

    with figure(folder / "tenths.svg", columns=len(MARGINS), width=8.0) as (_, axes):
        for axis, (by, unit) in zip(axes, MARGINS.items(), strict=True):
            rows = results["rows"][by]
            for number, (key, name) in enumerate(GAINS.items()):
                places = [row["part"] + 0.16 * number for row in rows]
                values = [row[key] for row in rows]
                bounds = [[abs(row[key] - row[f"{key}_{one}"]) for row in rows] for one in ("low", "high")]
                axis.errorbar(
                    places, values, bounds, linestyle="", color=COLOURS[number], marker=MARKERS[number], label=name
                )
            axis.axhline(0, color="black", linestyle=":", linewidth=0.8)
            axis.set_xticks(range(1, len(rows) + 1))
            axis.set_xlabel(f"tenth by the teacher's margin, {unit}")
        axes[0].set_ylabel("daDPO's gain on dDPO, nats/token")
        axes[0].legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
