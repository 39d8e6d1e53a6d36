"""From results.json to the README's tables and figure; experiments/tables.py writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.wording import DISTANCES, cell, made_with, markdown, rate, took

__all__ = ["figures", "tables"]

Results = dict[str, Any]


def tables(results: Results) -> dict[str, str]:
    """The plane in both distances, points of equal strength against one another, and the saturation."""
    said = (
        f"In round brackets the change from DPO at beta 0.1 with its 95 % interval, paired by prompt. "
        f"{results['prompts']} held-out prompts, seed {results['seed']}, learning rate {rate(results['rate'])}. "
        f"{made_with(results)} {took(results)}"
    )
    planes = [_plane(results, key) for key in DISTANCES]
    return {
        "beta_plane": "\n\n".join([*planes, _along_the_axes(results), said]),
        "beta_plane strength": _strength(results),
        "beta_plane saturation": _saturation(results),
    }


def _plane(results: Results, key: str) -> str:
    """A row a weight of the reference, a column a weight of the teacher; one distance and its change."""
    references, teachers = _axes(results)
    found = {(row["beta_reference"], row["beta_teacher"]): row for row in results["rows"]}
    head = ["beta to the reference", *(f"teacher {teacher:g}" for teacher in teachers)]
    rows = [[f"{one:g}", *(_shown(found.get((one, teacher)), key) for teacher in teachers)] for one in references]
    return f"{DISTANCES[key]} (dsft: {results['dsft'][key]:.3f}):\n\n{markdown(head, rows)}"


def _along_the_axes(results: Results) -> str:
    """How far the reference's weight moves the distances at most, and how far the teacher's moves the forward KL."""
    references, teachers = _axes(results)
    apart = {
        key: max(
            max(column) - min(column)
            for teacher in teachers
            if (column := [row[key] for row in results["rows"] if row["beta_teacher"] == teacher])
        )
        for key in DISTANCES
    }
    (without, most) = (
        next(
            row for row in results["rows"] if (row["beta_reference"], row["beta_teacher"]) == (references[-1], teacher)
        )
        for teacher in (teachers[0], teachers[-1])
    )
    share = 1 - most["forward_kl"] / without["forward_kl"]
    return (
        f"Points with one weight of the teacher are at most {apart['forward_kl']:.3f} nats/token apart in forward KL "
        f"and {apart['reverse_kl']:.3f} in reverse KL. Beside a reference of {references[-1]:g}, a teacher of "
        f"{teachers[-1]:g} takes {share:.1%} off the forward KL."
    )


def _axes(results: Results) -> tuple[list[float], list[float]]:
    rows = results["rows"]
    return sorted({row["beta_reference"] for row in rows}), sorted({row["beta_teacher"] for row in rows})


def _shown(row: dict[str, Any] | None, key: str) -> str:
    if row is None:
        return ""
    changed = row[f"{key}_low_change"] != row[f"{key}_high_change"]  # else it is what the others are compared with
    return f"{row[key]:.3f} " + (f"({cell(row, f'{key}{{}}_change', '{:+.3f}')})" if changed else "(DPO)")


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
        f"{high:.1f} nats; the teacher itself finds the chosen answer likelier in {agreement} of them. The "
        f"median pair comes to a product of 3 at a teacher's weight of {3 / middle:.2f}."
    )
    head = ["reference, teacher", "pairs that pull with over 0.9 of full strength at the start"]
    return f"{said}\n\n{markdown(head, rows)}"


def figures(results: Results, folder: Path) -> None:
    """Both distances' change from DPO over the plane, a line a weight of the reference: `plane.svg`."""
    from experiments.drawing import COLOURS, MARKERS, figure

    references, teachers = _axes(results)
    found = {(row["beta_reference"], row["beta_teacher"]): row for row in results["rows"]}
    with figure(folder / "plane.svg", columns=2) as (_, axes):
        for axis, (key, name) in zip(axes, DISTANCES.items(), strict=True):
            for number, reference in enumerate(references):
                rows = [(place, found.get((reference, teacher))) for place, teacher in enumerate(teachers)]
                drawn = [(place + 0.12 * (number - 1), row) for place, row in rows if row is not None]
                places, values = [place for place, _ in drawn], [row[f"{key}_change"] for _, row in drawn]
                bounds = [
                    [abs(row[f"{key}_change"] - row[f"{key}_{bound}_change"]) for _, row in drawn]
                    for bound in ("low", "high")
                ]
                axis.errorbar(
                    places, values, bounds, color=COLOURS[number], marker=MARKERS[number], capsize=2,
                    label=f"reference {reference:g}",
                )  # fmt: skip
            axis.axhline(0, color="black", linestyle=":", linewidth=0.8)
            axis.set_xticks(range(len(teachers)), [f"{teacher:g}" for teacher in teachers])
            axis.set_xlabel("beta to the teacher")
            axis.set_title(f"{name}, less DPO's")
        axes[1].legend(frameon=False)
