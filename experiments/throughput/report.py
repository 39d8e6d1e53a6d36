"""From results.json to the tables in the READMEs; experiments/tables.py writes them."""

from __future__ import annotations

from typing import Any

__all__ = ["tables"]

TITLES = {
    "A": "speed against online daDPO (teacher and reference live, padded rows, full logits)",
    "B": "speed against TRL's plain DPO, its defaults (it carries no teacher)",
    "C": "speed against TRL's plain DPO at its best (reference precomputed, no checkpointing)",
    "E1": "speed against online daDPO, scoring bill included, one epoch",
    "E3": "the same, three epochs",
    "F": "floor FLOPs / (time x measured matmul rate)",
    "H": "peak memory, as a share of TRL's at its best",
    "I": "speed of scoring against TRL's precompute",
    "J": "time of Lightning's loop, by the bare loop's",
    "K": "share of non-padding tokens in training batches",
    "L": "speed of sampling against plain `generate` in prompt order",
}
BELOW = ("H", "J")
"""Rows whose target is an upper bound."""


def letter(name: str) -> str:
    """Which row of the definition a row belongs to."""
    return name.split(" ")[0]


def _number(value: float, percent: bool) -> str:
    return f"{value:.0%}" if percent else f"{value:.2f}"


def _bounds(row: dict[str, Any]) -> str:
    if row["low"] == row["high"]:
        return ""
    percent = letter(row["name"]) in ("F", "K")
    return f" [{_number(row['low'], percent)}, {_number(row['high'], percent)}]"


BESIDE = {
    "whole_process": "whole process {:.2f}",
    "same_pairs_at_a_time": "TRL with as many pairs at a time as we have {:.2f}",
    "reference": "reference's shape alone {:.2f}",
    "teacher": "teacher's shape alone {:.2f}",
    "attention_slots": "of attention's slots {:.0%}",
}
"""What else is said of a set's ratio, where it was measured."""


def _beside(row: dict[str, Any]) -> str:
    said = [form.format(row[key]) for key, form in BESIDE.items() if key in row]
    return f" ({', '.join(said)})" if said else ""


def met(row: dict[str, Any]) -> bool:
    """Whether a ratio reaches its target."""
    below = letter(row["name"]) in BELOW
    return bool(row["ratio"] <= row["target"] if below else row["ratio"] >= row["target"])


def _main(results: dict[str, Any]) -> str:
    """One line a ratio: what the target holds for, then each set."""
    names = list(dict.fromkeys(letter(row["name"]) for row in results["rows"]))
    lines = ["| | what | ratio | target | | each set |", "|---|---|---|---|---|---|"]
    for name in sorted(names):
        rows = [row for row in results["rows"] if letter(row["name"]) == name]
        counted = next(row for row in rows if row["target"] is not None)
        percent = name in ("F", "K")
        each = "; ".join(
            f"{row['set']} {_number(row['ratio'], percent)}{_bounds(row)}{_beside(row)}"
            for row in rows
            if row is not counted
        )
        sign = "at most" if name in BELOW else "at least"
        verdict = "met" if met(counted) else "missed"
        lines.append(
            f"| {name} | {TITLES[name]} | **{_number(counted['ratio'], percent)}**{_bounds(counted)} "
            f"| {sign} {_number(counted['target'], percent)} | {verdict} | {each} |"
        )
    made = results["versions"]
    packages = ("torch", "transformers", "trl", "lightning")
    lines += [
        "",
        f"`{results['command']}` on {results['hardware']}, {results['precision']}, {results['threads']} threads: "
        f"{results['minutes']:.0f} minutes in all, with "
        + ", ".join(f"{package} {made[package]}" for package in packages if package in made)
        + ".",
    ]
    return "\n".join(lines)


def _gate(results: dict[str, Any]) -> str:
    gate = results["gate"]
    lines = [
        "| against float64 | found | allowed |",
        "|---|---|---|",
        f"| error of a sequence's log-prob, relative, root mean square | {gate['packed_error']:.1e} "
        f"| 1.5 x the plain path's {gate['plain_error']:.1e} |",
        f"| the same, worst sequence | {gate['worst_relative_error']:.1e} | 1e-5 in float32 |",
        f"| cosine of the whole gradient | {gate['gradient_cosine']:.8f} | 0.9999 in float32 |",
    ]
    for name, found in results.get("same_loss", {}).items():
        lines.append(f"| step-0 loss, {name} | {found['loss']:.7f} | ln 2 = 0.6931472 |")
        if "trl_loss" in found:
            lines.append(f"| TRL's step-0 loss, {name} | {found['trl_loss']:.7f} | ln 2 |")
            lines.append(f"| log-probs apart from TRL's, relative, {name} | {found['log_probs_apart']:.1e} | 1e-4 |")
    return "\n".join(lines)


def _ladder(results: dict[str, Any]) -> str:
    lines = ["| set | rung | s/step | GFLOP/step | predicted gain | measured gain |", "|---|---|---|---|---|---|"]
    for name, rungs in results["ladder"].items():
        for rung in rungs:
            gains = [f"{rung[key]:.2f}x" if key in rung else "" for key in ("predicted", "measured")]
            cells = [name, rung["rung"], f"{rung['seconds']:.2f}", f"{rung['gflop']:.0f}", *gains]
            lines.append("| " + " | ".join(cells) + " |")
        first, last = rungs[0], rungs[-1]
        gains = [f"{first[key] / last[key]:.2f}x" for key in ("gflop", "seconds")]
        lines.append("| " + " | ".join([name, "**all together**", "", "", *gains]) + " |")
    return "\n".join(lines)


def _scaling(results: dict[str, Any]) -> str:
    lines = [
        "| work | what grows | times | tokens | seconds | microseconds/token | peak memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for curve in results["scaling"]:
        for point in curve["points"]:
            cells = [curve["work"], curve["kind"], f"{point['factor']}x", f"{point['tokens']}"]
            cells += [f"{point['seconds']:.2f}", f"{1e6 * point['seconds'] / point['tokens']:.0f}"]
            lines.append("| " + " | ".join([*cells, f"{point['peak'] / 1e6:.0f}"]) + " |")
    return "\n".join(lines)


def _sweep(results: dict[str, Any]) -> str:
    lines = ["| set | rival | seconds a pair by pairs of a micro-batch | taken |", "|---|---|---|---|"]
    for entry in results["sweep"]:
        tried = ", ".join(f"{size}: {taken:.2f}" for size, taken in entry["tried"].items())
        lines.append(f"| {entry['set']} | {entry['rival']} | {tried} | {entry['best']} |")
    return "\n".join(lines)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The text between each pair of markers, by the marker's name; what was not run is left out."""
    made = {"throughput": _main(results), "throughput gate": _gate(results)}
    for name, write in {"ladder": _ladder, "scaling": _scaling, "sweep": _sweep}.items():
        if results.get(name):
            made[f"throughput {name}"] = write(results)
    return made
