"""From results.json to the README's table and figure; experiments/tables.py writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.wording import made_with, markdown

__all__ = ["figures", "tables"]

Results = dict[str, Any]


def tables(results: Results) -> dict[str, str]:
    """The one table: a row a weight of the reference, a column a weight of the teacher; reverse KL and its change."""
    references, teachers = _axes(results)
    found = {(row["beta_reference"], row["beta_teacher"]): row for row in results["rows"]}
    head = ["beta to the reference", *(f"teacher {teacher:g}" for teacher in teachers)]
    rows = [[f"{one:g}", *(_shown(found.get((one, teacher))) for teacher in teachers)] for one in references]
    said = (
        f"Reverse KL in nats/token (dsft: {results['dsft']['reverse_kl']:.3f}); in brackets the 95 % interval of the "
        f"change from DPO at beta 0.1, paired by prompt. {results['prompts']} held-out prompts, seed "
        f"{results['seed']}, learning rate {results['rate']:.0e}. {made_with(results)}"
    )
    return {"beta_plane": f"{markdown(head, rows)}\n\n{said}"}


def _axes(results: Results) -> tuple[list[float], list[float]]:
    rows = results["rows"]
    return sorted({row["beta_reference"] for row in rows}), sorted({row["beta_teacher"] for row in rows})


def _shown(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    low, high = (f"{row[f'reverse_kl_{bound}_change']:+.3f}" for bound in ("low", "high"))
    return f"{row['reverse_kl']:.3f} [{low}, {high}]"


def figures(results: Results, folder: Path) -> None:
    """Reverse KL over the plane, a line a weight of the reference: `plane.svg`."""
    from experiments.drawing import COLOURS, MARKERS, figure

    references, teachers = _axes(results)
    found = {(row["beta_reference"], row["beta_teacher"]): row for row in results["rows"]}
    with figure(folder / "plane.svg", width=5.5) as (_, axes):
        for number, reference in enumerate(references):
            rows = [(place, found.get((reference, teacher))) for place, teacher in enumerate(teachers)]
            drawn = [(place + 0.06 * (number - 1), row) for place, row in rows if row is not None]
            places, values = [place for place, _ in drawn], [row["reverse_kl"] for _, row in drawn]
            bounds = [
                [abs(row["reverse_kl"] - row[f"reverse_kl_{bound}"]) for _, row in drawn] for bound in ("low", "high")
            ]
            axes[0].errorbar(
                places, values, bounds, color=COLOURS[number], marker=MARKERS[number], label=f"reference {reference:g}"
            )
        axes[0].axhline(results["dsft"]["reverse_kl"], color="black", linestyle=":", linewidth=0.8, label="dsft")
        axes[0].set_xticks(range(len(teachers)), [f"{teacher:g}" for teacher in teachers])
        axes[0].set_xlabel("beta to the teacher")
        axes[0].set_ylabel("reverse KL, nats/token")
        axes[0].legend(frameon=False)
