"""From the finished walks of run.py to results.json, and to YAML files that repeat them.

python experiments/more_data/collect.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.estimates import Sums, compared, pooled, rows_by_method
from experiments.finished import about, evaluated, folder_of, kept, thread_hours
from experiments.more_data.run import METHODS, PROMPTS, ROUNDS, sized
from experiments.walking import SEEDS, chosen_rates, ship


def rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row a method, number of prompts and number of rounds: with its change from that walk's dSFT, and from the
    same method with fewer prompts or one round less; and daDPO less dDPO, a row a number of prompts and of rounds.
    """
    found, before = list[dict[str, Any]](), dict[str, Sums]()
    differences = list[dict[str, Any]]()
    for prompts in PROMPTS:
        walk = kept(f"prompts{prompts}")
        sums = rows_by_method([evaluated(walk)], {name: name for name in ("dsft", *METHODS)})
        about_row = {"prompts": prompts, "rounds": 1} | _pairs(walk, "pairs")
        found += [about_row | {"method": name} | _row(sums, name, before.get(name)) for name in ("dsft", *METHODS)]
        differences.append({"prompts": prompts, "rounds": 1} | _apart(sums))
        before = sums
    walk = kept(f"rounds{ROUNDS}")
    for number in range(2, ROUNDS + 1):
        sums = rows_by_method([evaluated(walk)], {f"{name}-round{number}": name for name in METHODS} | {"dsft": "dsft"})
        for name in METHODS:
            about_row = {"prompts": PROMPTS[-1], "rounds": number} | _pairs(walk, f"pairs-{name}-round{number}")
            found.append(about_row | {"method": name} | _row(sums, name, before[name]))
        differences.append({"prompts": PROMPTS[-1], "rounds": number} | _apart(sums))
        before = sums
    return found, differences


def _apart(sums: dict[str, Sums]) -> dict[str, Any]:
    ours, theirs = METHODS
    return compared(sums[ours], sums[theirs])


def _pairs(walk: dict[str, Any], stage: str) -> dict[str, Any]:
    """How many pairs, and the mean tokens of both responses of those that are trained on."""
    from lightning_dadpo.data.pairing import read_pairs

    pairs = list(read_pairs(folder_of(walk, stage)))
    trained = [pair for pair in pairs if pair.split == "train"]
    chosen = sum(len(pair.chosen_token_ids) for pair in trained) / len(trained)
    rejected = sum(len(pair.rejected_token_ids) for pair in trained) / len(trained)
    return {"pairs": len(pairs), "chosen_tokens": chosen, "rejected_tokens": rejected}


def _row(sums: dict[str, Sums], name: str, before: Sums | None) -> dict[str, Any]:
    row = pooled(sums[name])
    if name != "dsft":
        row |= {f"{key}_change": value for key, value in compared(sums[name], sums["dsft"]).items()}
    if before is not None:
        row |= {f"{key}_gain": value for key, value in compared(sums[name], before).items()}
    return row


def main() -> None:
    """See the module."""
    found, differences = rows()
    names = [*(f"prompts{prompts}" for prompts in PROMPTS), f"rounds{ROUNDS}"]
    results = {
        "kind": "more_data",
        "command": "python experiments/more_data/run.py",
        **about(kept(names[-1])),
        "thread_hours": thread_hours(map(kept, names), [kept(f"seed{SEEDS[0]}"), kept("tuning", "validation")]),
        "seed": SEEDS[0],
        "rates": {method: chosen_rates()[method] for method in METHODS},
        "rows": found,
        "differences": differences,
    }
    for prompts in PROMPTS:
        ship(sized(prompts), Path(__file__), f"prompts{prompts}")
    ship(sized(PROMPTS[-1], ROUNDS), Path(__file__), f"rounds{ROUNDS}")
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(path)


if __name__ == "__main__":
    main()
