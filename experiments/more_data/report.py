"""From results.json to the README's table and figure; experiments/tables.py writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.wording import DISTANCES, cell, made_with, markdown, took

__all__ = ["figures", "tables"]

Results = dict[str, Any]


def tables(results: Results) -> dict[str, str]:
    """A table a distance, a row a method, number of prompts and number of rounds; daDPO less dDPO; the answers."""
    said = (
        f"{results['prompts']} held-out prompts, seed {results['seed']}; in brackets 95 % bootstrap intervals over "
        f"prompts, differences paired by prompt. Pairs include those of validation. {made_with(results)} "
        f"{took(results)}"
    )
    return {
        "more_data": "\n\n".join([*(_table(results, key) for key in DISTANCES), said]),
        "more_data differences": _differences(results),
        "more_data answers": _answers(results),
    }


def _table(results: Results, key: str) -> str:
    head = ["prompts", "pairs", "rounds", "method", DISTANCES[key], "less dsft's", "less the row before of its method"]
    rows = [
        [
            *(str(row[name]) for name in ("prompts", "pairs", "rounds", "method")),
            cell(row, key, "{:.3f}"),
            *(_shown(row, f"{key}{{}}_{kind}") for kind in ("change", "gain")),
        ]
        for row in results["rows"]
    ]
    return markdown(head, rows)


def _differences(results: Results) -> str:
    head = ["prompts", "rounds", *(f"{name}, dadpo less ddpo" for name in DISTANCES.values())]
    rows = [
        [*(str(row[name]) for name in ("prompts", "rounds")), *(cell(row, key, "{:+.3f}") for key in DISTANCES)]
        for row in results["differences"]
    ]
    return markdown(head, rows)


def _answers(results: Results) -> str:
    head = [
        "prompts",
        "rounds",
        "method",
        "tokens an answer",
        "tokens in cut answers",
        "chosen, rejected it learnt from",
    ]
    rows = [
        [
            *(str(row[name]) for name in ("prompts", "rounds", "method")),
            cell(row, "mean_tokens", "{:.1f}"),
            cell(row, "cut_tokens", "{:.0%}"),
            "" if row["method"] == "dsft" else f"{row['chosen_tokens']:.1f}, {row['rejected_tokens']:.1f} tokens",
        ]
        for row in results["rows"]
    ]
    return markdown(head, rows)


def _shown(row: Results, key: str) -> str:
    return cell(row, key, "{:+.3f}") if key.format("") in row else ""


def figures(results: Results, folder: Path) -> None:
    """Both distances by the number of prompts, and behind them by rounds: `curves.svg`."""
    from experiments.drawing import COLOURS, MARKERS, figure

    rows = results["rows"]
    sizes = sorted({(row["rounds"], row["prompts"]) for row in rows})
    names = [f"{prompts}" if rounds == 1 else f"{prompts},\nround {rounds}" for rounds, prompts in sizes]
    with figure(folder / "curves.svg", columns=2) as (_, axes):
        for axis, (key, name) in zip(axes, DISTANCES.items(), strict=True):
            for number, method in enumerate(("dsft", "ddpo", "dadpo")):
                mine = [row for row in rows if row["method"] == method]
                places = [sizes.index((row["rounds"], row["prompts"])) + 0.1 * (number - 1) for row in mine]
                bounds = [[abs(row[key] - row[f"{key}_{end}"]) for row in mine] for end in ("low", "high")]
                axis.errorbar(
                    places, [row[key] for row in mine], bounds,
                    color=COLOURS[number], marker=MARKERS[number], label=method, capsize=2,
                )  # fmt: skip
            axis.set_xticks(range(len(sizes)), names)
            axis.set_xlabel("prompts")
            axis.set_title(name)
        axes[0].legend(frameon=False)
