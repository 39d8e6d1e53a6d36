"""From results.json to the README's tables and figure; experiments/tables.py writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.wording import cell, made_with, markdown

__all__ = ["figures", "tables"]

COLUMNS = {
    "finished": ("ends by itself", "{:.0%}"),
    "mean_tokens": ("tokens", "{:.1f}"),
    "repetition": ("repeats itself", "{:.1%}"),
    "teacher_nll": ("teacher's nats/token on its answers", "{:.2f}"),
    "forward_kl": ("forward KL, nats/token", "{:.3f}"),
    "reverse_kl": ("reverse KL, nats/token", "{:.3f}"),
}
DIFFERENCES = ("teacher_nll", "forward_kl", "reverse_kl")
Results = dict[str, Any]


def tables(results: Results) -> dict[str, str]:
    """Every table by the name of its markers."""
    return {
        "restore_pruned": "\n".join([_methods(results), "", _made_with(results)]),
        "restore_pruned differences": _differences(results),
        "restore_pruned tuning": _tuning(results),
        "restore_pruned judges": _judges(results),
        "restore_pruned preference": _preference(results),
        "restore_pruned ifeval": _ifeval(results),
    }


def _rate(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.0e}"


def _methods(results: Results) -> str:
    head = ["method", "rate", *(name for name, _ in COLUMNS.values()), "reverse KL, seed by seed"]
    rows = [
        [
            row["method"],
            _rate(row["rate"]),
            *(cell(row, key, form) for key, (_, form) in COLUMNS.items()),
            ", ".join(f"{value:.3f}" for value in row["reverse_kl_seeds"]),
        ]
        for row in results["rows"]
    ]
    return markdown(head, rows)


def _made_with(results: Results) -> str:
    pairs = ", ".join(str(counts["kept"]) for counts in results["pairs"])
    return (
        f"{results['prompts']} held-out prompts, seeds {', '.join(map(str, results['seeds']))} "
        f"({pairs} pairs, validation pairs included); in brackets 95 % bootstrap intervals over prompts, a prompt's "
        f"seeds drawn together. {made_with(results)}"
    )


def _differences(results: Results) -> str:
    rows = [
        [f"{row['method']} less {row['other']}", *(cell(row, key, "{:+.3f}") for key in DIFFERENCES)]
        for row in results["differences"]
    ]
    return markdown(["on the same prompts; below 0 is nearer", *(COLUMNS[key][0] for key in DIFFERENCES)], rows)


def _tuning(results: Results) -> str:
    rows = [
        [
            row["model"],
            cell(row, "reverse_kl", "{:.3f}"),
            f"{row['forward_kl']:.3f}",
            f"{row['finished']:.0%}",
        ]
        for row in results["tuning"]
    ]
    return markdown(["method and rate", "reverse KL, nats/token", "forward KL", "ends by itself"], rows)


def _judges(results: Results) -> str:
    if not results["judges"]:
        return "No judge was held against people yet."
    rows = []
    for judge in results["judges"]:
        for one in judge["sets"]:
            cells = [cell(one, key, "{:.1%}") for key in ("agreement", "longer_wins")]
            name, believed = judge["judge"]["name"], "yes" if judge["passes"] else "no"
            rows.append([name, one["set"], str(one["untied"]), *cells, believed])
    head = ["judge", "set", "untied pairs", "agrees with people", '"the longer one wins" agrees', "may be believed"]
    return markdown(head, rows)


def _preference(results: Results) -> str:
    if not results["preference"]:
        return "Nobody judged: no judge at hand passes, so no preference result is claimed."
    keys = ("preference_rate", "length_controlled", "longer_wins")
    rows = [
        [str(one["seed"]), row["model"], *(cell(row, key, "{:+.1%}") for key in keys), f"{row['mean_tokens']:.1f}"]
        for one in results["preference"]
        for row in one["rows"]
    ]
    head = ["seed", "method and rate", "preference rate", "at equal length", '"the longer one wins"', "tokens"]
    return markdown(head, rows)


def _ifeval(results: Results) -> str:
    if not results["ifeval"]:
        return "IFEval was not run yet."
    keys = ("prompt_strict", "instruction_strict")
    rows = [
        [row["model"], str(row["prompts"]), *(cell(row, key, "{:.1%}") for key in keys)]
        for one in results["ifeval"]
        for row in one["rows"]
    ]
    return markdown(["model", "prompts", "all instructions of a prompt followed", "single instructions followed"], rows)


def figures(results: Results, folder: Path) -> None:
    """What each method changes against dDPO, paired by prompt: `differences.svg`."""
    from experiments.drawing import COLOURS, figure

    rows = [row for row in results["differences"] if row["other"] == "ddpo"]
    with figure(folder / "differences.svg", columns=len(DIFFERENCES)) as (_, axes):
        for axis, key in zip(axes, DIFFERENCES, strict=True):
            for place, row in enumerate(reversed(rows)):
                axis.plot([row[f"{key}_low"], row[f"{key}_high"]], [place, place], color=COLOURS[0])
                axis.plot(row[key], place, "o", color=COLOURS[0])
            axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
            axis.set_yticks(range(len(rows)), [row["method"] for row in reversed(rows)] if axis is axes[0] else [])
            axis.set_title(COLUMNS[key][0], fontsize=8)
        axes[1].set_xlabel("difference from ddpo on the same prompts, nats/token; left is nearer to the teacher")
