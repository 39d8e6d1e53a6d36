"""From the finished walks of run.py to results.json.

python experiments/more_data/collect.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.estimates import Sums, compared, pooled, rows_by_method
from experiments.finished import about, evaluated, folder_of, kept, manifest
from experiments.more_data.run import METHODS, PROMPTS, ROUNDS
from experiments.walking import SEEDS, chosen_rates


def rows() -> list[dict[str, Any]]:
    """A row a method, number of prompts and number of rounds: with its change from that walk's dSFT, and from the
    same method with fewer prompts or one round less.
    """
    found, before = list[dict[str, Any]](), dict[str, Sums]()
    for prompts in PROMPTS:
        walk = kept(f"prompts{prompts}")
        sums = rows_by_method([evaluated(walk)], {name: name for name in ("dsft", *METHODS)})
        about_row = {"prompts": prompts, "pairs": _pairs(walk, "pairs"), "rounds": 1}
        found += [about_row | {"method": name} | _row(sums, name, before.get(name)) for name in ("dsft", *METHODS)]
        before = sums
    walk = kept(f"rounds{ROUNDS}")
    for number in range(2, ROUNDS + 1):
        sums = rows_by_method([evaluated(walk)], {f"{name}-round{number}": name for name in METHODS} | {"dsft": "dsft"})
        for name in METHODS:
            about_row = {"prompts": PROMPTS[-1], "pairs": _pairs(walk, f"pairs-{name}-round{number}"), "rounds": number}
            found.append(about_row | {"method": name} | _row(sums, name, before[name]))
        before = sums
    return found


def _pairs(walk: dict[str, Any], stage: str) -> int:
    return int(manifest(folder_of(walk, stage))["counts"]["pairs"])


def _row(sums: dict[str, Sums], name: str, before: Sums | None) -> dict[str, Any]:
    row = pooled(sums[name])
    if name != "dsft":
        row |= {f"{key}_change": value for key, value in compared(sums[name], sums["dsft"]).items()}
    if before is not None:
        row |= {f"{key}_gain": value for key, value in compared(sums[name], before).items()}
    return row


def main() -> None:
    """See the module."""
    results = {
        "kind": "more_data",
        "command": "python experiments/more_data/run.py",
        **about(kept(f"rounds{ROUNDS}")),
        "seed": SEEDS[0],
        "rates": {method: chosen_rates()[method] for method in METHODS},
        "rows": rows(),
    }
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(path)


if __name__ == "__main__":
    main()
