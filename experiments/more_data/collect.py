"""From the finished walks of run.py to results.json.

python experiments/more_data/collect.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.estimates import compared, evaluated, pooled, rows_by_method
from experiments.more_data.run import METHODS, PROMPTS, ROUNDS
from experiments.restore_pruned.collect import folder_of, manifest
from experiments.tables import processor
from experiments.walking import ROOT, SEEDS, chosen_rates


def measured(name: str, models: dict[str, str]) -> tuple[list[dict[str, Any]], Path]:
    """A row a method of a walk, with its change from that walk's dSFT."""
    summary = ROOT / "summaries" / f"{name}.json"
    sums = rows_by_method([evaluated(summary)], models | {"dsft": "dsft"})
    rows = [{"method": "dsft"} | pooled(sums["dsft"])]
    for method in METHODS:
        change = compared(sums[method], sums["dsft"])
        rows.append({"method": method} | pooled(sums[method]) | {f"{key}_change": v for key, v in change.items()})
    return rows, summary


def main() -> None:
    """See the module."""
    rows = []
    for prompts in PROMPTS:
        found, summary = measured(f"prompts{prompts}", {method: method for method in METHODS})
        kept = manifest(folder_of(summary, "pairs"))["counts"]["kept"]
        rows += [{"prompts": prompts, "pairs": kept, "rounds": 1} | row for row in found]
    for number in range(2, ROUNDS + 1):
        found, _ = measured(f"rounds{ROUNDS}", {f"{method}-round{number}": method for method in METHODS})
        rows += [{"prompts": PROMPTS[-1], "pairs": kept, "rounds": number} | row for row in found[1:]]
    evaluation = manifest(folder_of(summary, "evaluation"))
    results = {
        "kind": "more_data",
        "command": "python experiments/more_data/run.py",
        "hardware": processor(),
        "versions": evaluation["versions"],
        "precision": evaluation["results"]["precision"],
        "seed": SEEDS[0],
        "rates": {method: chosen_rates()[method] for method in METHODS},
        "heldout": evaluation["counts"]["prompts"],
        "rows": rows,
    }
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(path)


if __name__ == "__main__":
    main()
