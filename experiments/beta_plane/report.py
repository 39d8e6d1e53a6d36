"""From results.json to the README's tables and figure; experiments/tables.py writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.wording import cell, made_with, markdown, rate

__all__ = ["figures", "tables"]

Results = dict[str, Any]


def tables(results: Results) -> dict[str, str]:
    """The plane, points of equal strength against one another, and the saturation."""
    return {
        "beta_plane": _plane(results),
        "beta_plane strength": _strength(results),
        "beta_plane saturation": _saturation(results),
    }


def _plane(results: Results) -> str:
    """A row a weight of the reference, a column a weight of the teacher; reverse KL and its change."""
    references, teachers = _axes(results)
    found = {(row["beta_reference"], row["beta_teacher"]): row for row in results["rows"]}
    head = ["beta to the reference", *(f"teacher {teacher:g}" for teacher in teachers)]
    rows = [[f"{one:g}", *(_shown(found.get((one, teacher))) for teacher in teachers)] for one in references]
    said = (
        f"Reverse KL in nats/token (dsft: {results['dsft']['reverse_kl']:.3f}); in round brackets the change from DPO "
        f"at beta 0.1 with its 95 % interval, paired by prompt. {results['prompts']} held-out prompts, seed "
        f"{results['seed']}, learning rate {rate(results['rate'])}. {made_with(results)}"
    )
    return f"{markdown(head, rows)}\n\n{said}"


def _axes(results: Results) -> tuple[list[float], list[float]]:
    rows = results["rows"]
    return sorted({row["beta_reference"] for row in rows}), sorted({row["beta_teacher"] for row in rows})


def _shown(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['reverse_kl']:.3f} ({cell(row, 'reverse_kl{}_change', '{:+.3f}')})"


def _strength(results: Results) -> str:
    rows = [
        [
            _point(row["point"]),
            _point(row["other"]),
            cell(row, "forward_kl", "{:+.3f}"),
            cell(row, "reverse_kl", "{:+.3f}"),
        ]
        for row in results["differences"]
    ]
    head = ["reference, teacher", "less reference, teacher", "forward KL, nats/token", "reverse KL, nats/token"]
    return markdown(head, rows)


def _point(betas: dict[str, float]) -> str:
    return f"{betas['beta_reference']:g}, {betas['beta_teacher']:g}"


def _saturation(results: Results) -> str:
    found = results["saturation"]
    low, middle, high = found["quartiles"]
    agreement = cell(found["agreement"], "share", "{:.0%}")
    shares = {_point(row): row["saturated"] for row in found["rows"]}
    rows = [[point, f"{share:.0%}"] for point, share in shares.items()]
    said = (
        f"Over the training pairs the teacher's D less the reference's has the quartiles {low:.1f}, {middle:.1f} and "
        f"{high:.1f} nats; the teacher itself finds the chosen answer likelier in {agreement} of them."
    )
    head = ["reference, teacher", "pairs that pull with over 0.9 of full strength at the start"]
    return f"{said}\n\n{markdown(head, rows)}"


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
