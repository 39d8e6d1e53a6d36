"""From results.json to the README's table and figure; experiments/tables.py writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.wording import cell, made_with, markdown

__all__ = ["figures", "tables"]

GAINS = {"forward_kl": "forward KL", "reverse_kl": "reverse KL"}
Results = dict[str, Any]


def tables(results: Results) -> dict[str, str]:
    """The one table, a row a tenth of the answers."""
    head = ["tenth by the teacher's margin", "answers", "mean margin, nats/token"]
    head += [f"daDPO's gain on dDPO in {name}" for name in GAINS.values()]
    rows = [
        [str(row["part"]), str(row["answers"]), f"{row['margin']:+.2f}", *(cell(row, key, "{:+.3f}") for key in GAINS)]
        for row in results["rows"]
    ]
    ranks = "; ".join(
        f"{GAINS[key]} {one['value']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]"
        for key, one in results["correlations"].items()
    )
    said = (
        "Gains in nats/token, above 0 where daDPO is nearer to the teacher; 95 % bootstrap intervals over "
        f"prompts. Rank correlation (Spearman) of margin and gain: {ranks}. "
        f"{results['prompts']} held-out prompts, seeds {', '.join(map(str, results['seeds']))}. {made_with(results)}"
    )
    return {"teacher_confidence": f"{markdown(head, rows)}\n\n{said}"}


def figures(results: Results, folder: Path) -> None:
    """Gain by tenth: `tenths.svg`."""
    from experiments.drawing import COLOURS, MARKERS, figure

    with figure(folder / "tenths.svg", width=6.0) as (_, axes):
        for number, (key, name) in enumerate(GAINS.items()):
            places = [row["part"] + 0.12 * number for row in results["rows"]]
            values = [row[key] for row in results["rows"]]
            bounds = [[abs(row[key] - row[f"{key}_{one}"]) for row in results["rows"]] for one in ("low", "high")]
            axes[0].errorbar(
                places, values, bounds, linestyle="", color=COLOURS[number], marker=MARKERS[number], label=name
            )
        axes[0].axhline(0, color="black", linestyle=":", linewidth=0.8)
        axes[0].set_xticks(range(1, len(results["rows"]) + 1))
        axes[0].set_xlabel("tenth of the answers by the teacher's margin, the least sure first")
        axes[0].set_ylabel("daDPO's gain on dDPO, nats/token")
        axes[0].legend(frameon=False)
