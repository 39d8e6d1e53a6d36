"""From results.json to the README's tables and figure; experiments/tables.py writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.estimates import DIFFERENCES
from experiments.wording import cell, made_with, markdown, rate, single

__all__ = ["figures", "tables"]

COLUMNS = {
    "finished": ("ends by itself", "{:.0%}"),
    "mean_tokens": ("tokens", "{:.1f}"),
    "repetition": ("repeats itself", "{:.1%}"),
    "cut_tokens": ("tokens in cut answers", "{:.0%}"),
    "teacher_nll": ("teacher's nats/token on its answers", "{:.2f}"),
    "forward_kl": ("forward KL, nats/token", "{:.3f}"),
    "reverse_kl": ("reverse KL, nats/token", "{:.3f}"),
    "reverse_kl_each": ("reverse KL, mean of answers", "{:.3f}"),
}
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


def _methods(results: Results) -> str:
    head = ["method", "rate", *(name for name, _ in COLUMNS.values()), "reverse KL, seed by seed"]
    rows = [
        [
            row["method"],
            rate(row["rate"]),
            *(cell(row, key, form) for key, (_, form) in COLUMNS.items()),
            single(row["reverse_kl_seeds"], "{:.3f}"),
        ]
        for row in results["rows"]
    ]
    return markdown(head, rows)


def _made_with(results: Results) -> str:
    pairs = ", ".join(str(counts["pairs"]) for counts in results["pairs"])
    return (
        f"{results['prompts']} held-out prompts, seeds {', '.join(map(str, results['seeds']))} "
        f"({pairs} pairs, validation pairs included); in brackets 95 % bootstrap intervals over prompts, a prompt's "
        f"seeds drawn together: they say what other prompts would have changed, not what other trainings would. "
        f"{made_with(results)} All stages, those of the tuning too, took {results['thread_hours']:.0f} hours of one "
        "thread each, other work on the machine included."
    )


def _differences(results: Results) -> str:
    rows = [
        [
            f"{row['method']} less {row['other']}",
            *(cell(row, key, "{:+.3f}") for key in DIFFERENCES),
            single(row["reverse_kl_seeds"], "{:+.3f}"),
        ]
        for row in results["differences"]
    ]
    head = ["on the same prompts; below 0 is nearer", *(COLUMNS[key][0] for key in DIFFERENCES)]
    return markdown([*head, "reverse KL, seed by seed"], rows)


def _tuning(results: Results) -> str:
    keys = ("reverse_kl", "reverse_kl_each", "forward_kl", "cut_tokens", "repetition")
    rows = [
        [row["model"], cell(row, "reverse_kl", "{:.3f}"), *(COLUMNS[key][1].format(row[key]) for key in keys[1:])]
        for row in results["tuning"]
    ]
    head = ["method and rate", *(COLUMNS[key][0] for key in keys)]
    return f"{markdown(head, rows)}\n\nChosen by `{results['selected_by']}`."


def _judges(results: Results) -> str:
    if not results["judges"]:
        return "No judge was held against people yet."
    rows = []
    for judge in results["judges"]:
        for one in judge["sets"]:
            cells = [cell(one, key, "{:.1%}") for key in ("agreement", "longer_wins")]
            believed = "yes" if judge["passes"] else "no"
            rows.append([judge["name"], one["set"], str(one["untied"]), *cells, believed])
    head = ["judge", "set", "untied pairs", "agrees with people", '"the longer one wins" agrees', "may be believed"]
    return markdown(head, rows)


def _preference(results: Results) -> str:
    found = results["preference"]
    if found is None:
        return "Nobody judged the students, so no preference result is claimed."
    if not found["passes"]:
        return f"The judge {found['judge']} does not pass, so no preference result is claimed."
    rates = [
        [row["method"], *(cell(row, key, "{:+.1%}") for key in ("preference_rate", "longer_wins"))]
        for row in found["rows"]
    ]
    changes = [
        [f"{row['method']} less {row['other']}", cell(row, "preference_rate", "{:+.1%}")]
        for row in found["differences"]
    ]
    return "\n\n".join([
        f"Wins less losses against the teacher, all seeds together, by {found['judge']}:",
        markdown(["method", "preference rate", '"the longer one wins"'], rates),
        markdown(["on the same prompts; above 0 is better", "preference rate"], changes),
    ])  # fmt: skip


def _ifeval(results: Results) -> str:
    found = results["ifeval"]
    if found is None:
        return "IFEval was not run."
    keys = ("prompt_strict", "instruction_strict")
    rows = [
        [row["model"], *(cell(row, key, "{:.1%}") for key in (*keys, "finished")), f"{row['mean_tokens']:.0f}"]
        for row in found["rows"]
    ]
    rows.append(["repeating the prompt", *(cell(found["repeating_the_prompt"], key, "{:.1%}") for key in keys), "", ""])
    head = ["model", "all instructions of a prompt followed", "single instructions", "ends by itself", "tokens"]
    sampler = results["sampler"]
    said = (
        f"{found['rows'][0]['prompts']} prompts, seed {results['seeds'][0]}, temperature {sampler['temperature']}, at "
        f"most {sampler['max_new_tokens']} tokens, so not to be held against published figures; in brackets 95 % "
        "intervals over prompts."
    )
    return f"{markdown(head, rows)}\n\n{said}"


def figures(results: Results, folder: Path) -> None:
    """What each method changes against dDPO, paired by prompt: `differences.svg`."""
    from experiments.drawing import COLOURS, figure

    rows = [row for row in results["differences"] if row["other"] == "ddpo"]
    with figure(folder / "differences.svg", columns=len(DIFFERENCES)) as (_, axes):
        for axis, key in zip(axes, DIFFERENCES, strict=True):
            for place, row in enumerate(reversed(rows)):
                axis.plot([row[f"{key}_low"], row[f"{key}_high"]], [place, place], color=COLOURS[0])
                axis.plot(row[key], place, "o", color=COLOURS[0])
                axis.plot(row[f"{key}_seeds"], [place - 0.25] * len(row[f"{key}_seeds"]), "|", color=COLOURS[1])
            axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
            axis.set_yticks(range(len(rows)), [row["method"] for row in reversed(rows)] if axis is axes[0] else [])
            axis.set_title(COLUMNS[key][0], fontsize=8)
        axes[1].set_xlabel("difference from ddpo on the same prompts, nats/token; left is nearer; | single seeds")
