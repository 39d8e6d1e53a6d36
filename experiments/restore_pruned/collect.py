"""From the finished walks of run.py to results.json.

    python experiments/restore_pruned/collect.py

What judges are worth (`dadpo validate-judge`) is taken in where it was measured beside the walks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.estimates import DIFFERENCES, ESTIMATES, compared, pooled, rows_by_method, single_seeds
from experiments.finished import about, evaluated, folder_of, kept, manifest, thread_hours
from experiments.restore_pruned.preferences import BASELINES, preferences
from experiments.walking import ROOT, SEEDS, chosen_rates, named

COMMAND = "python experiments/restore_pruned/run.py"
UNTRAINED = {"initial": "pruned", "dsft": "dsft", "teacher": "teacher"}


def methods(walks: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row a method, and its differences from the baselines, all seeds together and one by one."""
    rates = chosen_rates()
    names = UNTRAINED | {named(method, rate): method for method, rate in rates.items()}
    seeds = [evaluated(walk) for walk in walks]
    sums = rows_by_method(seeds, names)
    alone = {method: {key: single_seeds(seeds, model, key) for key in ESTIMATES} for model, method in names.items()}
    rows = [
        {"method": method, "rate": rates.get(method)}
        | pooled(sums[method])
        | {f"{key}_seeds": values for key, values in alone[method].items()}
        for method in names.values()
    ]
    differences = [
        {"method": method, "other": other} | compared(sums[method], sums[other]) | _by_seed(alone[method], alone[other])
        for other in BASELINES
        for method in rates
        if method != other
    ]
    return rows, differences


def _by_seed(own: dict[str, list[float]], other: dict[str, list[float]]) -> dict[str, list[float]]:
    return {
        f"{key}_seeds": [mine - theirs for mine, theirs in zip(own[key], other[key], strict=True)]
        for key in DIFFERENCES
    }


def tuning() -> list[dict[str, Any]]:
    """Every method at every rate on validation prompts, first seed."""
    sums = rows_by_method(
        [evaluated(walk := kept("tuning", "validation"))], {row["model"]: row["model"] for row in walk["rows"]}
    )
    return [{"model": row["model"]} | pooled(sums[row["model"]]) for row in walk["rows"]]


def judges(walks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What judges are worth: those that the walks asked, and those in `ROOT`/judges."""
    asked = [folder_of(walk, "judge-validation") for walk in walks if "judge-validation" in walk["stages"]]
    files = [folder / "validation.json" for folder in asked[:1]] + sorted(ROOT.glob("judges/*/validation.json"))
    return [{"name": file.parent.name} | json.loads(file.read_text("utf-8")) for file in files]


def instructions(walk: dict[str, Any]) -> dict[str, Any] | None:
    """IFEval of the first seed's models, where it was asked for, and of a program that repeats each prompt."""
    if "ifeval" not in walk["stages"]:
        return None
    found = json.loads((folder_of(walk, "ifeval") / "ifeval.json").read_text("utf-8"))
    return {key: found[key] for key in ("rows", "repeating_the_prompt")}


def main() -> None:
    """See the module."""
    walks = [kept(f"seed{seed}") for seed in SEEDS]
    rows, differences = methods(walks)
    results = {
        "kind": "restore_pruned",
        "command": COMMAND,
        **about(walks[0]),
        "thread_hours": thread_hours([*walks, kept("tuning", "validation")]),
        "seeds": list(SEEDS),
        "pairs": [manifest(folder_of(walk, "pairs"))["counts"] for walk in walks],
        "student": manifest(ROOT / "student")["results"],
        "tuning": tuning(),
        "rows": rows,
        "differences": differences,
        "selected_by": json.loads((ROOT / "chosen.json").read_text("utf-8"))["by"],
        "judges": judges(walks),
        "preference": preferences(walks),
        "ifeval": instructions(walks[0]),
    }
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(path)


if __name__ == "__main__":
    main()
