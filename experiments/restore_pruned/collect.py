"""From the finished walks of run.py to results.json.

    python experiments/restore_pruned/collect.py

What judges are worth (`dadpo validate-judge`) and IFEval (`dadpo ifeval`) are taken in where they were made beside it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.estimates import ESTIMATES, compared, evaluated, pooled, rows_by_method, single_seeds
from experiments.tables import processor
from experiments.walking import ROOT, SEEDS, chosen_rates, named

COMMAND = "python experiments/restore_pruned/run.py"
BASELINE = "ddpo"
UNTRAINED = {"initial": "pruned", "dsft": "dsft", "teacher": "teacher"}


def folder_of(summary: Path, stage: str) -> Path:
    """The folder of a stage of a walk."""
    return Path(json.loads(summary.read_text("utf-8"))["stages"][stage])


def manifest(folder: Path) -> dict[str, Any]:
    """What an artefact says of itself."""
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return found


def methods() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row a method, and its differences from the baseline and from dSFT, all seeds together."""
    rates = chosen_rates()
    names = UNTRAINED | {named(method, rate): method for method, rate in rates.items()}
    seeds = [evaluated(summary(f"seed{seed}")) for seed in SEEDS]
    sums = rows_by_method(seeds, names)
    rows = []
    for model, method in names.items():
        row = {"method": method, "rate": rates.get(method)} | pooled(sums[method])
        row |= {f"{key}_seeds": single_seeds(seeds, [model] * len(seeds), key) for key in ESTIMATES}
        rows.append(row)
    differences = [
        {"method": method, "other": other} | compared(sums[method], sums[other])
        for other in (BASELINE, "dsft")
        for method in rates
        if method != other
    ]
    return rows, differences


def summary(name: str) -> Path:
    """What a walk has kept."""
    return ROOT / "summaries" / f"{name}.json"


def tuning() -> list[dict[str, Any]]:
    """Every method at every rate on validation prompts, first seed."""
    keys = ("model", "reverse_kl", "reverse_kl_low", "reverse_kl_high", "forward_kl", "finished")
    return [{key: row[key] for key in keys} for row in json.loads(summary("tuning").read_text("utf-8"))["rows"]]


def beside(kind: str, file: str) -> list[dict[str, Any]]:
    """What was measured beside the walks, by folder: `ROOT`/KIND/NAME/FILE."""
    found = sorted(ROOT.glob(f"{kind}/*/{file}"))
    return [{"name": path.parent.name} | json.loads(path.read_text("utf-8")) for path in found]


def preferences() -> list[dict[str, Any]]:
    """What a judge said of every seed, where one was asked."""
    walks = {seed: json.loads(summary(f"seed{seed}").read_text("utf-8")) for seed in SEEDS}
    return [{"seed": seed} | walk["preference"] for seed, walk in walks.items() if "preference" in walk]


def main() -> None:
    """See the module."""
    rows, differences = methods()
    evaluation = manifest(folder_of(summary(f"seed{SEEDS[0]}"), "evaluation"))
    results = {
        "kind": "restore_pruned",
        "command": COMMAND,
        "hardware": processor(),
        "versions": evaluation["versions"],
        "precision": evaluation["results"]["precision"],
        "seeds": list(SEEDS),
        "prompts": evaluation["counts"]["prompts"],
        "pairs": [manifest(folder_of(summary(f"seed{seed}"), "pairs"))["counts"] for seed in SEEDS],
        "student": manifest(ROOT / "student")["results"],
        "tuning": tuning(),
        "rows": rows,
        "differences": differences,
        "selected_by": json.loads((ROOT / "chosen.json").read_text("utf-8"))["by"],
        "judges": beside("judges", "validation.json"),
        "preference": preferences(),
        "ifeval": beside("ifeval", "ifeval.json"),
    }
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(path)


if __name__ == "__main__":
    main()
